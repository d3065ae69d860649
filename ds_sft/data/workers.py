"""Spreads work over processes: results come back in order, and a dead process is told as such.

Each process is a new interpreter that imports what the work needs and no more. `multiprocessing` would run the user's
program again in each of them, and forking would copy threads in an unknown state. A process holds no end of a pipe but
its own, so it ends with the one that started it, however that ends.
"""

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from typing import Any, TypeVar

from ds_sft.errors import DsSftError, LaunchError

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")

_PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from ds_sft.data.workers import serve; serve(int(sys.argv[1]))"
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
_ITEMS_AHEAD = 3


def num_cores() -> int:
    """Count the cores this process may use.

    Returns:
        At least 1.
    """
    return len(os.sched_getaffinity(0))


def spread(
    work: Callable[[Shared, Item], Result], shared: Shared, items: Iterable[Item], *, num_workers: int
) -> Generator[Result]:
    """Do some work for each item.

    Args:
        work: A function of a module; it is named to other processes.
        shared: Its first argument, the same for all items; sent to each process once.
        items: Its second argument; taken one by one, at most three for each process before their results are.
        num_workers: Most processes; with 1, or a single item, all is done in this one.

    Yields:
        Results in the order of the items.

    Raises:
        DsSftError: What the work raised, or when a process dies.
    """
    coming = iter(items)
    first = list(islice(coming, num_workers))
    if len(first) <= 1:
        yield from (work(shared, item) for item in chain(first, coming))
        return
    with ThreadPoolExecutor(len(first)) as threads, ExitStack() as processes:
        idle: SimpleQueue[_Worker] = SimpleQueue()
        for _ in first:
            idle.put(processes.enter_context(_started(work, shared)))
        pending: deque[Future[Result]] = deque()
        for item in chain(first, coming):
            pending.append(threads.submit(_ask_next, idle, item))
            if len(pending) == _ITEMS_AHEAD * len(first):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def serve(handle: int) -> None:
    """Be one of the processes: take the work, then items, until the other end of the pipe is closed.

    Args:
        handle: File descriptor of this end.
    """
    # The first process alone hears Ctrl-C and speaks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("ds_sft").setLevel(logging.ERROR)
    connection = Connection(handle)
    messages: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, messages), daemon=True).start()
    work, shared = pickle.loads(messages.get())  # noqa: S301  # from the process that started this one
    while True:
        item = pickle.loads(messages.get())  # noqa: S301
        try:
            answer = (True, work(shared, item))
        except DsSftError as error:
            answer = (False, error)
        connection.send(answer)


def _receive(connection: "Connection[Any, Any]", messages: "SimpleQueue[bytes]") -> None:
    """Wait for messages beside the work, to end at once with the process at the other end."""
    while True:
        try:
            messages.put(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)


@dataclass(frozen=True, eq=False)
class _Worker:
    process: "subprocess.Popen[bytes]"
    connection: "Connection[Any, Any]"
    unsent: list[Any] = field(default_factory=list)


@contextmanager
def _started(work: Callable[..., Any], shared: object) -> Iterator[_Worker]:
    ours, theirs = Pipe()
    with ours, theirs:
        process = _start(theirs.fileno())
        # Otherwise the end of that process would not be seen here.
        theirs.close()
        try:
            # Sent with the first item, by that item's thread: all processes start at the same time.
            yield _Worker(process, ours, [(work, shared)])
        finally:
            process.kill()
            process.wait()


def _start(handle: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", _PROGRAM, str(handle), *sys.path]
    environment = {**os.environ, **_ONE_THREAD}
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[handle], env=environment)
    except OSError as error:
        raise LaunchError(
            f"workers: processes must be able to start, but: {error.strerror}; raise the limit"
        ) from error


def _ask_next(idle: "SimpleQueue[_Worker]", item: Any) -> Any:
    """Let the next idle process do the work for an item."""
    worker = idle.get()
    try:
        for message in (*worker.unsent, item):
            worker.connection.send(message)
        worker.unsent.clear()
        is_done, answer = worker.connection.recv()
    except (EOFError, ConnectionError) as error:
        code = worker.process.wait()
        raise LaunchError(
            f"workers: all processes must stay alive, but one died (code {code}), as when memory runs out; free some "
            "memory, or let this program see fewer cores, as in: taskset -c 0"
        ) from error
    finally:
        idle.put(worker)
    if not is_done:
        raise answer
    return answer
