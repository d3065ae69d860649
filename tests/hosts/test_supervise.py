"""Parts on this host stand for hosts: how they end, and who is called the cause."""

import sys
import time
from pathlib import Path

import pytest

from ds_sft.hosts.remote import this_python
from ds_sft.hosts.supervise import Outcome, Patience, Task, supervise

HOSTS = ("localhost", "127.0.0.2")


def run(folder: Path, *programs: str, stops_after: float | None = None, patience: Patience | None = None) -> Outcome:
    """Run a program on each host."""
    began = time.monotonic()
    tasks = [
        Task(host, (sys.executable, "-c", program), {"GIVEN": "yes"}, (place,), len(programs))
        for place, (host, program) in enumerate(zip(HOSTS, programs, strict=False))
    ]
    return supervise(
        tasks,
        python=this_python(),
        cwd=str(folder),
        patience=patience or Patience(20, 20),
        is_stop_asked=lambda: stops_after is not None and time.monotonic() - began > stops_after,
    )


SLEEP = "import time; time.sleep(60); print('slept')"


def test_a_job_that_ends_well_gives_0_and_its_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell = (
        "import os; print(*(os.environ[name] for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'GIVEN')), os.getcwd())"
    )
    assert run(tmp_path, tell, tell) == Outcome(0, "", is_worth_another_try=False)
    assert sorted(capsys.readouterr().err.splitlines()) == [
        f"0 0 2 yes {tmp_path}",
        f"127.0.0.2: 1 0 2 yes {tmp_path}",
    ]


@pytest.mark.parametrize(
    ("program", "code", "told", "is_worth_another_try"),
    [
        ("import sys; print('error: data: broken'); sys.exit(65)", 65, "data: broken", False),
        ("raise ImportError('half')", 69, "ImportError: half", False),
        ("import os; os.kill(os.getpid(), 9)", 69, "ranks: must live, but rank 1 was killed by SIGKILL", True),
        ("import sys; sys.exit(75)", 75, "ended with code 75", True),
        ("import sys; print('[rank 1 host h] error: launch: gone'); sys.exit(69)", 69, "launch: gone", True),
    ],
)
def test_a_part_that_fails_ends_the_others_and_is_the_cause(
    program: str,
    code: int,
    told: str,
    is_worth_another_try: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcome = run(tmp_path, SLEEP, program, patience=Patience(20, 2))
    assert (outcome.code, outcome.is_worth_another_try) == (code, is_worth_another_try)
    assert outcome.told.startswith(f"127.0.0.2: {told}")
    assert "slept" not in capsys.readouterr().err


def test_one_failed_rank_of_several_decides_the_code_of_its_host(tmp_path: Path) -> None:
    program = "import os, sys; sys.exit({'0': 0, '1': 65, '2': 69}[os.environ['RANK']])"
    task = Task("localhost", (sys.executable, "-c", program), {}, (0, 1, 2), 3)
    outcome = supervise(
        [task], python=this_python(), cwd=str(tmp_path), patience=Patience(20, 2), is_stop_asked=lambda: False
    )
    assert outcome.code == 65


def test_who_only_feels_the_fault_is_not_the_cause(tmp_path: Path) -> None:
    feels = "import sys; print('error: launch: others are gone'); sys.exit(69)"
    knows = "import sys, time; time.sleep(1.5); print('error: disk: full'); sys.exit(74)"
    outcome = run(tmp_path, feels, knows)
    assert (outcome.code, outcome.told) == (74, "127.0.0.2: disk: full")


def test_a_command_that_is_missing_is_told(tmp_path: Path) -> None:
    task = Task("localhost", ("/no/such/python",), {}, (0,), 1)
    patience = Patience(20, 2)
    outcome = supervise([task], python=this_python(), cwd=str(tmp_path), patience=patience, is_stop_asked=lambda: False)
    assert (outcome.code, outcome.is_worth_another_try) == (66, False)
    assert outcome.told == "localhost: /no/such/python: No such file or directory; it must be on every host"


def test_ranks_are_asked_to_leave_and_may_take_their_time(tmp_path: Path) -> None:
    leaves = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), print('saved'), sys.exit(75)))\n"
        "time.sleep(60)"
    )
    assert run(tmp_path, leaves, leaves, stops_after=2.0).code == 75


def test_ranks_that_do_not_leave_are_ended(tmp_path: Path) -> None:
    stays = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    assert run(tmp_path, stays, stops_after=1.5, patience=Patience(20, 1)).code == 69


def test_what_a_rank_has_started_ends_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    child = f"import time, pathlib\nwhile True: pathlib.Path({str(mark)!r}).touch(); time.sleep(0.1)"
    starts = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        "time.sleep(1.5)"
    )
    assert run(tmp_path, starts).code == 0
    assert mark.exists()
    mark.unlink()
    time.sleep(0.5)
    assert not mark.exists()
