"""A job that is asked to stop, whatever it does, loses nothing and goes; the same command then ends as if nothing was.

The cells are the signals, whom they reach, and what the job is doing then; every rank stands still there, so that the
signal meets it at that point and no other.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import CONFIGS, ROOT
from tests.faults import tree
from tests.jobs import Trained, is_left_alone, main_flags, train_and_log
from tests.ranks import free_port, run_ranks

BIN = Path(sys.executable).parent
TIMEOUT_SECONDS = 300.0
# Signals within a second are one wish.
REPEAT_SECONDS = 1.5
PREEMPTED = 75
SIGNALS = {
    "TERM": [signal.SIGTERM],
    "USR1": [signal.SIGUSR1],
    "INT": [signal.SIGINT],
    "TERM twice": [signal.SIGTERM, signal.SIGTERM],
}
TARGETS = ("runner", "launch.py", "rank 0", "rank 1", "group")
POINTS: dict[str, tuple[list[int], list[int]]] = {
    "import": ([], []),
    "tokenise": ([], []),
    "load": ([], []),
    "first step": ([1], []),
    "step": ([2, 3], [2]),
    "save": ([2, 3], []),
    "evaluate": ([2], []),
    "export": ([2, 4], [2, 4]),
    "end": ([2, 4], [2, 4]),
}
"""What a job does -> the checkpoints after one wish, and after a second one, behind which nothing is saved any more."""
EARLY = ("import", "tokenise", "load")
LATE = ("export", "end")
IN_ONE_RANK = ("tokenise", "export")
"""Where rank zero alone comes by; the others wait for it."""
DEFAULT_CELLS = [
    ("TERM twice", "rank 1", "tokenise"),
    ("TERM", "runner", "step"),
    ("USR1", "rank 1", "save"),
    ("INT", "group", "evaluate"),
    ("KILL", "launch.py", "step"),
    ("TERM", "launch.py", "export"),
]
CELLS = [
    pytest.param(*cell, id="{} to {}, {}".format(*cell), marks=[] if cell in DEFAULT_CELLS else pytest.mark.slow)
    for point in POINTS
    for cell in [*((name, target, point) for name in SIGNALS for target in TARGETS), ("KILL", "launch.py", point)]
]


@dataclass(frozen=True)
class Job:
    """A job under deepspeed's launcher: the runner, its launch.py, and two ranks that stand at a point.

    Args:
        runner: The process that was started.
        launch: Number of the one it starts.
        ranks: Numbers of those that launch.py starts.
        folder: With the ranks' marks and the log.
    """

    runner: subprocess.Popen[bytes]
    launch: int
    ranks: tuple[int, ...]
    folder: Path

    @property
    def told(self) -> str:
        """All that its processes wrote."""
        return (self.folder / "log").read_text(errors="replace")

    def hit(self, target: str, number: signal.Signals) -> None:
        """Send a signal."""
        if target == "group":
            os.killpg(self.runner.pid, number)
            return
        processes = (self.runner.pid, self.launch, *self.ranks)
        process = processes[TARGETS.index(target)]
        if _is_alive(process):
            os.kill(process, number)

    def let_go_on(self) -> None:
        """Let the ranks go on from where they stand."""
        (self.folder / "go").touch()

    def left(self) -> list[int]:
        """Give the processes that still live."""
        self.runner.poll()
        return [process for process in (self.runner.pid, self.launch, *self.ranks) if _is_alive(process)]

    def codes(self) -> list[int | None]:
        """Give the ranks' exit codes; None for one that was killed."""
        files = [self.folder / f"code-{rank}" for rank in range(len(self.ranks))]
        return [int(file.read_text()) if file.exists() else None for file in files]


