"""A job that is asked to stop saves a checkpoint and goes; the same command then ends as if nothing had been."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import CONFIGS, ROOT
from tests.jobs import Trained, main_flags, train_and_log
from tests.ranks import free_port, run_ranks

BIN = Path(sys.executable).parent
STEPS = 24
TIMEOUT_SECONDS = 120.0
SIGNALS = {"TERM": signal.SIGTERM, "USR1": signal.SIGUSR1, "INT": signal.SIGINT, "KILL": signal.SIGKILL}
DEFAULT_CELLS = [("TERM", "runner"), ("USR1", "rank 1"), ("INT", "group"), ("KILL", "launch.py"), ("TERM", "launch.py")]
CELLS = [
    pytest.param(
        name, target, id=f"{name} to {target}", marks=[] if (name, target) in DEFAULT_CELLS else pytest.mark.slow
    )
    for name in ("TERM", "USR1", "INT")
    for target in ("runner", "launch.py", "rank 0", "rank 1", "group")
] + [pytest.param("KILL", "launch.py", id="KILL to launch.py")]


@dataclass(frozen=True)
class Job:
    """A job under deepspeed's launcher: the runner, its launch.py, and two ranks."""

    runner: subprocess.Popen[bytes]
    launch: int
    ranks: tuple[int, ...]
    log: Path

    def hit(self, target: str, number: signal.Signals) -> None:
        if target == "group":
            os.killpg(self.runner.pid, number)
            return
        processes = {
            "runner": self.runner.pid,
            "launch.py": self.launch,
            "rank 0": self.ranks[0],
            "rank 1": self.ranks[1],
        }
        os.kill(processes[target], number)

    def left(self) -> list[int]:
        self.runner.poll()
        return [process for process in (self.runner.pid, self.launch, *self.ranks) if _is_alive(process)]


@pytest.fixture(scope="module")
def uninterrupted(tiny_checkpoint: Path, conversations_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    flags = _flags(tiny_checkpoint, conversations_file, tmp_path_factory.mktemp("whole"))
    return run_ranks(train_and_log, flags, world_size=2)[0]


def _flags(model: Path, data: Path, output: Path) -> list[str]:
    return main_flags(
        model, data, output, max_steps=STEPS, per_device_train_batch_size=2, deepspeed=CONFIGS / "zero3.json"
    )


@pytest.mark.parametrize(("name", "target"), CELLS)
def test_a_stopped_job_saves_leaves_nobody_behind_and_goes_on_with_equal_losses(
    *,
    name: str,
    target: str,
    uninterrupted: Trained,
    tiny_checkpoint: Path,
    conversations_file: Path,
    tmp_path: Path,
) -> None:
    flags = _flags(tiny_checkpoint, conversations_file, tmp_path / "run")
    job = _start(flags, tmp_path / "log")
    try:
        job.hit(target, SIGNALS[name])
        _wait(lambda: not job.left(), f"processes are left: {job.left()}", job)
    finally:
        for process in job.left():
            os.kill(process, signal.SIGKILL)
    told = job.log.read_text()
    assert "stopped after step" in told, told[-3000:]
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 1, told[-3000:]
    assert not (tmp_path / "run" / "MANIFEST.json").exists()
    assert run_ranks(train_and_log, flags, world_size=2)[0] == uninterrupted


def _start(flags: list[str], log: Path) -> Job:
    """Start the job and wait until it trains."""
    with log.open("wb") as stream:
        runner = subprocess.Popen(
            [
                *(str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())),
                *(str(ROOT / "ds_sft" / "train.py"), *flags),
            ],
            env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    job = Job(runner, 0, (), log)
    _wait(lambda: "step 3/" in log.read_text(), "it does not train", job)
    launch = _children_of(runner.pid)[0]
    ranks = sorted(_children_of(launch), key=_local_rank)
    return Job(runner, launch, tuple(ranks), log)


def _wait(condition: Callable[[], object], told: str, job: Job) -> None:
    until = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < until, f"{told}\n{job.log.read_text()[-3000:]}"
        time.sleep(0.05)


def _is_alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def _children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _local_rank(process: int) -> int:
    variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return next(int(variable.partition(b"=")[2]) for variable in variables if variable.startswith(b"LOCAL_RANK="))
