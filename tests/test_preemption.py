"""A process that is asked to stop leaves in order, leaves at once when asked again, and outlives no launcher."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ds_sft.preemption import SIGNALS, StopRequest
from tests.ranks import free_port

ROOT = Path(__file__).parent.parent
TIMEOUT_SECONDS = 60.0
SAVED = 9
"""The code with which the program below ends by itself."""

PROGRAM = """
import json, os, sys, time
from ds_sft.preemption import StopRequest

settings = dict(phase="training", grace_seconds=120, save_seconds=0, code=9) | json.loads(sys.argv[1])
with StopRequest(grace_seconds=settings["grace_seconds"]) as stop:
    if settings["phase"] == "training":
        stop.defer()
    print("ready", os.getpid(), flush=True)
    while stop.reason is None:
        time.sleep(0.01)
    # In one piece: the thread writes too.
    sys.stdout.write(f"asked {stop.reason}\\n")
    sys.stdout.flush()
    time.sleep(settings["save_seconds"])
    os._exit(settings["code"])
"""
STARTING = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
STARTER = [sys.executable, "-c", STARTING]


class Started:
    """A program in a session of its own, with all that it starts."""

    def __init__(self, command: list[str], folder: Path, **changed: str) -> None:
        self._file = folder / "said.txt"
        environment = {name: value for name, value in os.environ.items() if not name.endswith("RANK")}
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **changed}
        with self._file.open("wb") as told:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=told, stderr=told, env=environment, start_new_session=True
            )

    @property
    def said(self) -> str:
        """All that its processes wrote."""
        return self._file.read_text(encoding="utf-8", errors="replace")

    @property
    def alive(self) -> dict[int, str]:
        """Its processes: number -> command line."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def process_like(self, words: str) -> int:
        """The one process whose command line has these words."""
        (found,) = (number for number, command in self.alive.items() if words in command)
        return found

    def wait_until(self, holds: Callable[[], Any], within: float = TIMEOUT_SECONDS) -> None:
        """Wait until something holds."""
        end = time.monotonic() + within
        while not holds():
            if time.monotonic() > end:
                raise AssertionError(f"not within {within} s; alive: {self.alive}; said:\n{self.said}")
            time.sleep(0.02)

    def wait_for(self, words: str, times: int = 1) -> None:
        """Wait until it has said something so often."""
        self.wait_until(lambda: self.said.count(words) >= times)

    def code(self) -> int:
        """Wait for its exit code."""
        return self.process.wait(TIMEOUT_SECONDS)


@contextmanager
def started(command: list[str], folder: Path, **changed: str) -> Iterator[Started]:
    program = Started(command, folder, **changed)
    try:
        yield program
    finally:
        for number in program.alive:
            os.kill(number, signal.SIGKILL)
        program.process.wait()


def python(program: str, **settings: object) -> list[str]:
    return [sys.executable, "-c", program, json.dumps(settings)]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: str(number.name))
def test_before_training_a_signal_ends_the_process_at_once(number: signal.Signals, tmp_path: Path) -> None:
    with started(python(PROGRAM, phase="early"), tmp_path) as program:
        program.wait_for("ready")
        program.process.send_signal(number)
        assert program.code() == 75
        assert program.said.splitlines()[1:] == [
            f"run: {number.name} before training began; nothing is lost, the same command begins again"
        ]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: str(number.name))
def test_in_training_a_signal_is_noted_and_told(number: signal.Signals, tmp_path: Path) -> None:
    with started(python(PROGRAM, save_seconds=60), tmp_path) as program:
        program.wait_for("ready")
        program.process.send_signal(number)
        program.wait_for(f"run: {number.name}; leaving as soon as the work is saved, and at once when asked again\n")
        program.wait_for(f"asked {number.name}\n")


