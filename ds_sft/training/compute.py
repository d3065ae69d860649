"""How much of its device a run uses: the operations that its batches need, and the peak that was measured."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ds_sft.config.arguments import TrainingArguments
from ds_sft.contracts import IGNORE_INDEX, Family, ModelShape, Work
from ds_sft.data.collate import Batch
from ds_sft.model.costs import training_flops, work_of
from ds_sft.save.tensors import DTYPES

_SMALLEST = 128
_LARGEST = {"cpu": 2048, "cuda": 8192}
_TRIES = {"cpu": 3, "cuda": 10}
_BUDGET_SECONDS = {"cpu": 0.1, "cuda": 0.5}
"""A size that would take longer is left out: what a small product reaches must do there."""


@dataclass(frozen=True)
class Compute:
    """What MFU is made of on one rank.

    Args:
        peak: Operations a second of a matrix product, as measured.
        shape: Of the model.
        is_encoder_decoder: Whether targets have a length of their own.
        is_frozen: Whether adapters train and not the weights.
    """

    peak: float
    shape: ModelShape
    is_encoder_decoder: bool
    is_frozen: bool

    def flops_of(self, batch: Batch) -> float:
        """Count the operations that a micro-batch needs; padding, fillers and recomputation need none.

        Args:
            batch: From a collator, on the CPU, where its lengths can be read without waiting for a device.

        Returns:
            A multiplication and an addition are two.
        """
        work = _work_of(batch, is_encoder_decoder=self.is_encoder_decoder)
        return training_flops(self.shape, work, is_frozen=self.is_frozen)


def compute_of(
    family: Family, config: Mapping[str, Any], args: TrainingArguments, *, is_frozen: bool
) -> Compute | None:
    """Measure the device, and count the model.

    Args:
        family: Card of the model.
        config: Content of its config.json, with the vocabulary grown.
        args: Of the run.
        is_frozen: Whether adapters train and not the weights.

    Returns:
        None where nothing is logged.
    """
    peak = peak_of(args)
    if peak is None:
        return None
    return Compute(peak, family.shape_of(config), family.is_encoder_decoder, is_frozen)


def peak_of(args: TrainingArguments) -> float | None:
    """Give the peak of this rank's device in the precision of the run; the first call measures it, under a second.

    Args:
        args: Of the run.

    Returns:
        Operations a second; None where nothing is logged, or the device is of a kind that was never tried.
    """
    if args.logging_strategy == "no" or args.device.type not in _LARGEST:
        return None
    return _measured_peak(args.device, DTYPES[precision_of(args)])


def precision_of(args: TrainingArguments) -> str:
    """Tell what the matrix products of a run are made in.

    Args:
        args: Of the run.

    Returns:
        `bf16`, `fp16` or `fp32`.
    """
    return next((name for name in ("bf16", "fp16") if getattr(args, name)), "fp32")


def _work_of(batch: Batch, *, is_encoder_decoder: bool) -> Work:
    is_supervised = batch["labels"].ne(IGNORE_INDEX)
    if "offsets" in batch:
        is_real = is_supervised.any()
        read, answered = (batch.get(name, batch["offsets"]).diff() * is_real for name in ("offsets", "decoder_offsets"))
    else:
        read, answered = batch["attention_mask"].sum(dim=1) * is_supervised.any(dim=1), is_supervised.sum(dim=1)
    num_supervised = int(is_supervised.sum())
    if is_encoder_decoder:
        return work_of(answered.tolist(), read.tolist(), num_supervised=num_supervised)
    return work_of(read.tolist(), num_supervised=num_supervised)


@cache
def _measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply square matrices of growing size, and give the best rate."""
    peak, size = 0.0, _SMALLEST
    while size <= _LARGEST[device.type]:
        seconds = _seconds_of_product(size, device, dtype)
        peak = max(peak, 2 * size**3 / seconds)
        size *= 2
        if 2**3 * seconds * _TRIES[device.type] > _BUDGET_SECONDS[device.type]:
            break
    if device.type == "cuda":
        # The matrices are in no one's way then.
        torch.cuda.empty_cache()
    return peak


def _seconds_of_product(size: int, device: torch.device, dtype: torch.dtype) -> float:
    """Time one product, the best of some; the random numbers of training are not touched, and zeros would be faster."""
    generator = torch.Generator(device).manual_seed(0)
    matrix = torch.randn(size, size, generator=generator, device=device, dtype=dtype)
    product = torch.empty_like(matrix)
    seconds = []
    for _ in range(_TRIES[device.type]):
        started = _now(device)
        torch.mm(matrix, matrix, out=product)
        seconds.append(_now(device) - started)
    return min(seconds)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
