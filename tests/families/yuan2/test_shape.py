"""The shape that config.json tells is the one of the model that is made of it."""

import math
from collections import Counter
from typing import Any

import pytest
import torch

from ds_sft.families.yuan2.native.configuration import Yuan2Config
from ds_sft.families.yuan2.native.model import Yuan2ForCausalLM
from ds_sft.families.yuan2.shape import shape_of
from ds_sft.model.costs import num_parameters

WIDE = {"hidden_size": 8192, "intermediate_size": 32768, "num_attention_heads": 64, "vocab_size": 135040}
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "2B": ({}, 2_088_724_480),
    "51B": (WIDE | {"num_hidden_layers": 42}, 51_842_105_344),
    "102B": (WIDE | {"num_hidden_layers": 84}, 102_577_954_816),
}
TINY: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_have_exactly_their_parameters(size: str) -> None:
    config, expected = PUBLISHED[size]
    assert num_parameters(shape_of(config)) == expected


@pytest.mark.parametrize("is_tied", [True, False])
def test_every_weight_of_the_model_is_counted_under_its_name(is_tied: bool) -> None:
    config = TINY | {"tie_word_embeddings": is_tied}
    with torch.device("meta"):
        model = Yuan2ForCausalLM(Yuan2Config(**config))
    linear = {path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    found = {
        weight.name: (weight.num, math.prod(weight.shape), weight.is_linear) for weight in shape_of(config).weights
    }
    expected = Counter[tuple[str, int, bool]]()
    for name, tensor in model.named_parameters():
        path = name.removesuffix(".weight")
        (named,) = [one for one in found if path.endswith(f".{one}") or path == one]
        # A tied head is no parameter of its own, and its table is no linear layer.
        expected[named, tensor.numel(), path in linear] += 1
    assert found == {named: (num, size, is_linear) for (named, size, is_linear), num in expected.items()}
