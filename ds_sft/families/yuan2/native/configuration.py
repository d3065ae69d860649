"""The config of a dense Yuan2; keys of the official file that the model never needed are accepted and kept."""

from types import ModuleType
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ds_sft.families.yuan2.native.rules import DEFAULT_CONTEXT, config_faults

_END_OF_DOCUMENT = 77185


@strict
class Yuan2Config(PreTrainedConfig):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Shape and constants of a dense Yuan2 (defaults: Yuan2-2B).

    `rope_scaling` and `rope_parameters` are honoured; the official code ignores them. The filter's norm has no key: its
    epsilon is 1e-6 whatever `rms_norm_eps` says, as in the official code.
    """

    model_type: ClassVar[str] = "yuan"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    number_of_conv_states: ClassVar[int] = 2
    """Cached for each layer beside keys and values: the last normed state and the last output of the first filter."""

    vocab_size: int = 135040
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    hidden_act: str = "silu"
    max_position_embeddings: int = DEFAULT_CONTEXT
    initializer_range: int | float = 0.02
    rms_norm_eps: int | float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = _END_OF_DOCUMENT
    bos_token_id: int | None = _END_OF_DOCUMENT
    eos_token_id: int | list[int] | None = _END_OF_DOCUMENT
    tie_word_embeddings: bool = True
    rope_parameters: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Take over keys without a field, but for those that are computed here.

        Args:
            **kwargs: What else the file says.
        """
        for derived in ("head_dim", "layer_types", "number_of_conv_states"):
            kwargs.pop(derived, None)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]  # transformers leaves it untyped

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def layer_types(self) -> list[str]:
        """Tells transformers' caches and masks that every layer has attention and a convolution."""
        return ["hybrid"] * self.num_hidden_layers

    def validate_architecture(self) -> None:
        """Refuse what the model cannot be; transformers calls this after every field has its type.

        Raises:
            ValueError: With all faults.
        """
        faults = config_faults(self.__dict__)
        if faults:
            raise ValueError("; ".join(faults))


def register(auto: ModuleType) -> None:
    """Let `AutoConfig` know the model type, without loading a model.

    Args:
        auto: `transformers.models.auto.configuration_auto`.
    """
    auto.AutoConfig.register(Yuan2Config.model_type, Yuan2Config, exist_ok=True)