def test_signals_within_a_second_are_one_wish(tmp_path: Path) -> None:
    with started(python(PROGRAM, save_seconds=1.5), tmp_path) as program:
        program.wait_for("ready")
        program.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        program.process.send_signal(signal.SIGTERM)
        assert program.code() == SAVED
        assert "asked SIGINT" in program.said


def test_a_signal_after_a_second_ends_the_process_at_once(tmp_path: Path) -> None:
    with started(python(PROGRAM, save_seconds=60), tmp_path) as program:
        program.wait_for("ready")
        program.process.send_signal(signal.SIGTERM)
        time.sleep(1.2)
        program.process.send_signal(signal.SIGTERM)
        assert program.code() == 75
        assert "must be left alone until its work is saved, but SIGTERM came again" in program.said


def test_a_main_thread_that_never_returns_does_not_hold_up_the_end(tmp_path: Path) -> None:
    stuck = """
import ctypes
from ds_sft.preemption import StopRequest

with StopRequest():
    print("ready", flush=True)
    c, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    c.pthread_mutex_lock(lock)
    c.pthread_mutex_lock(lock)
"""
    with started(python(stuck), tmp_path) as program:
        program.wait_for("ready")
        time.sleep(0.1)
        program.process.send_signal(signal.SIGTERM)
        assert program.code() == 75


def test_a_reader_that_holds_up_the_output_does_not_hold_up_the_end(tmp_path: Path) -> None:
    talking = """
import os, sys
from ds_sft.preemption import StopRequest

with StopRequest():
    open("ready.txt", "w").close()
    while True:
        print("x" * 1000, file=sys.stderr)
"""
    reader, writer = os.pipe()
    with subprocess.Popen(python(talking), cwd=tmp_path, stderr=writer, env={"PYTHONPATH": str(ROOT)}) as program:
        while not (tmp_path / "ready.txt").exists():
            time.sleep(0.02)
        time.sleep(0.3)
        program.terminate()
        assert program.wait(10) == 75
    os.close(reader)
    os.close(writer)


def test_uninstalling_puts_back_what_was_there() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest() as stop:
        assert [signal.getsignal(number) for number in SIGNALS] != before
    stop.uninstall()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_keyboard_that_the_shell_ignores_stays_ignored(tmp_path: Path) -> None:
    background = f"trap '' INT USR1; exec {sys.executable} -c '{PROGRAM}' '{{}}'"
    with started(["bash", "-c", background], tmp_path) as program:
        program.wait_for("ready")
        program.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        program.process.send_signal(signal.SIGUSR1)
        assert program.code() == SAVED
        assert "asked SIGUSR1" in program.said


def test_a_forked_worker_dies_of_sigterm_alone_and_its_parent_hears_nothing(tmp_path: Path) -> None:
    forking = """
import multiprocessing, os, signal, time
from ds_sft.preemption import StopRequest

with StopRequest() as stop:
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        time.sleep(0.2)
        assert worker.is_alive()
        os.kill(worker.pid, number)
    worker.join()
    time.sleep(0.2)
    print(worker.exitcode, stop.reason)
"""
    with started(python(forking), tmp_path) as program:
        assert program.code() == 0
        assert program.said == "-15 None\n"


def test_a_worker_may_stay_for_its_parent_at_a_stop(tmp_path: Path) -> None:
    forking = """
import multiprocessing, time
from ds_sft.preemption import StopRequest, end_children, stay_for_parent

def work(is_ready):
    stay_for_parent(0)
    is_ready.set()
    time.sleep(60)

with StopRequest() as stop:
    is_ready = multiprocessing.Event()
    worker = multiprocessing.get_context("fork").Process(target=work, args=(is_ready,))
    worker.start()
    is_ready.wait()
    worker.terminate()
    time.sleep(0.3)
    print(worker.is_alive())
    end_children()
    worker.join()
"""
    with started(python(forking), tmp_path) as program:
        assert program.code() == 0
        assert program.said == "True\n"


