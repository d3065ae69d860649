"""Brings partitioned parameters together, a few at a time."""

from collections.abc import Iterator, Sequence
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
    partitioned = [parameter for parameter in parameters if _is_partitioned(parameter)]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=None):
        yield


def stream_parameters(model: nn.Module, *, keep: bool, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Give every parameter and persistent buffer, gathered one at a time; every rank must run to the end.

    A parameter that two modules share is given once, under the name of the first.

    Args:
        model: Partitioned by ZeRO-3 or not.
        keep: Whether this rank wants the tensors; others only take part in the gathering and are given nothing.
        dtype: Floating-point tensors are converted to it.

    Yields:
        Name, and a copy of the tensor in host memory.
    """
    parameters = dict(model.named_parameters())
    stored = set(model.state_dict(keep_vars=True))
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    for name, tensor in {**parameters, **buffers}.items():
        with gathered([tensor]):
            if keep:
                wanted = dtype if tensor.is_floating_point() else tensor.dtype
                yield name, tensor.detach().to(device="cpu", dtype=wanted, copy=True).contiguous()


def _is_partitioned(parameter: torch.Tensor) -> bool:
    # DeepSpeed marks its parameters with attributes of their own; there is no type to ask for.
    return hasattr(parameter, "ds_id")
