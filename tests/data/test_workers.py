"""Work that is spread over processes gives the same results in the same order, and a dead process is told."""

import os

import pytest

from ds_sft.data.workers import num_cores, spread
from ds_sft.errors import DataError, LaunchError


def add(shared: int, item: int) -> tuple[int, int]:
    return shared + item, os.getpid()


def die(_shared: int, _item: int) -> None:
    os._exit(9)


def refuse(shared: int, item: int) -> int:
    raise DataError(f"item {shared + item}: must be good, but is not; mend it")


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
    with pytest.raises(LaunchError, match="2 processes must stay alive, but one died"):
        list(spread(die, 1, [1, 2], num_workers=2))


def test_the_cores_are_those_this_process_may_use() -> None:
    assert num_cores() == len(os.sched_getaffinity(0))
