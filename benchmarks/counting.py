"""Useful floating point operations of an epoch, and what this machine can do of them."""

import time

import torch

from benchmarks.workloads import Samples, Workload
from ds_sft.families import family_named
from ds_sft.model.costs import training_flops, work_of

_SIZE = {"cpu": 2048, "cuda": 8192}
_TRIES = {"cpu": 4, "cuda": 30}


def useful_flops(workload: Workload, samples: Samples) -> float:
    """Count the operations of the matrix products that training on these samples needs, forward and backward.

    What samples share counts once.

    Args:
        workload: Shape of the model.
        samples: Of an epoch.

    Returns:
        As `ds_sft.model.costs.training_flops` counts them.
    """
    sources, targets = samples.num_tokens().tolist()
    supervised, repeated = int(samples.num_supervised().sum()), samples.shared().tolist()
    shape = family_named(workload.family).shape_of(workload.shape)
    whole = work_of(targets, sources if samples.has_sources else (), num_supervised=supervised)
    return training_flops(shape, whole) - training_flops(shape, work_of(repeated, num_supervised=0))


def product_peak(device: str, precision: str) -> float:
    """Measure a product of square matrices.

    Args:
        device: `cpu`, on one thread, or `cuda`.
        precision: `fp32` or `bf16`.

    Returns:
        Operations a second of processor time on a CPU, of wall time on a GPU; the best of some tries.
    """
    size, dtype = _SIZE[device], torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(_TRIES[device]):
        started = clock(device)
        torch.mm(left, right)
        seconds.append(clock(device) - started)
    return float(2 * size**3 / min(seconds))


def clock(device: str) -> float:
    """Tell the time that counts.

    Args:
        device: `cpu` or `cuda`.

    Returns:
        Seconds of processor time; on a GPU of wall time, when it has done all its work.
    """
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()
