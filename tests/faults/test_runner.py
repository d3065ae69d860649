"""Ranks under crashfs: only the one that is meant meets the fault, and every way to end is told."""

import os
import signal
from pathlib import Path
from typing import NoReturn

import pytest

from tests.faults import shim
from tests.faults.runner import Fault, FaultyRanks, log_of
from tests.ranks import Died, Failed, Left, Stopped, run_ranks


def write_three(folder: Path) -> list[str]:
    """Make three folders named by the rank."""
    names = [f"{os.environ['RANK']}{letter}" for letter in "abc"]
    for name in names:
        (folder / name).mkdir()
    return names


def wait_for_the_other(folder: Path) -> list[str]:
    """Write, and then wait for a rank that may be no more."""
    import torch

    torch.distributed.init_process_group("gloo")
    names = write_three(folder)
    torch.distributed.barrier()
    return names


def end_variously(ready: Path, way: str) -> str:
    """End rank 0 in one way, as soon as rank 1 waits for nothing; some ways tell it what to do when it is stopped."""
    if os.environ["RANK"] == "1":
        if way == "say":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if way == "exit":
            signal.signal(signal.SIGTERM, _leave)
        ready.write_bytes(b"")
        if way != "exit well":
            signal.pause()
        return "done"
    ready.read_bytes()
    if way == "leave":
        os._exit(70)
    if way == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "raise":
        raise FileNotFoundError(way)
    raise SystemExit({"exit": 75, "exit well": None, "say": "why"}[way])


def _leave(*_: object) -> NoReturn:
    raise SystemExit(3)


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A pipe: who reads it waits for who writes it."""
    os.mkfifo(tmp_path / "ready")
    return tmp_path / "ready"


def folders_logged(fault: Fault, rank: int) -> list[str]:
    """Give the names that a rank logged."""
    return [Path(step.path).name for step in shim.read_log(log_of(fault, rank)) if step.name == "mkdir"]


def test_without_a_fault_the_results_are_those_of_run_ranks(faulty_ranks: FaultyRanks, tmp_path: Path) -> None:
    assert faulty_ranks(write_three, tmp_path, world_size=2) == [["0a", "0b", "0c"], ["1a", "1b", "1c"]]


def test_only_the_meant_rank_is_killed_and_every_rank_logs(faulty_ranks: FaultyRanks, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fault = Fault(tmp_path / "out", at=2, ranks=(1,), log=tmp_path / "log")
    ends = faulty_ranks(write_three, tmp_path / "out", world_size=2, fault=fault)
    assert ends == [["0a", "0b", "0c"], Died(signal.SIGKILL)]
    assert [folders_logged(fault, rank) for rank in (0, 1)] == [["0a", "0b", "0c"], ["1a"]]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0a", "0b", "0c", "1a"]


def test_an_error_is_told_with_its_traceback(faulty_ranks: FaultyRanks, tmp_path: Path) -> None:
    fault = Fault(tmp_path, at=3, mode=shim.Mode.ENOSPC)
    (end,) = faulty_ranks(write_three, tmp_path, world_size=1, fault=fault)
    assert isinstance(end, Failed)
    assert "No space left on device" in end.traceback
    assert "write_three" in end.traceback


def test_a_rank_in_a_collective_does_not_outlive_the_other(faulty_ranks: FaultyRanks, tmp_path: Path) -> None:
    ends = faulty_ranks(wait_for_the_other, tmp_path, world_size=2, fault=Fault(tmp_path, at=2))
    assert ends[0] == Died(signal.SIGKILL)
    assert isinstance(ends[1], Failed | Stopped)


@pytest.mark.parametrize(
    ("way", "ends"),
    [
        ("exit", [Left(75), Left(3)]),
        ("exit well", [Left(0), "done"]),
        ("say", [Left(1), Stopped(signal.SIGKILL)]),
        ("leave", [Left(70), Stopped(signal.SIGTERM)]),
        ("die", [Died(signal.SIGKILL), Stopped(signal.SIGTERM)]),
    ],
)
def test_every_way_to_end_is_told(way: str, ends: list[object], faulty_ranks: FaultyRanks, ready: Path) -> None:
    assert faulty_ranks(end_variously, ready, way, world_size=2, patience_seconds=0.3) == ends


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("raise", r"rank 0 failed:\n(.|\n)*FileNotFoundError: raise"),
        ("exit", r"rank 0 failed:\n(.|\n)*SystemExit: 75"),
        ("die", r"rank 0 died without a word: Died\(signal=9\)"),
        ("leave", r"rank 0 died without a word: Left\(code=70\)"),
    ],
)
def test_other_tests_fail_with_the_rank_that_failed_first(way: str, told: str, ready: Path) -> None:
    with pytest.raises(AssertionError, match=told):
        run_ranks(end_variously, ready, way, world_size=2)
