"""A run that goes on is the run that was never interrupted: the same losses, the same weights, whatever it runs on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ds_sft.errors import ConfigError
from tests.conftest import CONFIGS
from tests.jobs import Trained, is_left_alone, main_flags, read_json, train_and_log
from tests.ranks import run_ranks
from tests.stop_jobs import train_until

STEPS = 8
BATCH = 4
ZERO2, ZERO3 = {"deepspeed": CONFIGS / "zero2.json"}, {"deepspeed": CONFIGS / "zero3.json"}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "no DeepSpeed": (1, {}),
    "two ranks without DeepSpeed": (2, {}),
    "ZeRO-0": (2, {"deepspeed": "zero0.json"}),
    "ZeRO-2": (2, ZERO2),
    "ZeRO-3": (2, ZERO3),
    "ZeRO-2, bf16": (2, {**ZERO2, "bf16": True}),
    "ZeRO-1, bf16": (2, {"deepspeed": CONFIGS / "zero1.json", "bf16": True}),
    "ZeRO-3, bf16": (2, {**ZERO3, "bf16": True}),
    "ZeRO-2, adapters": (2, {**ZERO2, "lora_r": 4, "lora_dropout": 0.1}),
    "ZeRO-3, adapters, bf16": (2, {**ZERO3, "bf16": True, "lora_r": 4, "lora_dropout": 0.1}),
    "4 bits": (1, {"lora_r": 4, "q_lora": True}),
}


@pytest.fixture(scope="module")
def dropping(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with dropout, so that random numbers matter."""
    folder = tmp_path_factory.mktemp("dropping") / "tiny"
    shutil.copytree(tiny_checkpoint, folder)
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({**config, "dropout_rate": 0.1}))
    return folder


@pytest.fixture(scope="module")
def zero0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeepSpeed file that partitions nothing."""
    file = tmp_path_factory.mktemp("zero0") / "zero0.json"
    file.write_text(json.dumps({**read_json(CONFIGS / "zero2.json"), "zero_optimization": {"stage": 0}}))
    return file


def _flags(model: Path, data: Path, output: Path, *, world_size: int, **changes: Any) -> list[str]:
    given = {
        "max_steps": STEPS,
        "num_data": 10,  # 12 samples, three steps an epoch: the checkpoint lies in the second
        "per_device_train_batch_size": BATCH // world_size,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "save_strategy": "steps",
        "save_steps": 5,
        **changes,
    }
    return main_flags(model, data, output, **given)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def _is_same(first: Path, second: Path) -> bool:
    left, right = _weights(first), _weights(second)
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_command_goes_on_with_equal_bits(
    layout: str, dropping: Path, zero0: Path, conversations_file: Path, tmp_path: Path
) -> None:
    world_size, changes = LAYOUTS[layout]
    if changes.get("deepspeed") == "zero0.json":
        changes = {"deepspeed": zero0}
    flags = _flags(dropping, conversations_file, tmp_path / "run", world_size=world_size, **changes)
    whole = run_ranks(train_and_log, flags, world_size=world_size)[0]
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    for left in [*(tmp_path / "run").glob("checkpoint-8"), tmp_path / "run" / "MANIFEST.json"]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert run_ranks(train_and_log, flags, world_size=world_size)[0] == whole
    assert len(whole.losses) == STEPS
    assert _is_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("changes", [{"logging_steps": 3}, {"gradient_accumulation_steps": 2}, {"epochs": 2}])
def test_a_resume_changes_no_logged_line(
    changes: dict[str, Any], dropping: Path, conversations_file: Path, tmp_path: Path
) -> None:
    if "epochs" in changes:
        changes = {
            "max_steps": -1,
            "num_train_epochs": 2.5,
            "eval_data_path": conversations_file,
            "eval_strategy": "epoch",
        }
    flags = _flags(dropping, conversations_file, tmp_path / "run", world_size=1, **changes)
    run_ranks(train_and_log, flags, world_size=1)
    whole = _told(tmp_path / "run")
    for left in [*(tmp_path / "run").glob("checkpoint-[6-9]"), tmp_path / "run" / "MANIFEST.json"]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    run_ranks(train_and_log, flags, world_size=1)
    assert _told(tmp_path / "run") == whole


def _told(folder: Path) -> list[dict[str, Any]]:
    """Everything that was logged, but for what depends on the clock and the memory of the process."""
    rows = read_json(folder / "trainer_state.json")["log_history"]
    timed = (
        *("per_second", "per_second_per_rank", "runtime", "total_flos"),
        *("data_wait_share", "peak_memory_bytes", "seconds_left", "mfu"),
    )
    return [{name: value for name, value in row.items() if not name.endswith(timed)} for row in rows]


def test_a_finished_run_is_left_alone(tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path) -> None:
    flags = _flags(tiny_checkpoint, conversations_file, tmp_path / "run", world_size=1, max_steps=2, save_steps=1)
    run_ranks(train_and_log, flags, world_size=1)
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert run_ranks(is_left_alone, flags, world_size=1) == [True]
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == files


def test_a_run_that_was_killed_before_its_export_trains_no_step_more(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    flags = _flags(tiny_checkpoint, conversations_file, tmp_path / "run", world_size=1, max_steps=2, save_steps=1)
    whole = run_ranks(train_and_log, flags, world_size=1)[0]
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    for name in ("MANIFEST.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    # It was killed while it wrote this one.
    (tmp_path / "run" / "all_results.json").write_text("")
    assert run_ranks(train_and_log, flags, world_size=1)[0] == whole
    assert read_json(tmp_path / "run" / "all_results.json")["train_loss"] > 0
    assert _is_same(tmp_path / "run", tmp_path / "whole")


ELASTIC: list[tuple[int, dict[str, Any], int, dict[str, Any]]] = [
    (2, ZERO2, 1, ZERO2),
    (1, ZERO2, 2, ZERO2),
    (2, ZERO3, 1, ZERO3),
    (1, ZERO3, 2, ZERO3),
    (2, ZERO2, 4, ZERO2),
    (4, ZERO2, 2, ZERO2),
    (2, ZERO3, 4, ZERO3),
    (4, ZERO3, 2, ZERO3),
    (2, ZERO2, 2, ZERO3),
    (2, ZERO3, 1, {}),
]


@pytest.fixture(scope="module")
def uninterrupted(tiny_checkpoint: Path, conversations_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One process, never interrupted, without dropout."""
    flags = _flags(tiny_checkpoint, conversations_file, tmp_path_factory.mktemp("whole"), world_size=1)
    return run_ranks(train_and_log, flags, world_size=1)[0]


