"""What config.json says of a T5: its weights and its attention, counted without making any."""

from collections.abc import Iterator, Mapping
from typing import Any

from ds_sft.contracts import ModelShape, Reader, Weight

_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "relu",
}


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
        source_pair=2 * inner * num_encoder,
        target_pair=2 * inner * num_decoder,
        cross_pair=2 * inner * num_decoder,
    )


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
    yield Weight("DenseReluDense.wo", (width, inner), num, reader, is_linear=True)


def is_gated(config: Mapping[str, Any]) -> bool:
    """Tell whether the feed-forward parts have two inner products.

    Args:
        config: Content of config.json.

    Returns:
        True for T5 1.1 and Flan-T5.
    """
    return str(config.get("feed_forward_proj", _DEFAULTS["feed_forward_proj"])).startswith("gated-")
