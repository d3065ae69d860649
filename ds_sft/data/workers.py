"""Spreads work over processes: results come back in order, and a dead process is told as such."""

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from ds_sft.errors import LaunchError

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")

_kept: dict[str, Any] = {}
"""In a worker: the work and what all of it shares, sent once."""


def num_cores() -> int:
    """Count the cores this process may use.

    Returns:
        At least 1.
    """
    return len(os.sched_getaffinity(0))


def spread(
    work: Callable[[Shared, Item], Result], shared: Shared, items: Sequence[Item], *, num_workers: int
) -> Iterator[Result]:
    """Do some work for each item.

    Args:
        work: A function of a module; it is named to other processes.
        shared: Its first argument, the same for all items.
        items: Its second argument.
        num_workers: Most processes; with 1 all is done in this one.

    Yields:
        Results in the order of the items.

    Raises:
        LaunchError: When a process dies.
    """
    num_workers = min(num_workers, len(items))
    if num_workers <= 1:
        yield from (work(shared, item) for item in items)
        return
    # Fresh processes: a fork would take over locks that threads of this one hold.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_keep, initargs=(work, shared)) as pool:
        try:
            yield from pool.map(_do, items)
        except BrokenProcessPool as error:
            raise LaunchError(
                f"workers: {num_workers} processes must stay alive, but one died, as when memory runs out; "
                f"ask for fewer, or for 1"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _keep(work: Callable[..., Any], shared: object) -> None:
    # The first process alone hears Ctrl-C and speaks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("ds_sft").setLevel(logging.ERROR)
    _kept.update(work=work, shared=shared)


def _do(item: object) -> Any:
    return _kept["work"](_kept["shared"], item)
