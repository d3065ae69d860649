"""What one fresh process measures: the gradients of an epoch, or its time and memory."""

import ctypes
import gc
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from benchmarks.counting import clock, product_peak
from benchmarks.variants import Run, Variant
from benchmarks.workloads import Samples
from ds_sft.contracts import IGNORE_INDEX

MIB = 2**20


@dataclass(frozen=True)
class Gradients:
    """The gradients of a whole epoch, as the batches of a variant give them.

    Args:
        file: Parameter name -> gradient of the mean loss over all supervised tokens, as torch saves it.
        num_places: Places for tokens in all batches, padding too.
        num_targets: Supervised tokens of the epoch.
    """

    file: Path
    num_places: int
    num_targets: int


@dataclass(frozen=True)
class Timed:
    """An epoch of training, optimizer and trainer included.

    Args:
        seconds: The time that counts: of the processor on a CPU, of the wall on a GPU.
        wall_seconds: Of the wall.
        startup_seconds: To make model and trainer, without imports.
        peak_mib: Most memory above that of the model.
        steps: Of the optimizer.
        peak_flops: Of a matrix product right before, operations a second.
    """

    seconds: float
    wall_seconds: float
    startup_seconds: float
    peak_mib: float
    steps: int
    peak_flops: float


def gradients_of_epoch(variant: Variant, run: Run, into: Path) -> Gradients:
    """Sum the gradients of all batches of an epoch, each batch made and asked as the variant's trainer does.

    Args:
        variant: Way to train.
        run: What for; always in fp32 here.
        into: File for the gradients.

    Returns:
        Where they are.
    """
    trainer = _trainer(variant, replace(run, precision="fp32"))
    model: Any = trainer.model
    total, num_places, found = int(run.samples.num_supervised().sum()), 0, 0
    for batch in _batches(trainer):
        labels = batch["labels"]
        num_targets = int(labels.ne(IGNORE_INDEX).sum())
        found += num_targets
        num_places += batch["input_ids"].numel() + labels.numel() * run.samples.has_sources
        loss: Any = trainer.compute_loss(model, trainer._prepare_inputs(batch))  # noqa: SLF001  # as its own loop does
        (loss * num_targets / total).backward()
    torch.save({name: weight.grad.cpu() for name, weight in model.named_parameters()}, into)
    return Gradients(into, num_places, found)


def timed_epoch(variant: Variant, run: Run) -> Timed:
    """Train an epoch.

    Args:
        variant: Way to train.
        run: What for.

    Returns:
        What it took.
    """
    device = "cpu" if run.on_cpu else "cuda"
    peak_flops = product_peak(device, run.precision)
    started = clock(device)
    trainer = _trainer(variant, run)
    startup = clock(device) - started
    _warm_up(trainer)
    level = _start_of_peak(device)
    started, wall = clock(device), time.perf_counter()
    trainer.train()
    seconds, wall = clock(device) - started, time.perf_counter() - wall
    return Timed(seconds, wall, startup, (_peak(device) - level) / MIB, trainer.state.global_step, peak_flops)


def error_of(found: Gradients, expected: Gradients) -> float:
    """Compare gradients.

    Args:
        found: Of one variant.
        expected: Of the baseline.

    Returns:
        The largest difference of a parameter's gradient, as a share of the norm of what is expected; infinity when the
        parameters or the number of targets are not the same.
    """
    here, there = torch.load(found.file), torch.load(expected.file)
    if set(here) != set(there) or found.num_targets != expected.num_targets:
        return float("inf")
    return max(float((here[name] - slope).norm() / slope.norm()) for name, slope in there.items())


def _trainer(variant: Variant, run: Run) -> Trainer:
    if run.on_cpu:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    made = variant.trainer(replace(run, folder=Path(tempfile.mkdtemp(dir=run.folder))))
    model: Any = made.model
    model.to(made.args.device).train()
    return made


def _batches(trainer: Trainer) -> Any:
    """Give the batches of an epoch one by one, as the trainer's own loop takes them."""
    loader = iter(trainer.get_train_dataloader())
    device = trainer.args.device
    while taken := trainer.get_batch_samples(loader, 1, device)[0]:
        yield taken[0]


def _warm_up(trainer: Trainer) -> None:
    """Let one short sample touch the libraries: their pages are no memory of training."""
    samples: Any = trainer.train_dataset
    shortest = int(samples.num_tokens().sum(axis=0).argmin())
    one = Samples([samples[shortest]], has_sources=samples.has_sources)
    model: Any = trainer.model
    trainer.train_dataset = one
    for batch in _batches(trainer):
        loss: Any = trainer.compute_loss(model, trainer._prepare_inputs(batch))  # noqa: SLF001  # as above
        loss.backward()
    model.zero_grad(set_to_none=True)
    trainer.train_dataset = samples


def _start_of_peak(device: str) -> float:
    """Give the memory in use in bytes, and let its peak be counted from here."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _resident("VmRSS")


def _peak(device: str) -> float:
    return float(torch.cuda.max_memory_allocated()) if device == "cuda" else _resident("VmHWM")


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith(f"{field}:"))
