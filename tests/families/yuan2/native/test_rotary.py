"""Angles come from fp32 frequencies after every cast, and scaled positions are transformers' own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ds_sft.families.yuan2.native.configuration import Yuan2Config
from ds_sft.families.yuan2.native.rotary import Yuan2RotaryEmbedding, rotate
from tests.families.yuan2.native.golden import cases, difference, logits, model
from tests.jobs import rotary_inside_an_engine
from tests.ranks import run_ranks

SHAPE: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 32}
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
]


def published(num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the angles' cosines and sines by the formula of Su et al. 2021, in fp64."""
    frequencies = 10000.0 ** -(torch.arange(0, 16, 2, dtype=torch.double) / 16)
    angles = torch.arange(num_positions, dtype=torch.double)[:, None] * frequencies
    both = torch.cat([angles, angles], dim=-1)
    return both.cos(), both.sin()


@pytest.mark.parametrize("cast", ["none", "bfloat16", "half", "to", "meta and back"])
def test_angles_are_exact_after_every_cast(cast: str) -> None:
    module = Yuan2RotaryEmbedding(Yuan2Config(**SHAPE))
    positions = torch.arange(2048)[None]
    casts: dict[str, Callable[[], Any]] = {
        "none": lambda: module,
        "bfloat16": module.bfloat16,
        "half": module.half,
        "to": lambda: module.to(torch.bfloat16),
        "meta and back": lambda: module.to("meta").to_empty(device="cpu"),
    }
    cosines, sines = casts[cast]()(torch.zeros(1), positions)
    expected = published(2048)
    assert difference(cosines[0, 0].double(), expected[0]) < 2e-4
    assert difference(sines[0, 0].double(), expected[1]) < 2e-4


def test_a_model_in_bf16_tells_all_positions_apart() -> None:
    cast = model("sdpa").bfloat16()
    cosines, _ = cast.model.rotary_emb(torch.zeros(1), torch.arange(8192)[None])
    assert difference(cosines[0, 0, :2048].double(), published(2048)[0]) < 2e-4
    assert [name for name, _ in cast.named_buffers()] == []


def test_autocast_leaves_the_angles_exact() -> None:
    module = Yuan2RotaryEmbedding(Yuan2Config(**SHAPE))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cosines, _ = module(torch.zeros(1), torch.arange(2048)[None])
    assert difference(cosines[0, 0].double(), published(2048)[0]) < 2e-4


@pytest.mark.parametrize("stage", [2, 3])
def test_angles_are_exact_inside_a_deepspeed_engine_in_bf16(stage: int, tmp_path: Path) -> None:
    (found,) = run_ranks(rotary_inside_an_engine, stage, tmp_path, world_size=1)
    expected = published(2048)[0]
    assert found["dtype"] == "torch.bfloat16"
    assert difference(torch.tensor(found["cosines"], dtype=torch.double), expected) < 2e-4


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda one: str(one["rope_type"]))
@pytest.mark.parametrize("num_positions", [20, 100])
def test_scaled_positions_are_those_of_transformers(scaling: dict[str, Any], num_positions: int) -> None:
    positions = torch.arange(num_positions)[None]
    ours = Yuan2RotaryEmbedding(Yuan2Config(**SHAPE, rope_parameters=dict(scaling)))
    theirs: Any = LlamaRotaryEmbedding(LlamaConfig(**SHAPE, rope_parameters=dict(scaling) | {"rope_theta": 10000.0}))
    expected = theirs(torch.zeros(1), positions)
    for found, other in zip(ours(torch.zeros(1), positions), expected, strict=True):
        assert difference(found[:, 0], other) < 1e-6


def test_dynamic_scaling_goes_back_for_a_short_text() -> None:
    module = Yuan2RotaryEmbedding(Yuan2Config(**SHAPE, rope_parameters={"rope_type": "dynamic", "factor": 2.0}))
    short, long = torch.arange(20)[None], torch.arange(100)[None]
    first = module(torch.zeros(1), short)[0]
    assert difference(module(torch.zeros(1), long)[0][:, :, :20], first) > 1e-3
    assert torch.equal(module(torch.zeros(1), short)[0], first)


def test_rope_scaling_reaches_the_logits() -> None:
    ids = cases()["plain/input_ids"]
    scaled = logits(model("sdpa", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), ids)
    assert difference(scaled, cases()["plain/logits_eval"]) > 0.1


def test_rotation_turns_the_two_halves_into_each_other() -> None:
    turned = rotate(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.zeros(4), torch.ones(4))
    assert turned.tolist() == [-3.0, -4.0, 1.0, 2.0]
