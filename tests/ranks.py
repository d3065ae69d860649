"""Runs a job on several ranks: each is forked from one server that has imported the heavy packages once.

A new interpreter for each rank would spend most of a test importing. The server never computes anything itself, so a
fork of it is as good as new: no autograd threads, no process group, no engine.
"""

import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any, TypeVar
from unittest import mock

Result = TypeVar("Result")

TIMEOUT_SECONDS = 240
_PRELOADED = ["torch", "transformers", "deepspeed", "accelerate.utils.deepspeed", "ds_sft.train", "tests.jobs"]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(_PRELOADED)


@dataclass(frozen=True)
class Died:
    """A rank ended by a signal.

    Args:
        signal: Its number.
    """

    signal: int


@dataclass(frozen=True)
class Left:
    """A rank that left by SystemExit or os._exit.

    Args:
        code: Its exit code.
        traceback: Of the SystemExit.
    """

    code: int
    traceback: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True)
class Failed:
    """A rank whose job raised something else.

    Args:
        traceback: Of what it raised.
    """

    traceback: str


@dataclass(frozen=True)
class Stopped:
    """A rank that was still running some time after another one had ended badly, so that the runner ended it.

    Args:
        signal: The one that ended it: SIGTERM, or SIGKILL some time later.
    """

    signal: int


Ending = Died | Left | Failed | Stopped


def run_ranks(job: Callable[..., Result], *arguments: Any, world_size: int) -> list[Result]:
    """Run `job(*arguments)` once on each rank.

    Args:
        job: A function of an importable module; what it returns must be picklable.
        *arguments: Picklable.
        world_size: Number of ranks.

    Returns:
        The results by rank.

    Raises:
        AssertionError: When a rank fails, with its traceback, or when they take too long.
    """
    results: list[Result] = []
    stopped = None
    # The first failure ends the wait, because the others may then hang.
    for rank, end in enumerate(rank_ends(job, *arguments, world_size=world_size, patience_seconds=0)):
        if isinstance(end, Stopped):
            stopped = rank
        elif isinstance(end, Failed | Left) and end.traceback:
            raise AssertionError(f"rank {rank} failed:\n{end.traceback}")
        elif isinstance(end, Died | Left | Failed):
            raise AssertionError(f"rank {rank} died without a word: {end}")
        else:
            results.append(end)
    assert stopped is None, f"rank {stopped} was stopped, but no other had failed"
    return results


def rank_ends(
    job: Callable[..., Result],
    *arguments: Any,
    world_size: int,
    patience_seconds: float,
    server: forkserver.ForkServer | None = None,
) -> list[Result | Ending]:
    """Run `job(*arguments)` once on each rank, and tell of each how it ended, as a launcher sees it.

    Args:
        job: A function of an importable module; what it returns must be picklable.
        *arguments: Picklable.
        world_size: Number of ranks.
        patience_seconds: How long the other ranks may run on once one has ended badly: so long until SIGTERM, and
            so long again until SIGKILL.
        server: From where the ranks are forked, if not from the one that most tests share.

    Returns:
        By rank: what its job returned, or how else it ended.

    Raises:
        AssertionError: When they take too long.
    """
    port = free_port()
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(world_size)]
    processes = [
        CONTEXT.Process(target=_rank, args=(rank, world_size, port, sender, job, arguments))
        for rank, (_, sender) in enumerate(pipes)
    ]
    connect = forkserver.connect_to_new_process if server is None else server.connect_to_new_process
    with mock.patch.object(forkserver, "connect_to_new_process", connect):
        for process, (_, sender) in zip(processes, pipes, strict=True):
            process.start()
            sender.close()
    try:
        return _ends(processes, [receiver for receiver, _ in pipes], patience_seconds)
    finally:
        for process in processes:
            process.kill()
            process.join()


def start_server(**environment: str) -> forkserver.ForkServer:
    """Start another server; it ends with this process.

    Args:
        **environment: What it and its ranks find set beside what is set here.

    Returns:
        It, while it is still importing.
    """
    resource_tracker.ensure_running()  # otherwise the server starts it, in its own environment
    server = forkserver.ForkServer()
    server.set_forkserver_preload(_PRELOADED)
    with mock.patch.dict(os.environ, environment):
        server.ensure_running()
    return server


def _ends(processes: list[ForkServerProcess], receivers: list[Any], patience_seconds: float) -> list[Any]:
    """Collect the end of each rank; once one has ended badly, the others are stopped."""
    ends: dict[int, Any] = {}
    has_failed, signals, sent = False, [signal.SIGTERM, signal.SIGKILL], set[int]()
    while len(ends) < len(processes):
        left = [rank for rank in range(len(processes)) if rank not in ends]
        is_stopping = has_failed and len(sent) < len(signals)
        # Not only for the pipes' ends: what a rank has forked may keep its pipe open.
        handles = [handle for rank in left for handle in (receivers[rank], processes[rank].sentinel)]
        ready = wait(handles, patience_seconds if is_stopping else TIMEOUT_SECONDS)
        for rank in left:
            if receivers[rank] in ready or processes[rank].sentinel in ready:
                is_well, end = _end(processes[rank], receivers[rank])
                ends[rank] = Stopped(end.signal) if isinstance(end, Died) and end.signal in sent else end
                has_failed = has_failed or not is_well
        if not ready and not is_stopping:
            raise AssertionError(f"no rank answered within {TIMEOUT_SECONDS} s; done are {sorted(ends)}")
        if not ready:
            for rank in left:
                processes[rank].kill() if sent else processes[rank].terminate()
            sent.add(signals[len(sent)])
    return [ends[rank] for rank in range(len(processes))]


def _end(process: ForkServerProcess, receiver: Any) -> tuple[bool, Any]:
    """Tell how a rank ended that has sent something or is no more, and whether a launcher would call that well."""
    with suppress(EOFError, OSError):  # the pipe ends, perhaps in the middle of what it said
        if receiver.poll():
            sent: tuple[bool, Any] = receiver.recv()
            return sent
    process.join()
    code = process.exitcode or 0
    return code == 0, Died(-code) if code < 0 else Left(code)


def _rank(
    rank: int, world_size: int, port: int, sender: Connection, job: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch

    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    try:
        result = job(*arguments)
        sender.send((True, result))
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        sender.send((code == 0, Left(code, traceback.format_exc())))
    except BaseException:  # whatever it was, the test must see it
        sender.send((False, Failed(traceback.format_exc())))
    sender.close()
    # An engine's threads may outlive the job; the test has what it wants.
    os._exit(0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
