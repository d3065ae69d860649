"""What ranks tell each other about files: few and short messages, and patience with a slow disk."""

from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch

from ds_sft.errors import DsSftError, SaveError

_PATIENCE = timedelta(days=1)

Message = TypeVar("Message")
Result = TypeVar("Result")


def exchange(message: Message) -> list[Message]:
    """Give every rank the messages of all ranks; every rank must call this.

    It waits up to a day: a rank that writes a large file must not end the run of those that wait for it, as the time
    limit of the training's own collectives would.

    Args:
        message: Plain data.

    Returns:
        One message a rank, in the order of the ranks; the own one alone where there is no process group.
    """
    if not torch.distributed.is_initialized():
        return [message]
    messages: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(messages, message, group=_patient_group())
    return messages


def together(act: Callable[[], Result]) -> list[Result]:
    """Do something on every rank, and fail on every rank when it failed on one; every rank must call this.

    Args:
        act: The rank's part. It must take part in every collective inside, whatever happens to it.

    Returns:
        One result a rank.

    Raises:
        DsSftError: Of the first rank that failed; a fault of the file system becomes a `SaveError`.
    """
    result: Any = None
    fault, kind = "", DsSftError
    try:
        result = act()
    except DsSftError as error:
        fault, kind = "\n".join(error.faults), type(error)
    except OSError as error:
        kind = SaveError
        fault = f"{error.filename or 'output_dir'}: {error.strerror or error}"
    answers = exchange((result, fault, kind))
    for rank, (_, told, told_kind) in enumerate(answers):
        if told:
            raise told_kind(f"rank {rank}: {told}" if rank else told)
    return [result for result, _, _ in answers]


@cache
def _patient_group() -> Any:
    """Make a group of its own over all ranks, on the CPU, with a long time limit."""
    return torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
