"""The shape that config.json tells is the one of the model that is made of it."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import T5Config

from ds_sft.families.flan_t5.modeling import FlanT5, UntiedT5
from ds_sft.families.flan_t5.shape import shape_of
from ds_sft.model.costs import num_parameters
from tests.kept import kept_by

FLAN = {"vocab_size": 32128, "d_kv": 64, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
PUBLISHED = {
    "small": ({"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6}, 76_961_152),
    "base": ({"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12}, 247_577_856),
    "large": ({"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16}, 783_150_080),
    "xl": ({"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32}, 2_849_757_184),
    "xxl": ({"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64}, 11_135_332_352),
}
TINY = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 2}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_have_exactly_their_parameters(size: str) -> None:
    config, expected = PUBLISHED[size]
    assert num_parameters(shape_of(FLAN | config)) == expected


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (UntiedT5, TINY | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
        (FlanT5, TINY | {"num_decoder_layers": 3, "relative_attention_num_buckets": 8}),
        (FlanT5, {}),
    ],
    ids=["untied and gated", "tied, plain, with a longer decoder", "all defaults"],
)
def test_every_weight_of_the_model_is_counted_under_its_name(kind: Any, config: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = kind(T5Config(**config))
    linear = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    found = Counter[tuple[str, int, bool]]()
    for weight in shape_of(config).weights:
        found[weight.name, math.prod(weight.shape), weight.is_linear] += weight.num
    expected = Counter[tuple[str, int, bool]]()
    for name, tensor in model.named_parameters():
        parts = name.removesuffix(".weight").split(".")
        named = ".".join(parts[-2:]) if name in linear and len(parts) > 1 else parts[-1]
        named = named if "relative_attention_bias" not in name else "relative_attention_bias"
        expected[named, tensor.numel(), name in linear and "relative" not in name] += 1
    assert found == expected


def test_a_config_that_transformers_5_wrote_has_a_head_of_its_own() -> None:
    written = TINY | {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    assert num_parameters(shape_of(written)) - num_parameters(shape_of(TINY)) == 40 * 16


@pytest.mark.parametrize(("activation", "dropout"), [("gated-gelu", 0.1), ("gated-gelu", 0.0), ("relu", 0.1)])
@pytest.mark.parametrize("kind", ["fp32", "16 bits", "autocast"])
def test_layers_keep_as_many_bytes_as_are_told(kind: Any, activation: str, dropout: float) -> None:
    content: dict[str, Any] = {"d_model": 64, "d_kv": 16, "num_heads": 3, "d_ff": 500, "vocab_size": 50}
    content |= {"feed_forward_proj": activation, "dropout_rate": dropout, "decoder_start_token_id": 0}
    ids = torch.arange(300).remainder(40)[None]
    offsets = [torch.arange(0, 10 * length + 1, length, dtype=torch.int32) for length in (30, 20)]
    batch = {"input_ids": ids, "labels": ids[:, :200], "offsets": offsets[0]}
    batch |= {"decoder_input_ids": ids[:, :200], "decoder_offsets": offsets[1]}

    def made(num_layers: int) -> UntiedT5:
        return UntiedT5(T5Config(**content, num_layers=num_layers))

    encoder, decoder = shape_of(content).stacks
    expected = 300 * (encoder.kept[kind] + decoder.kept_for_source[kind]) + 200 * decoder.kept[kind]
    # A CPU has no fused kernel for these: ten documents of 30 source and 20 target tokens.
    expected += 10 * (900 * encoder.kept_on_cpu + 400 * decoder.kept_on_cpu + 600 * decoder.kept_across_on_cpu)
    if kind != "fp32":
        # Nor has it one in 16 bits: heads are kept in fp32.
        expected += 2 * 48 * (300 * 4 + 200 * 4)
    found = kept_by(made(2), batch, kind) - kept_by(made(1), batch, kind)
    assert found == pytest.approx(expected, rel=0.03)
