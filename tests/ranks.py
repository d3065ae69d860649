"""Runs a job on several ranks: each is forked from one server that has imported the heavy packages once.

A new interpreter for each rank would spend most of a test importing. The server never computes anything itself, so a
fork of it is as good as new: no autograd threads, no process group, no engine.
"""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

Result = TypeVar("Result")

TIMEOUT_SECONDS = 240
_PRELOADED = ["torch", "transformers", "deepspeed", "accelerate.utils.deepspeed", "ds_sft.train", "tests.jobs"]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(_PRELOADED)


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
    port = free_port()
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(world_size)]
    processes = [
        CONTEXT.Process(target=_rank, args=(rank, world_size, port, sender, job, arguments))
        for rank, (_, sender) in enumerate(pipes)
    ]
    for process, (_, sender) in zip(processes, pipes, strict=True):
        process.start()
        sender.close()
    try:
        return _results([receiver for receiver, _ in pipes])
    finally:
        for process in processes:
            process.kill()
            process.join()


def _results(receivers: list[Any]) -> list[Any]:
    """Collect one result from each rank; the first failure ends the wait, because the others may then hang."""
    results: dict[int, Any] = {}
    while len(results) < len(receivers):
        ready: list[Any] = wait(
            [receivers[rank] for rank in range(len(receivers)) if rank not in results], TIMEOUT_SECONDS
        )
        if not ready:
            raise AssertionError(f"no rank answered within {TIMEOUT_SECONDS} s; done are {sorted(results)}")
        for receiver in ready:
            rank = receivers.index(receiver)
            try:
                is_done, value = receiver.recv()
            except EOFError:
                raise AssertionError(f"rank {rank} died without a word") from None
            if not is_done:
                raise AssertionError(f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(receivers))]


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
    except BaseException:  # whatever it was, the test must see it
        sender.send((False, traceback.format_exc()))
    sender.close()
    # An engine's threads may outlive the job; the test has what it wants.
    os._exit(0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
