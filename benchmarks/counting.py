"""Useful floating point operations of an epoch, and what this machine can do of them."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.workloads import Samples, Workload

_PASSES = 3
"""Forward, and twice as much backward."""
_SIZE = {"cpu": 2048, "cuda": 8192}
_TRIES = {"cpu": 4, "cuda": 30}


def useful_flops(workload: Workload, samples: Samples) -> float:
    """Count the operations of the matrix products that training on these samples needs, forward and backward.

    No padding, no masked half of causal scores, no head on tokens without supervision, no recomputation; the optimizer,
    norms and softmax are left out.

    Args:
        workload: Shape of the model.
        samples: Of an epoch.

    Returns:
        A multiplication and an addition are two.
    """
    sources, targets = samples.num_tokens().astype(np.float64)
    products = _t5 if samples.has_sources else _yuan2
    supervised = float(samples.num_supervised().sum())
    width = float(workload.shape["d_model" if samples.has_sources else "hidden_size"])
    head = supervised * width * float(workload.shape["vocab_size"])
    return 2 * _PASSES * (head + products(workload.shape, sources, targets))


def _yuan2(shape: Mapping[str, Any], _sources: Any, tokens: Any) -> float:
    """Count the multiplications of the layers: attention, the filter's two pairs of taps, and the three-part MLP."""
    width = shape["hidden_size"]
    of_token = 4 * width**2 + 2 * width**2 + 3 * width * shape["intermediate_size"]
    seen = tokens * (tokens + 1) / 2
    return float(shape["num_hidden_layers"] * (of_token * tokens + 2 * width * seen).sum())


def _t5(shape: Mapping[str, Any], sources: Any, targets: Any) -> float:
    """Count the multiplications of encoder and decoder; keys and values of cross-attention are made of the source."""
    width, inner = shape["d_model"], shape["d_kv"] * shape["num_heads"]
    attention, feed_forward = 4 * width * inner, 2 * width * shape["d_ff"]
    encoder = (attention + feed_forward) * sources + 2 * inner * sources**2
    decoder = (attention + feed_forward) * targets + 2 * inner * targets * (targets + 1) / 2
    cross = 2 * width * inner * (targets + sources) + 2 * inner * targets * sources
    return float(shape["num_layers"] * (encoder + decoder + cross).sum())


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
