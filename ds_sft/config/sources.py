"""The flags that say which model, which conversations and which adapters; they can be read without torch."""

from dataclasses import dataclass, field
from typing import Literal

from ds_sft.contracts import LayoutOptions, LossMode

CACHE_DIR_HELP = "Where models from the hub are kept."
MODEL_MAX_LENGTH = 2048
MODEL_MAX_LENGTH_HELP = "Most tokens of one sequence; source and target have this limit each."


@dataclass
class ModelArguments:
    """Which model is trained."""

    model_name_or_path: str = field(metadata={"help": "Folder of the checkpoint, or its name on the hub."})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Accepted for old command lines; code from a model folder is never executed."},
    )
    padding_side: Literal["right", "left"] = field(
        default="right", metadata={"help": "Side on which inputs are padded; targets are always padded on the right."}
    )
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "Attention of transformers, for example sdpa, eager or flash_attention_2."}
    )


@dataclass
class DataArguments:
    """What it is trained on."""

    data_path: str = field(
        metadata={
            "help": "ShareGPT conversations: a JSON array or one JSON object a line. "
            "Messages and Alpaca records too; .gz and .zst too."
        }
    )
    eval_data_path: str | None = field(default=None, metadata={"help": "Conversations to evaluate on, same format."})
    lazy_preprocess: bool = field(default=False, metadata={"help": "Tokenise each sample when it is asked for."})
    num_data: int = field(default=-1, metadata={"help": "Train on the first so many conversations only; -1 for all."})
    preprocessed_path: str | None = field(
        default=None, metadata={"help": "File or folder for the tokenised samples, instead of the shared cache."}
    )
    strict_data: bool = field(default=False, metadata={"help": "Stop at the first rejected conversation."})
    last_response_loss: bool = field(default=False, metadata={"help": "Loss on the last answer only."})
    split_example_loss: bool = field(default=False, metadata={"help": "One sample for each answer."})
    efficient_loss: bool = field(default=False, metadata={"help": "One sample, loss on every answer."})
    layout: Literal["native", "fastchat"] = field(
        default="native", metadata={"help": "fastchat gives FastChat's token layout, for --efficient_loss only."}
    )

    def loss_modes(self) -> tuple[LossMode, ...]:
        """Give the loss modes that were asked for; more than one is a fault.

        Returns:
            Their names, in the order of the flags.
        """
        asked: dict[LossMode, bool] = {
            "last_response": self.last_response_loss,
            "split_example": self.split_example_loss,
            "efficient": self.efficient_loss,
        }
        return tuple(mode for mode, is_on in asked.items() if is_on)

    def layout_options(self, *, max_tokens: int) -> LayoutOptions:
        """Give what a family needs to lay out a dialogue.

        Args:
            max_tokens: Most tokens of one sequence.

        Returns:
            The options; `efficient` where no loss mode was asked for.
        """
        asked = self.loss_modes()
        mode: LossMode = asked[0] if asked else "efficient"
        return LayoutOptions(max_tokens=max_tokens, loss_mode=mode, name=self.layout)


@dataclass
class LoraArguments:
    """Adapters; giving `--lora_r` or `--lora_weight_path` asks for them."""

    lora_r: int | None = field(default=None, metadata={"help": "Rank of the adapters; asks for them."})
    lora_alpha: int = field(default=16, metadata={"help": "Scale of the adapters, before division by the rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout in front of the adapters."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Linear layers that get an adapter, or all-linear; the family's own choice by default."},
    )
    lora_weight_path: str | None = field(default=None, metadata={"help": "Folder of an adapter to continue."})
    lora_bias: Literal["none", "all", "lora_only"] = field(default="none", metadata={"help": "Biases to train."})
    use_rslora: bool = field(default=False, metadata={"help": "Divide the scale by the square root of the rank."})
    use_dora: bool = field(default=False, metadata={"help": "Train the length of each weight row apart (DoRA)."})
    lora_init: Literal["pissa", "olora", "eva", "loftq"] | None = field(
        default=None, metadata={"help": "How adapters begin, instead of at random; loftq with q_lora only."}
    )
    q_lora: bool = field(default=False, metadata={"help": "Hold the frozen base model in 4 bits (NF4)."})

    @property
    def is_asked(self) -> bool:
        """Whether adapters train instead of the model."""
        return self.lora_r is not None or self.lora_weight_path is not None
