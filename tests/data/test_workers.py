"""Work that is spread over processes gives the same results in the same order, and a dead process is told."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ds_sft.data.workers import num_cores, spread
from ds_sft.errors import DataError, LaunchError

ROOT = Path(__file__).parents[2]


def add(shared: int, item: int) -> tuple[int, int]:
    return shared + item, os.getpid()


def die(_shared: int, _item: int) -> None:
    os._exit(9)


def refuse(shared: int, item: int) -> int:
    raise DataError(f"item {shared + item}: must be good, but is not; mend it")


def leave_pid_and_wait(folder: Path, item: int) -> None:
    (folder / str(item)).write_text(str(os.getpid()))
    time.sleep(600)


def loaded(_shared: None, _item: int) -> list[str]:
    return sorted({"torch", "transformers", "pyarrow"} & set(sys.modules))


def test_one_worker_does_all_in_this_process() -> None:
    assert list(spread(add, 10, [1, 2], num_workers=1)) == [(11, os.getpid()), (12, os.getpid())]


def test_a_single_item_is_not_worth_a_process() -> None:
    assert list(spread(add, 10, [1], num_workers=8)) == [(11, os.getpid())]


def test_nothing_to_do_gives_nothing() -> None:
    assert list(spread(add, 10, [], num_workers=8)) == []


def test_results_of_several_processes_come_in_the_order_of_the_items() -> None:
    results = list(spread(add, 100, range(20), num_workers=2))
    assert [value for value, _ in results] == list(range(100, 120))
    assert os.getpid() not in {process for _, process in results}


def test_a_fault_in_a_worker_is_raised_here_with_its_line() -> None:
    with pytest.raises(DataError) as caught:
        list(spread(refuse, 1, [1, 2], num_workers=2))
    assert caught.value.faults == ("item 2: must be good, but is not; mend it",)


def test_a_process_that_dies_is_told() -> None:
    with pytest.raises(LaunchError, match=r"all processes must stay alive, but one died \(code 9\)"):
        list(spread(die, 1, [1, 2], num_workers=2))


def test_items_are_taken_when_they_are_needed() -> None:
    items = iter(range(100))
    results = spread(add, 0, items, num_workers=2)
    assert next(results)[0] == 0
    assert next(items) == 6
    results.close()


def test_a_program_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import operator\nfrom ds_sft.data.workers import spread\n"
        "print(list(spread(operator.add, 10, [1, 2, 3], num_workers=2)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[11, 12, 13]\n", "")


def test_a_worker_loads_only_what_the_work_needs() -> None:
    assert list(spread(loaded, None, [1, 2], num_workers=2)) == [[], []]


def test_workers_end_when_the_program_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom ds_sft.data.workers import spread\n"
        "from tests.data.test_workers import leave_pid_and_wait\n"
        "list(spread(leave_pid_and_wait, Path(sys.argv[1]), [1, 2], num_workers=2))\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=ROOT)
    files = [tmp_path / "1", tmp_path / "2"]
    wait_until(lambda: all(file.is_file() and file.read_text() for file in files))
    starter.kill()
    starter.wait()
    assert all(ends(int(file.read_text())) for file in files)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ends(process: int) -> bool:
    wait_until(lambda: not Path(f"/proc/{process}/stat").exists())
    return True


def test_the_cores_are_those_this_process_may_use() -> None:
    assert num_cores() == len(os.sched_getaffinity(0))
