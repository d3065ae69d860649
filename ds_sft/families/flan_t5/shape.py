"""What config.json says of a T5: its weights and its attention, counted without making any."""

from collections.abc import Iterator, Mapping
from typing import Any

from ds_sft.contracts import ModelShape
from ds_sft.shapes import Kept, Reader, Stack, Weight

_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "relu",
    "dropout_rate": 0.1,
}
_FLAN = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_kv": 64,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "dropout_rate": 0.1,
}
_PUBLISHED = {
    "small": {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "base": {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "large": {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    "xl": {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "xxl": {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
}
PUBLISHED_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    f"google/flan-t5-{size}": _FLAN | content for size, content in _PUBLISHED.items()
}
"""So that a run can be planned before its model is fetched."""
# States that a layer keeps for each token; dropout keeps its mask beside each that it changes. In 16 bits each norm
# keeps a copy in fp32. The gated part keeps many, because its GELU is made of single operations. Measured:
# tests/families/flan_t5/test_shape.py.
_KEPT_GATED, _KEPT_PLAIN = 7, 1


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """Tell the weights of encoder and decoder.

    Args:
        config: Content of config.json; transformers' defaults for what is missing.

    Returns:
        The shape. A head of its own is assumed where config.json says so in the words of transformers 4 or 5.
    """
    content = {**_DEFAULTS, **config}
    num_encoder = content["num_layers"]
    num_decoder = content.get("num_decoder_layers") or num_encoder
    inner = content["d_kv"] * content["num_heads"]
    return ModelShape(
        weights=(*_ends(content), *_encoder(content, num_encoder), *_decoder(content, num_decoder)),
        width=content["d_model"],
        vocab_size=content["vocab_size"],
        stacks=(_encoder_stack(content, num_encoder), _decoder_stack(content, num_decoder)),
        source_pair=2 * inner * num_encoder,
        target_pair=2 * inner * num_decoder,
        cross_pair=2 * inner * num_decoder,
    )


def _encoder_stack(content: Mapping[str, Any], num: int) -> Stack:
    return Stack(
        reader="source",
        num=num,
        kept=_kept(content, wide=6, heads=4, masks=2, norms=2, under_autocast=10),
        inner=content["d_ff"],
        kept_on_cpu=4 * content["num_heads"] * (3 if content["dropout_rate"] else 1),
        bias_heads=content["num_heads"],
    )


def _decoder_stack(content: Mapping[str, Any], num: int) -> Stack:
    heads = content["num_heads"]
    for_source = 2 * heads * content["d_kv"]
    return Stack(
        reader="target",
        num=num,
        kept=_kept(content, wide=9, heads=6, masks=3, norms=3, under_autocast=6),
        inner=content["d_ff"],
        kept_for_source={"fp32": 4 * for_source, "16 bits": 2 * for_source, "autocast": 2 * for_source},
        kept_on_cpu=4 * heads * (3 if content["dropout_rate"] else 1),
        kept_across_on_cpu=4 * heads * (3 if content["dropout_rate"] else 0),
        bias_heads=heads,
    )


def _kept(content: Mapping[str, Any], *, wide: int, heads: int, masks: int, norms: int, under_autocast: int) -> Kept:
    """Give bytes by the number of states as wide as the model and as all heads together."""
    width, inner = content["d_model"], content["num_heads"] * content["d_kv"]
    drops = bool(content["dropout_rate"])
    feed_forward = (_KEPT_GATED + drops if is_gated(content) else _KEPT_PLAIN + 2 * drops) * content["d_ff"]
    states = (wide + masks * drops) * width + heads * inner + feed_forward
    in_16_bits = 2 * states + 4 * norms * width
    return {"fp32": 4 * states, "16 bits": in_16_bits, "autocast": in_16_bits + under_autocast * width}


def _ends(content: Mapping[str, Any]) -> Iterator[Weight]:
    table = (content["vocab_size"], content["d_model"])
    is_untied = content.get("tie_word_embeddings") is False or content.get("scale_decoder_outputs") is False
    yield Weight("shared", table, 1, "nothing" if is_untied else "supervised")
    if is_untied:
        yield Weight("lm_head", table, 1, "supervised", is_linear=True)
    biases = (content["relative_attention_num_buckets"], content["num_heads"])
    yield Weight("relative_attention_bias", biases, 2)
    yield Weight("final_layer_norm", (content["d_model"],), 2)


def _encoder(content: Mapping[str, Any], num: int) -> Iterator[Weight]:
    yield from _attention(content, num, "SelfAttention", queries="source", keys="source")
    yield from _feed_forward(content, num, "source")
    yield Weight("layer_norm", (content["d_model"],), 2 * num)


def _decoder(content: Mapping[str, Any], num: int) -> Iterator[Weight]:
    yield from _attention(content, num, "SelfAttention", queries="target", keys="target")
    yield from _attention(content, num, "EncDecAttention", queries="target", keys="source")
    yield from _feed_forward(content, num, "target")
    yield Weight("layer_norm", (content["d_model"],), 3 * num)


def _attention(content: Mapping[str, Any], num: int, name: str, *, queries: Reader, keys: Reader) -> Iterator[Weight]:
    width, inner = content["d_model"], content["d_kv"] * content["num_heads"]
    yield Weight(f"{name}.q", (inner, width), num, queries, is_linear=True)
    yield Weight(f"{name}.k", (inner, width), num, keys, is_linear=True)
    yield Weight(f"{name}.v", (inner, width), num, keys, is_linear=True)
    yield Weight(f"{name}.o", (width, inner), num, queries, is_linear=True)


def _feed_forward(content: Mapping[str, Any], num: int, reader: Reader) -> Iterator[Weight]:
    width, inner = content["d_model"], content["d_ff"]
    for name in ("wi_0", "wi_1") if is_gated(content) else ("wi",):
        yield Weight(f"DenseReluDense.{name}", (inner, width), num, reader, is_linear=True)
    yield Weight("DenseReluDense.wo", (width, inner), num, reader, is_linear=True, stays_wide=True)


def is_gated(config: Mapping[str, Any]) -> bool:
    """Tell whether the feed-forward parts have two inner products.

    Args:
        config: Content of config.json.

    Returns:
        True for T5 1.1 and Flan-T5.
    """
    return str(config.get("feed_forward_proj", _DEFAULTS["feed_forward_proj"])).startswith("gated-")
