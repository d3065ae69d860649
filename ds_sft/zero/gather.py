"""Brings partitioned parameters together, a few at a time."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn


def full_shape(parameter: torch.Tensor) -> torch.Size:
    """Give the shape of a parameter as if it were whole.

    Args:
        parameter: Partitioned by ZeRO-3 or not.

    Returns:
        Its full shape.
    """
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


@contextmanager
def gathered(parameters: Sequence[torch.Tensor]) -> Iterator[None]:
    """Hold parameters whole on every rank, for reading; every rank must enter.

    Args:
        parameters: Partitioned by ZeRO-3 or not.

    Yields:
        Nothing; inside, `.data` of each is whole.
    """
    with _whole(parameters, writer=None):
        yield


@contextmanager
def writable(parameters: Sequence[torch.Tensor]) -> Iterator[None]:
    """Hold parameters whole on every rank, for writing the same on each; every rank must enter.

    Args:
        parameters: Partitioned by ZeRO-3 or not.

    Yields:
        Nothing; what rank zero has written inside is kept.
    """
    with _whole(parameters, writer=0):
        yield


def stored_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Give every parameter and persistent buffer; one that two modules share is there once, under its first name.

    Args:
        model: Partitioned by ZeRO-3 or not.

    Returns:
        Name -> tensor as this rank holds it; `full_shape` tells its whole shape.
    """
    stored = set(model.state_dict(keep_vars=True))
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return {**dict(model.named_parameters()), **buffers}


def stream(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Give tensors whole, one at a time; every rank must run to the end.

    Args:
        tensors: Partitioned by ZeRO-3 or not.

    Yields:
        Name and whole tensor, which is given back before the next one comes.
    """
    for name, tensor in tensors.items():
        with gathered([tensor]):
            yield name, tensor.detach()


@contextmanager
def streamed(tensors: Mapping[str, torch.Tensor]) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
    """Hold a stream that runs to its end whatever happens, because every other rank takes part in each step of it.

    Args:
        tensors: Partitioned by ZeRO-3 or not.

    Yields:
        What `stream` gives.
    """
    tensors_left = stream(tensors)
    try:
        yield tensors_left
    finally:
        for _ in tensors_left:
            pass


@contextmanager
def _whole(parameters: Sequence[torch.Tensor], *, writer: int | None) -> Iterator[None]:
    """Hold parameters whole on every rank; what the writer has changed, if there is one, is spread afterwards."""
    partitioned = [parameter for parameter in parameters if _is_partitioned(parameter)]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=writer):
        yield


def _is_partitioned(parameter: torch.Tensor) -> bool:
    # DeepSpeed marks its parameters with attributes of their own; there is no type to ask for.
    return hasattr(parameter, "ds_id")
