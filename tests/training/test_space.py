"""A disk that is too small for a run is told before it trains."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from ds_sft.config.parse import build_training_arguments, parse
from ds_sft.errors import SaveError
from ds_sft.training.space import refuse_small_disk
from tests.jobs import main_flags

# 1000 weights in fp32 and bf16: an export has 2000 bytes, a checkpoint also the weights and two averages in fp32.
EXPORT, CHECKPOINT = 2_000, 2_000 + 3 * 4_000


def check(folder: Path, monkeypatch: pytest.MonkeyPatch, *, free: int, **flags: Any) -> None:
    given = {"save_strategy": "steps", "save_steps": 2, "save_dtype": "bf16", "use_cpu": True, **flags}
    limit = given.pop("save_total_limit", 1)
    args = build_training_arguments(parse(main_flags(folder, folder, folder, **given)))
    args.save_total_limit = limit
    usage = SimpleNamespace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refuse_small_disk(nn.Linear(100, 10, bias=False), args=args, into=folder, is_adapted=False)


@pytest.mark.parametrize(
    ("flags", "num_checkpoints"),
    [
        ({"save_strategy": "no"}, 0),
        ({"save_total_limit": 1}, 2),
        ({"save_total_limit": 3}, 4),
        ({"save_total_limit": 3, "metric_for_best_model": "eval_loss"}, 5),
        ({"save_total_limit": None}, 4),
    ],
    ids=[
        "none",
        "one and the new one",
        "three and the new one",
        "three, the best and the new one",
        "all of eight steps",
    ],
)
def test_every_checkpoint_that_is_there_at_once_must_fit(
    flags: dict[str, Any], num_checkpoints: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = EXPORT + num_checkpoints * CHECKPOINT
    check(tmp_path, monkeypatch, free=needed, **flags)
    with pytest.raises(SaveError, match=f"{num_checkpoints} checkpoints of"):
        check(tmp_path, monkeypatch, free=needed - 1, **flags)


def test_checkpoints_that_lie_there_make_room_when_they_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = EXPORT + 2 * CHECKPOINT
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "weights").write_bytes(bytes(CHECKPOINT))
    check(tmp_path, monkeypatch, free=needed - CHECKPOINT, save_total_limit=1)
