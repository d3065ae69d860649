"""Flat batches under the real trainer: the same numbers on any engine, and after any stop."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import CONFIGS
from tests.jobs import evaluate, main_flags, train_and_log
from tests.ranks import run_ranks

ZERO2, ZERO3 = {"deepspeed": CONFIGS / "zero2.json"}, {"deepspeed": CONFIGS / "zero3.json"}
BUDGET = 700
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "two ranks without DeepSpeed": (2, {}),
    "ZeRO-2": (2, ZERO2),
    "ZeRO-3": (2, ZERO3),
    "ZeRO-3, checkpointing": (2, {**ZERO3, "gradient_checkpointing": True}),
}


@pytest.fixture(scope="module", params=["flan_t5", "yuan2"])
def model(request: pytest.FixtureRequest, tiny_checkpoint: Path, tiny_yuan2: Path) -> Path:
    """A checkpoint of each family."""
    return tiny_checkpoint if request.param == "flan_t5" else tiny_yuan2


def _flags(model: Path, data: Path, output: Path, *, world_size: int, **changes: Any) -> list[str]:
    given = {
        "max_steps": 4,
        "packing": True,
        "tokens_per_batch": BUDGET,
        "target_tokens_per_batch": BUDGET,
        "gradient_accumulation_steps": 2 // world_size,
        **changes,
    }
    return main_flags(model, data, output, **given)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_losses_are_those_of_one_process(
    layout: str, model: Path, conversations_file: Path, tmp_path: Path
) -> None:
    world_size, changes = LAYOUTS[layout]
    alone = _flags(model, conversations_file, tmp_path / "alone", world_size=1)
    expected = run_ranks(train_and_log, alone, world_size=1)[0]
    flags = _flags(model, conversations_file, tmp_path / "run", world_size=world_size, **changes)
    found = run_ranks(train_and_log, flags, world_size=world_size)[0]
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    assert found.grad_norms == pytest.approx(expected.grad_norms, rel=1e-4)


def test_a_step_over_all_samples_has_the_loss_of_padded_batches(
    model: Path, conversations_file: Path, tmp_path: Path
) -> None:
    whole = {"num_train_epochs": 2, "max_steps": -1, "num_data": 6, "gradient_accumulation_steps": 1}
    padded = main_flags(model, conversations_file, tmp_path / "padded", **whole, per_device_train_batch_size=64)
    packed = _flags(model, conversations_file, tmp_path / "packed", world_size=1, **whole, tokens_per_batch=9999)
    expected, found = (run_ranks(train_and_log, flags, world_size=1)[0] for flags in (padded, packed))
    assert len(expected.losses) == 2
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    assert found.grad_norms == pytest.approx(expected.grad_norms, rel=1e-4)


@pytest.mark.parametrize(("before", "after", "engine"), [(2, 2, ZERO3), (2, 1, ZERO2), (1, 2, ZERO3)])
def test_a_packed_run_goes_on_where_it_stopped(
    before: int, after: int, engine: dict[str, Any], tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, **engine}
    flags = _flags(tiny_checkpoint, conversations_file, tmp_path / "run", world_size=before, **saving)
    whole = run_ranks(train_and_log, flags, world_size=before)[0]
    weights = load_file(tmp_path / "run" / "model.safetensors")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    (tmp_path / "run" / "MANIFEST.json").unlink()
    resumed = run_ranks(train_and_log, flags, world_size=after)[0]
    if before == after:
        assert resumed == whole
        again = load_file(tmp_path / "run" / "model.safetensors")
        assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    else:
        assert resumed.losses == pytest.approx(whole.losses, abs=1e-5)


def test_a_packed_evaluation_is_that_of_padded_batches(model: Path, conversations_file: Path, tmp_path: Path) -> None:
    asked = {"eval_data_path": conversations_file, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    asked |= {"learning_rate": 0, "per_device_eval_batch_size": 1}
    padded = main_flags(model, conversations_file, tmp_path / "padded", **asked)
    packed = _flags(model, conversations_file, tmp_path / "packed", world_size=2, **asked, **ZERO3)
    expected = run_ranks(evaluate, padded, world_size=1)[0]
    found = run_ranks(evaluate, packed, world_size=2)[0]
    assert found["eval_num_tokens"] == expected["eval_num_tokens"]
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
