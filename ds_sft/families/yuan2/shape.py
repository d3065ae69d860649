"""What config.json says of a Yuan2: its weights and its attention, counted without making any."""

from collections.abc import Iterator, Mapping
from typing import Any

from ds_sft.contracts import ModelShape, Weight
from ds_sft.families.yuan2.native.rules import DEFAULT_SIZES


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """Tell the weights of the decoder.

    Args:
        config: Content of config.json; those of Yuan2-2B for what is missing.

    Returns:
        The shape.
    """
    content = {**DEFAULT_SIZES, **config}
    width, num = content["hidden_size"], content["num_hidden_layers"]
    return ModelShape(
        weights=(*_ends(content), *_attention(width, num), *_filters(width, num), *_feed_forward(content)),
        target_pair=2 * width * num,
    )


def _ends(content: Mapping[str, Any]) -> Iterator[Weight]:
    table = (content["vocab_size"], content["hidden_size"])
    is_tied = content.get("tie_word_embeddings", True)
    yield Weight("embed_tokens", table, 1, "supervised" if is_tied else "nothing")
    if not is_tied:
        yield Weight("lm_head", table, 1, "supervised", is_linear=True)
    yield Weight("norm", (content["hidden_size"],), 1)


def _attention(width: int, num: int) -> Iterator[Weight]:
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        yield Weight(f"self_attn.{name}", (width, width), num, "target", is_linear=True)
    yield Weight("input_layernorm", (width,), num)


def _filters(width: int, num: int) -> Iterator[Weight]:
    """Each reads a token and the one before it, and makes half of the width, and the whole of that again."""
    half = width // 2
    yield Weight("lf_gate.conv1", (half, width, 2, 1), num, "target")
    yield Weight("lf_gate.conv1.bias", (half,), num)
    yield Weight("lf_gate.conv2", (width, half, 2, 1), num, "target")
    yield Weight("lf_gate.conv2.bias", (width,), num)
    yield Weight("lf_gate.output_layernorm", (width,), num)


def _feed_forward(content: Mapping[str, Any]) -> Iterator[Weight]:
    width, inner, num = content["hidden_size"], content["intermediate_size"], content["num_hidden_layers"]
    yield Weight("mlp.gate_proj", (inner, width), num, "target", is_linear=True)
    yield Weight("mlp.up_proj", (inner, width), num, "target", is_linear=True)
    yield Weight("mlp.down_proj", (width, inner), num, "target", is_linear=True)
    yield Weight("post_attention_layernorm", (width,), num)
