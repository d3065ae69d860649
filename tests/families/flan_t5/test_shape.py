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