@pytest.fixture(scope="module")
def uninterrupted(tiny_checkpoint: Path, conversations_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    flags = _flags(tiny_checkpoint, conversations_file, tmp_path_factory.mktemp("whole"))
    return run_ranks(train_and_log, flags, world_size=2)[0]


def _flags(model: Path, data: Path, output: Path) -> list[str]:
    return main_flags(
        *(model, data, output),
        max_steps=4,
        per_device_train_batch_size=2,
        deepspeed=CONFIGS / "zero3.json",
        eval_data_path=data,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
    )


@pytest.mark.parametrize(("name", "target", "point"), CELLS)
def test_a_stopped_job_loses_nothing_leaves_nobody_behind_and_goes_on_with_equal_losses(
    *,
    name: str,
    target: str,
    point: str,
    uninterrupted: Trained,
    tiny_checkpoint: Path,
    conversations_file: Path,
    tmp_path: Path,
) -> None:
    output = tmp_path / "run"
    flags = _flags(tiny_checkpoint, conversations_file, output)
    with _held(flags, point, tmp_path / "marks") as job:
        for number in SIGNALS.get(name, [signal.SIGKILL]):
            job.hit(target, number)
            time.sleep(REPEAT_SECONDS)
        if target == "runner":
            # The ranks look for it every half second, and it may take its time to die.
            _wait(lambda: job.runner.poll() is not None, "the runner is left", job)
            time.sleep(REPEAT_SECONDS)
        if point in EARLY:
            # At once: nothing lets them go on.
            _wait(lambda: not job.left(), "processes are left", job)
        _judge_those_asked_twice(job, name, target)
        job.let_go_on()
        _wait(lambda: not job.left(), "processes are left", job)
    assert tree.violations(output) == []
    is_saved = not _asked_twice(name, target)
    assert tree.checkpoints(output) == POINTS[point][0 if is_saved else 1], job.told[-3000:]
    if is_saved:
        _judge_codes(job, target, point)
    is_finished = (output / "MANIFEST.json").exists()
    assert is_finished == (point in LATE) or (point == "export" and not is_saved)
    if is_finished:
        assert run_ranks(is_left_alone, flags, world_size=2) == [True, True]
    else:
        assert run_ranks(train_and_log, flags, world_size=2)[0] == uninterrupted
    assert tree.leftovers(output) == []


def _asked_twice(name: str, target: str) -> bool:
    """The runner dies of its first signal, and the ranks then know of one wish."""
    return name == "TERM twice" and target != "runner"


def _judge_those_asked_twice(job: Job, name: str, target: str) -> None:
    if _asked_twice(name, target) and target != "launch.py":
        hit = [0, 1] if target == "group" else [int(target[-1])]
        _wait(lambda: not any(_is_alive(job.ranks[rank]) for rank in hit), "a rank that was asked twice is left", job)
        assert [job.codes()[rank] for rank in hit] == [PREEMPTED] * len(hit)


def _judge_codes(job: Job, target: str, point: str) -> None:
    """What a rank that was asked says, the launcher says too."""
    if point == "end":
        assert job.codes() == [0, 0]
        return
    # Of a run that is whole, a rank that was not asked says so.
    assert set(job.codes()) in ([{PREEMPTED}, {0, PREEMPTED}] if point == "export" else [{PREEMPTED}]), job.told[-3000:]
    if target.startswith("rank"):
        assert job.runner.wait() == PREEMPTED


@contextmanager
def _held(flags: list[str], point: str, folder: Path) -> Iterator[Job]:
    """Start a job and wait until its ranks stand at a point; nothing of it is left afterwards."""
    folder.mkdir()
    with (folder / "log").open("wb") as stream:
        runner = subprocess.Popen(
            [
                *(str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())),
                *(str(ROOT / "tests" / "stop_program.py"), *flags),
            ],
            env={
                **os.environ,
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "DS_SFT_CACHE": str(folder / "cache"),
                "HOLD_AT": point,
                "HOLD_IN": str(folder),
            },
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    job = Job(runner, 0, (), folder)
    try:
        marks = [folder / f"held-{rank}" for rank in ([0] if point in IN_ONE_RANK else [0, 1])]
        _wait(lambda: all(mark.exists() for mark in marks), f"it does not come to {point}", job)
        launch = _children_of(runner.pid)[0]
        job = Job(runner, launch, tuple(sorted(_children_of(launch), key=_local_rank)), folder)
        yield job
    finally:
        with suppress(ProcessLookupError):
            os.killpg(runner.pid, signal.SIGKILL)
        runner.wait()


def _wait(condition: Callable[[], object], told: str, job: Job) -> None:
    until = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < until, f"{told}: {job.left()}\n{job.told[-3000:]}"
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