@pytest.mark.parametrize(("before", "first", "after", "then"), ELASTIC)
def test_any_number_of_ranks_and_any_stage_goes_on_where_another_stopped(
    *,
    before: int,
    first: dict[str, Any],
    after: int,
    then: dict[str, Any],
    uninterrupted: Trained,
    tiny_checkpoint: Path,
    conversations_file: Path,
    tmp_path: Path,
) -> None:
    output = tmp_path / "run"
    run_ranks(
        train_and_log,
        _flags(tiny_checkpoint, conversations_file, output, world_size=before, **first),
        world_size=before,
    )
    shutil.rmtree(output / "checkpoint-8")
    (output / "MANIFEST.json").unlink()
    # The command of the old number of ranks, word by word: the batch is fitted.
    flags = _flags(tiny_checkpoint, conversations_file, output, world_size=before, **then)
    resumed = run_ranks(train_and_log, flags, world_size=after)[0]
    assert resumed.losses == pytest.approx(uninterrupted.losses, abs=1e-5)
    assert resumed.grad_norms == pytest.approx(uninterrupted.grad_norms, rel=1e-5)


def test_another_run_is_refused_with_both_values(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    flags = _flags(tiny_checkpoint, conversations_file, tmp_path, world_size=1, max_steps=2, save_steps=1)
    run_ranks(train_and_log, flags, world_size=1)
    other = [*flags, "--learning_rate", "0.1", "--num_data", "9"]
    with pytest.raises(AssertionError, match=ConfigError.__name__) as caught:
        run_ranks(train_and_log, other, world_size=1)
    assert "learning_rate: must be 0.0003 as in" in str(caught.value)
    assert "but is 0.1; change it back, name another output_dir, or add" in str(caught.value)
    assert "num_data: must be '10' as in" in str(caught.value)


@pytest.fixture(scope="module")
def zero2_with_optimizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeepSpeed file with an optimizer of its own, as the files for offloading have: one group instead of two."""
    file = tmp_path_factory.mktemp("optimizer") / "zero2.json"
    parameters = {**dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto"), "torch_adam": True}
    section = {"optimizer": {"type": "AdamW", "params": parameters}}
    file.write_text(json.dumps({**read_json(CONFIGS / "zero2.json"), **section}))
    return file


@pytest.mark.parametrize("is_first", [True, False])
def test_an_optimizer_of_the_deepspeed_file_goes_on_with_that_of_transformers_and_back(
    *,
    is_first: bool,
    uninterrupted: Trained,
    zero2_with_optimizer: Path,
    tiny_checkpoint: Path,
    conversations_file: Path,
    tmp_path: Path,
) -> None:
    layouts: list[dict[str, Any]] = [{"deepspeed": zero2_with_optimizer}, ZERO3]
    first, then = layouts if is_first else reversed(layouts)
    output = tmp_path / "run"
    run_ranks(train_and_log, _flags(tiny_checkpoint, conversations_file, output, world_size=2, **first), world_size=2)
    _unfinish(output)
    flags = _flags(tiny_checkpoint, conversations_file, output, world_size=2, **then)
    assert run_ranks(train_and_log, flags, world_size=2)[0].losses == pytest.approx(uninterrupted.losses, abs=1e-5)


def _unfinish(output: Path) -> None:
    """Take away the last checkpoint and the manifest of the export."""
    shutil.rmtree(output / "checkpoint-8")
    (output / "MANIFEST.json").unlink()


def test_the_command_of_two_ranks_goes_on_again_and_again_on_one(
    uninterrupted: Trained, tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    flags = _flags(tiny_checkpoint, conversations_file, output, world_size=2)
    run_ranks(train_and_log, flags, world_size=2)
    _unfinish(output)
    run_ranks(train_and_log, flags, world_size=1)
    assert run_ranks(is_left_alone, flags, world_size=1) == [True]
    _unfinish(output)
    # From here on the newest checkpoint is one that a single rank wrote.
    run_ranks(train_and_log, [*flags, "--save_steps", "3"], world_size=1)
    _unfinish(output)
    assert (output / "checkpoint-6").exists()
    assert run_ranks(train_and_log, flags, world_size=1)[0].losses == pytest.approx(uninterrupted.losses, abs=1e-5)


EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}


def test_a_stop_keeps_the_checkpoint_it_saved_beside_the_best_one(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    changes = {"eval_data_path": conversations_file, "save_total_limit": 1, **EVALUATED}
    flags = _flags(tiny_checkpoint, conversations_file, tmp_path, world_size=1, **changes)
    assert run_ranks(train_until, flags, 3, world_size=1) == ["stopped after step 3; the same command goes on"]
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}


def test_a_stop_in_the_middle_of_an_epoch_changes_no_line_of_the_log(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    changes = {"logging_strategy": "epoch", "save_strategy": "epoch"}
    whole, stopped = (
        _flags(tiny_checkpoint, conversations_file, tmp_path / name, world_size=1, **changes)
        for name in ("whole", "stopped")
    )
    run_ranks(train_and_log, whole, world_size=1)
    run_ranks(train_until, stopped, 4, world_size=1)
    run_ranks(train_and_log, stopped, world_size=1)
    assert _told(tmp_path / "stopped") == _told(tmp_path / "whole")


# ZeRO-3 must not be left with weights on their way by an evaluation before the first step.
@pytest.mark.parametrize("layout", ["no DeepSpeed", "ZeRO-3"])
def test_an_evaluation_that_was_stopped_is_made_up_for(
    layout: str, tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    world_size, engine = LAYOUTS[layout]
    changes = {"eval_data_path": conversations_file, **EVALUATED, **engine}
    whole, stopped = (
        _flags(tiny_checkpoint, conversations_file, tmp_path / name, world_size=world_size, **changes)
        for name in ("whole", "stopped")
    )
    run_ranks(train_and_log, whole, world_size=world_size)
    run_ranks(train_until, stopped, 4, True, world_size=world_size)
    run_ranks(train_and_log, stopped, world_size=world_size)
    assert _told(tmp_path / "stopped") == _told(tmp_path / "whole")
    assert _is_same(tmp_path / "stopped", tmp_path / "whole")


def test_a_best_checkpoint_that_is_damaged_is_never_exported(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    changes = {"eval_data_path": conversations_file, "learning_rate": 0, **EVALUATED}
    flags = _flags(tiny_checkpoint, conversations_file, tmp_path, world_size=1, **changes)
    run_ranks(train_until, flags, 3, world_size=1)
    weights = tmp_path / "checkpoint-2" / "state" / "rank-0-of-1.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(AssertionError, match=r"load_best_model_at_end: .*checkpoint-2 must be whole, but"):
        run_ranks(train_and_log, flags, world_size=1)
    assert not (tmp_path / "MANIFEST.json").exists()


def test_a_schedule_that_begins_with_infinity_goes_on(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    changes = {
        "eval_data_path": conversations_file,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "warmup_steps": 0,
    }
    whole, stopped = (
        _flags(tiny_checkpoint, conversations_file, tmp_path / name, world_size=1, **changes)
        for name in ("whole", "stopped")
    )
    trained = run_ranks(train_and_log, whole, world_size=1)
    run_ranks(train_until, stopped, 2, world_size=1)
    assert run_ranks(train_and_log, stopped, world_size=1) == trained