def test_workers_do_not_outlive_a_process_that_leaves_at_once(tmp_path: Path) -> None:
    forking = """
import multiprocessing, time
from ds_sft.preemption import StopRequest

with StopRequest() as stop:
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True).start()
    print("ready", flush=True)
    time.sleep(60)
"""
    with started(python(forking), tmp_path) as program:
        program.wait_for("ready")
        program.process.send_signal(signal.SIGTERM)
        assert program.code() == 75
        program.wait_until(lambda: not program.alive, within=3)


@pytest.mark.parametrize("phase", ["early", "training"])
def test_a_rank_leaves_when_its_parent_is_killed(phase: str, tmp_path: Path) -> None:
    with started([*STARTER, *python(PROGRAM, phase=phase)], tmp_path, RANK="0") as program:
        program.wait_for("ready")
        program.process.kill()
        program.wait_until(lambda: not program.alive, within=5)
        told = "asked the launcher has gone" if phase == "training" else "run: the launcher has gone before training"
        assert told in program.said


def test_without_a_rank_the_parent_may_go(tmp_path: Path) -> None:
    with started([*STARTER, *python(PROGRAM)], tmp_path) as program:
        program.wait_for("ready")
        program.process.kill()
        time.sleep(1.2)
        assert len(program.alive) == 1


def test_a_rank_that_hangs_without_its_launcher_ends_after_the_grace(tmp_path: Path) -> None:
    command = [*STARTER, *python(PROGRAM, grace_seconds=0.6, save_seconds=60)]
    with started(command, tmp_path, RANK="0") as program:
        program.wait_for("ready")
        program.process.kill()
        program.wait_until(lambda: not program.alive, within=5)
        assert "run: must end within 0.6 s after its launcher, but did not" in program.said


@pytest.mark.parametrize(("prefix", "is_left"), [([], True), (["setsid", "--wait"], False)], ids=["runner", "session"])
def test_a_rank_leaves_when_the_runner_of_its_launcher_is_killed(
    prefix: list[str], is_left: bool, tmp_path: Path
) -> None:
    launcher = tmp_path / "deepspeed" / "launcher" / "launch.py"
    launcher.parent.mkdir(parents=True)
    launcher.write_text(STARTING, encoding="utf-8")
    command = [*STARTER, *prefix, sys.executable, str(launcher), *python(PROGRAM)]
    with started(command, tmp_path, RANK="0") as program:
        program.wait_for("ready")
        rank = int(program.said.split()[1])
        program.process.terminate()
        if is_left:
            program.wait_for("asked the launcher has gone")
        else:
            time.sleep(1.2)
            assert "asked" not in program.said
            os.killpg(os.getpgid(rank), signal.SIGKILL)


def deepspeeds_launcher(program: Started) -> int:
    return program.process_like("deepspeed.launcher.launch")


STOPS: dict[str, Callable[[Started], None]] = {
    "SIGTERM to deepspeed": lambda program: program.process.terminate(),
    "SIGTERM to launch.py": lambda program: os.kill(deepspeeds_launcher(program), signal.SIGTERM),
    "SIGKILL to launch.py": lambda program: os.kill(deepspeeds_launcher(program), signal.SIGKILL),
    "Ctrl-C": lambda program: os.killpg(program.process.pid, signal.SIGINT),
}


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("phase", [pytest.param("early", marks=pytest.mark.slow), "training"])
def test_no_process_of_deepspeed_is_left_5_seconds_after_a_stop(stop: str, phase: str, tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(PROGRAM.replace("sys.argv[1]", "sys.argv[2]"), encoding="utf-8")
    settings = json.dumps({"phase": phase, "code": 75})
    command = ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port()), str(script), settings]
    with started(command, tmp_path) as program:
        program.wait_for("ready", times=2)
        STOPS[stop](program)
        program.wait_until(lambda: not program.alive, within=5)
        assert len(re.findall("asked (SIG|the)", program.said)) == (2 if phase == "training" else 0)
