"""Flan-T5's model class: transformers' T5, but with the output head that Flan-T5 really has."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel, T5ForConditionalGeneration

_HEAD = "lm_head.weight"


class UntiedT5(T5ForConditionalGeneration):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """T5 with an output head of its own, as Flan-T5 and T5 v1.1 have.

    transformers 5 sets `tie_word_embeddings` on every T5 (configuration_t5.py), so the trained head is lost when the
    vocabulary is resized, and under ZeRO-3 already when the model is loaded. Here only the input embeddings are shared.
    """

    _tied_weights_keys = {  # noqa: RUF012  # transformers declares it so
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }


def model_class(config: Mapping[str, Any], stored_names: frozenset[str]) -> type[PreTrainedModel]:
    """Pick the class whose head is tied exactly as the checkpoint's is.

    Args:
        config: Content of config.json. `tie_word_embeddings: false` means a head of its own; transformers 5 overwrites
            that with true and keeps `scale_decoder_outputs: false` instead, and then the stored names decide.
        stored_names: Names of the stored weights; empty where only reading the whole file would tell.

    Returns:
        `UntiedT5`, or transformers' tied class.
    """
    is_untied = config.get("tie_word_embeddings") is False
    was_untied = config.get("scale_decoder_outputs") is False and _HEAD in stored_names
    return UntiedT5 if is_untied or was_untied else T5ForConditionalGeneration


def published_config(model: PreTrainedModel, config: dict[str, Any]) -> dict[str, Any]:
    """Make config.json say what was trained, for this and for older transformers.

    Args:
        model: The trained model.
        config: What transformers would write: always tied.

    Returns:
        The same with the true tying and the public class name.
    """
    return config | {
        "architectures": ["T5ForConditionalGeneration"],
        "tie_word_embeddings": not isinstance(model, UntiedT5),
    }
