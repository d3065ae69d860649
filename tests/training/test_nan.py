"""A step that is not finite never reaches the weights, the log or a checkpoint as if it were a number."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import CONFIGS
from tests.jobs import main_flags, read_json
from tests.nan_jobs import train_with_fault
from tests.ranks import run_ranks

BAD = 3
ENGINES: dict[str, tuple[int, dict[str, Any]]] = {
    "no DeepSpeed": (1, {}),
    "two ranks without DeepSpeed": (2, {}),
    "ZeRO-0": (2, {"deepspeed": "zero0"}),
    "ZeRO-1": (2, {"deepspeed": CONFIGS / "zero1.json"}),
    "ZeRO-2": (2, {"deepspeed": CONFIGS / "zero2.json"}),
    "ZeRO-3": (2, {"deepspeed": CONFIGS / "zero3.json"}),
}
CELLS = [
    pytest.param(engine, place, bf16, id=f"{engine}, {place}, {'bf16' if bf16 else 'fp32'}", marks=marks)
    for engine in ENGINES
    for place in ("loss", "gradient", "micro-batch")
    for bf16 in (False, True)
    if not (bf16 and engine == "ZeRO-0")  # refused where checkpoints are saved
    for marks in [[] if (place == "loss") != bf16 and engine != "ZeRO-1" else [pytest.mark.slow]]
]


@pytest.fixture(scope="module")
def zero0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeepSpeed file that partitions nothing."""
    file = tmp_path_factory.mktemp("zero0") / "zero0.json"
    file.write_text(json.dumps({**read_json(CONFIGS / "zero2.json"), "zero_optimization": {"stage": 0}}))
    return file


def _flags(engine: str, model: Path, data: Path, output: Path, zero0: Path, **changes: Any) -> tuple[int, list[str]]:
    world_size, given = ENGINES[engine]
    if given.get("deepspeed") == "zero0":
        given = {"deepspeed": zero0}
    settings = {
        "max_steps": 5,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 9,
        **given,
        **changes,
    }
    return world_size, main_flags(model, data, output, **settings)


def _state(checkpoint: Path) -> dict[str, torch.Tensor]:
    files = sorted((checkpoint / "state").glob("*.safetensors"))
    return {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(("engine", "place", "bf16"), CELLS)
def test_a_step_that_is_not_finite_is_left_out_and_logged_as_null(
    *,
    engine: str,
    place: str,
    bf16: bool,
    tiny_checkpoint: Path,
    conversations_file: Path,
    zero0: Path,
    tmp_path: Path,
) -> None:
    world_size, flags = _flags(engine, tiny_checkpoint, conversations_file, tmp_path, zero0, bf16=bf16)
    rows = run_ranks(train_with_fault, flags, place, [BAD], world_size=world_size)[0]
    assert [row["loss"] is None for row in rows] == [step == BAD for step in range(1, 6)]
    assert [row.get("left_out_steps") for row in rows] == [None, None, 1, None, None]
    before, after, later = (_state(tmp_path / f"checkpoint-{step}") for step in (BAD - 1, BAD, BAD + 1))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not all(torch.equal(after[name], later[name]) for name in after)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in later.values())


@pytest.mark.parametrize("engine", ["no DeepSpeed", "ZeRO-3"])
def test_three_in_a_row_end_the_run_and_the_last_checkpoint_is_a_good_one(
    engine: str, tiny_checkpoint: Path, conversations_file: Path, zero0: Path, tmp_path: Path
) -> None:
    world_size, flags = _flags(engine, tiny_checkpoint, conversations_file, tmp_path, zero0)
    with pytest.raises(AssertionError, match=r"NumericsError: .*the third time in a row"):
        run_ranks(train_with_fault, flags, "loss", [2, 3, 4], world_size=world_size)
    assert not (tmp_path / "model.safetensors").exists()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in _state(tmp_path / "checkpoint-3").values())


def test_nan_policy_stop_ends_the_run_at_once(
    tiny_checkpoint: Path, conversations_file: Path, zero0: Path, tmp_path: Path
) -> None:
    world_size, flags = _flags("no DeepSpeed", tiny_checkpoint, conversations_file, tmp_path, zero0, nan_policy="stop")
    with pytest.raises(AssertionError, match=r"NumericsError: step 3: .*nan_policy stop ends the run"):
        run_ranks(train_with_fault, flags, "loss", [BAD], world_size=world_size)


@pytest.mark.parametrize("engine", ["no DeepSpeed", "ZeRO-2", "ZeRO-3"])
def test_rollback_puts_the_last_checkpoint_back_and_goes_on_with_the_next_samples(
    engine: str, tiny_checkpoint: Path, conversations_file: Path, zero0: Path, tmp_path: Path
) -> None:
    world_size, flags = _flags(
        engine, tiny_checkpoint, conversations_file, tmp_path, zero0, save_steps=3, max_steps=6, nan_policy="rollback"
    )
    rows = run_ranks(train_with_fault, flags, "loss", [6], world_size=world_size)[0]
    assert [row["loss"] is None for row in rows] == [False] * 5 + [True]
    old, new = _state(tmp_path / "checkpoint-3"), _state(tmp_path / "checkpoint-6")
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_a_weight_that_is_not_finite_is_never_saved(
    tiny_checkpoint: Path, conversations_file: Path, zero0: Path, tmp_path: Path
) -> None:
    # A learning rate of this size makes weights overflow while loss and gradients are still finite.
    world_size, flags = _flags(
        "no DeepSpeed", tiny_checkpoint, conversations_file, tmp_path, zero0, optim="sgd", learning_rate=1e38
    )
    with pytest.raises(AssertionError, match=r"NumericsError: .*must be finite"):
        run_ranks(train_with_fault, flags, "loss", [99], world_size=world_size)
    assert not (tmp_path / "model.safetensors").exists()
