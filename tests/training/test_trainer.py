"""The proof of the spine: the same losses and gradients however the work is split."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CONFIGS
from tests.jobs import Trained, main_flags, train_and_log
from tests.ranks import run_ranks

STEPS = 8

ZERO2, ZERO3 = {"deepspeed": CONFIGS / "zero2.json"}, {"deepspeed": CONFIGS / "zero3.json"}
TWO_BY_TWO = {"per_device_train_batch_size": 2}
SPLITS: dict[str, tuple[int, dict[str, Any]]] = {
    "accumulation 2": (1, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    "gradient checkpointing": (1, {"per_device_train_batch_size": 4, "gradient_checkpointing": True}),
    "two ranks without DeepSpeed": (2, TWO_BY_TWO),
    "ZeRO-2, two ranks": (2, {**TWO_BY_TWO, **ZERO2}),
    "ZeRO-3, two ranks": (2, {**TWO_BY_TWO, **ZERO3}),
    "ZeRO-3, two ranks, accumulation 2": (
        2,
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, **ZERO3},
    ),
    "ZeRO-3, two ranks, gradient checkpointing": (2, {**TWO_BY_TWO, "gradient_checkpointing": True, **ZERO3}),
    "ZeRO-3, two ranks, lazy": (2, {**TWO_BY_TWO, "lazy_preprocess": True, **ZERO3}),
}


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path, conversations_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One process, one micro-batch of four, no DeepSpeed."""
    flags = main_flags(
        tiny_checkpoint, conversations_file, tmp_path_factory.mktemp("reference"), per_device_train_batch_size=4
    )
    return run_ranks(train_and_log, flags, world_size=1)[0]


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_of_the_work_gives_the_same_losses_and_gradient_norms(
    split: str, reference: Trained, tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    world_size, changes = SPLITS[split]
    flags = main_flags(tiny_checkpoint, conversations_file, tmp_path, **changes)
    trained = run_ranks(train_and_log, flags, world_size=world_size)[0]
    assert len(trained.losses) == STEPS
    assert trained.losses == pytest.approx(reference.losses, abs=1e-5)
    assert trained.grad_norms == pytest.approx(reference.grad_norms, abs=1e-5, rel=1e-5)
