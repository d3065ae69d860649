"""Which class a Yuan2 checkpoint is loaded with, and what its published config says."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from ds_sft.families.yuan2.native.configuration import Yuan2Config
from ds_sft.families.yuan2.native.model import Yuan2ForCausalLM, Yuan2Model

__all__ = ["Yuan2Config", "Yuan2ForCausalLM", "Yuan2Model", "model_class", "published_config"]

_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
)
"""The official config class has no default for some of these, so all are written."""


def model_class(_config: Mapping[str, Any], _stored_names: frozenset[str]) -> type[PreTrainedModel]:
    """Give the native class, whatever code the folder's `auto_map` names.

    Args:
        _config: Content of config.json.
        _stored_names: Names of the stored weights.

    Returns:
        `Yuan2ForCausalLM`.
    """
    return Yuan2ForCausalLM


def published_config(model: PreTrainedModel, config: dict[str, Any]) -> dict[str, Any]:
    """Make config.json readable for the official code too, without naming code that is not in the folder.

    Args:
        model: The trained model.
        config: What transformers would write.

    Returns:
        The same with every field of the shape and the official class name.
    """
    shape = {name: value for name, value in model.config.to_dict().items() if name in _SHAPE}
    # Trainer puts the tokenizer's id into the config; what was trained with is the checkpoint's own.
    shape["pad_token_id"] = model.get_input_embeddings().padding_idx
    kept = {name: value for name, value in config.items() if name not in ("auto_map", "tokenizer_class")}
    return kept | shape | {"architectures": ["YuanForCausalLM"]}
