"""What config.json says of a Yuan2: its weights and its attention, counted without making any."""

from collections.abc import Iterator, Mapping
from typing import Any

from ds_sft.contracts import ModelShape
from ds_sft.families.yuan2.native.rules import DEFAULT_SIZES
from ds_sft.shapes import Stack, Weight

_OF_2B = {"model_type": "yuan", "tie_word_embeddings": True, "max_position_embeddings": 8192, **DEFAULT_SIZES}
_WIDE = {"hidden_size": 8192, "intermediate_size": 32768, "num_attention_heads": 64, "max_position_embeddings": 4096}
_PUBLISHED = {
    **dict.fromkeys(("2b-hf", "2b-janus-hf", "2b-februa-hf"), _OF_2B),
    "51b-hf": _OF_2B | _WIDE | {"num_hidden_layers": 42},
    "102b-hf": _OF_2B | _WIDE | {"num_hidden_layers": 84},
}
PUBLISHED_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    f"ieityuan/yuan2-{size}": content for size, content in _PUBLISHED.items()
}
"""So that a run can be planned before its model is fetched."""
# States as wide as the model and as its feed-forward part that a layer keeps for each token. In 16 bits the three norms
# keep a copy in fp32; under autocast the states between the layers are in fp32 too. Measured:
# tests/families/yuan2/test_shape.py.
_KEPT_WIDE, _KEPT_INNER = 14, 4
_KEPT_OF_NORMS, _KEPT_UNDER_AUTOCAST = 3, 10


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
        width=width,
        vocab_size=content["vocab_size"],
        stacks=(_stack(width, content["intermediate_size"], num),),
        target_pair=2 * width * num,
    )


def _stack(width: int, inner: int, num: int) -> Stack:
    in_16_bits = 2 * (_KEPT_WIDE * width + _KEPT_INNER * inner) + 4 * _KEPT_OF_NORMS * width
    return Stack(
        reader="target",
        num=num,
        kept={
            "fp32": 4 * ((_KEPT_WIDE + _KEPT_OF_NORMS) * width + _KEPT_INNER * inner),
            "16 bits": in_16_bits,
            "autocast": in_16_bits + _KEPT_UNDER_AUTOCAST * width,
        },
        inner=inner,
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
