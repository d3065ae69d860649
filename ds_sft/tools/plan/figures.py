"""Steps, tokens, disk and time of a run, as far as its data file can be read."""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

from ds_sft.data.workers import num_cores
from ds_sft.errors import MissingInputError
from ds_sft.model.costs import Disk, disk_of, most_checkpoints, num_parameters, training_flops, work_of
from ds_sft.tools.findings import Findings
from ds_sft.tools.inputs import read_inputs
from ds_sft.tools.plan.job import Job
from ds_sft.tools.plan.states import Load, num_trained
from ds_sft.tools.validate import find_everywhere

log = logging.getLogger(__name__)

FULLNESS = 0.97
"""Share of a micro-batch that packing fills: 97 to 99 % where one budget binds (benchmarks/results/packing.json)."""
UTILISATION = (0.2, 0.5)
"""Shares of the peak that training is taken to reach."""


@dataclass(frozen=True)
class Data:
    """The samples of an epoch.

    Args:
        sources: Tokens of each source; empty without an encoder.
        targets: Tokens of each target, not in the order of the sources.
        num_supervised: Tokens with a label.
    """

    sources: list[int]
    targets: list[int]
    num_supervised: int

    @property
    def num_tokens(self) -> int:
        """Tokens on both sides."""
        return sum(self.sources) + sum(self.targets)


@dataclass(frozen=True)
class Time:
    """How much there is to compute.

    Args:
        steps: Of the optimizer; None where nobody can tell.
        flops_of_step: Operations of all ranks together.
    """

    steps: int | None
    flops_of_step: float

    def hours(self, *, num_ranks: int, peak_flops: float) -> tuple[float, float] | None:
        """Give the fewest and the most hours.

        Args:
            num_ranks: That share the work.
            peak_flops: Of one, a second.

        Returns:
            None where steps are not known.
        """
        if self.steps is None:
            return None
        hours = self.steps * self.flops_of_step / (num_ranks * peak_flops) / 3600
        return hours / max(UTILISATION), hours / min(UTILISATION)


def data_of(job: Job) -> Data | str:
    """Read the data file with all cores, as `ds-sft validate` does.

    Args:
        job: The run.

    Returns:
        Its samples, or why they cannot be counted.
    """
    if not Path(job.data.data_path).expanduser().is_file():
        return f"{job.data.data_path} is not there"
    if not Path(job.model.model_name_or_path).expanduser().is_dir():
        return f"the tokenizer of {job.model.model_name_or_path} is not on this machine"
    flags = ["--model_name_or_path", job.model.model_name_or_path, "--data_path", job.data.data_path]
    flags += ["--model_max_length", str(job.max_tokens), "--num_data", str(job.data.num_data)]
    flags += [f"--{mode}_loss" for mode in job.data.loss_modes()] + ["--layout", job.data.layout]
    try:
        inputs = read_inputs(flags, verb="plan")
    except MissingInputError as error:
        return str(error)
    return _data(find_everywhere(inputs, num_workers=num_cores()))


def _data(findings: Findings) -> Data:
    lengths = {side: sorted(counts.elements()) for side, counts in findings.lengths.items()}
    targets = lengths.get("target") or lengths.get("sequence", [])
    return Data(lengths.get("source", []), targets, findings.counters["tokens_supervised"])


def load_of(job: Job, data: Data | None) -> Load:
    """Give what a rank computes at a time: full budgets, or with data what fills the tighter one of them.

    Args:
        job: The run.
        data: Its samples.

    Returns:
        The load.
    """
    load = job.load
    if data is None or not data.targets:
        return load
    sides = [data.sources, data.targets] if data.sources else [data.targets]
    sums = [sum(side) for side in sides]
    num_batches = max(1.0, *(total / budget for total, budget in zip(sums, job.budgets, strict=True)))
    *source, target = (math.ceil(total / num_batches) for total in sums)
    return replace(
        load,
        source_tokens=sum(source),
        target_tokens=target,
        supervised_tokens=math.ceil(data.num_supervised / num_batches),
        longest=max(map(max, sides)),
    )


def time_of(job: Job, data: Data | None) -> Time:
    """Count steps and operations.

    Args:
        job: The run.
        data: Its samples; without them, documents of the greatest length are taken, every token supervised.

    Returns:
        The figures of full micro-batches.
    """
    load, accumulation = load_of(job, data), job.run.gradient_accumulation_steps
    micro_batches = accumulation * job.num_ranks
    if data is None or not data.targets:
        targets = _full(load.target_tokens, job.max_tokens)
        sources = _full(load.source_tokens, job.max_tokens)[: len(targets)]
        work = work_of(targets, sources, num_supervised=load.supervised_tokens)
        steps = job.run.max_steps if job.run.max_steps > 0 else None
        flops = training_flops(job.shape, work, is_frozen=job.adapters is not None) * micro_batches
        return Time(steps, flops)
    # Sources and targets are sorted apart: lengths of a pair go together, so this is near.
    work = work_of(data.targets, data.sources, num_supervised=data.num_supervised)
    sides = [data.sources, data.targets] if data.sources else [data.targets]
    filled = max(sum(side) / budget for side, budget in zip(sides, job.budgets, strict=True)) / FULLNESS
    steps_of_epoch = max(1, math.ceil(filled / micro_batches))
    steps = job.run.max_steps if job.run.max_steps > 0 else math.ceil(steps_of_epoch * job.run.num_train_epochs)
    return Time(steps, training_flops(job.shape, work, is_frozen=job.adapters is not None) / steps_of_epoch)


def disk_of_job(job: Job) -> Disk:
    """Count what the run writes.

    Args:
        job: The run.

    Returns:
        As training itself counts it before it starts.
    """
    adapters, trained = job.adapters, num_trained(job.shape, job.adapters)
    return disk_of(
        trained=trained,
        exported=trained if adapters else num_parameters(job.shape),
        dtype=job.run.save_dtype or ("fp32" if adapters else "bf16"),
        # Without a limit nobody can tell yet how many there will be.
        num_checkpoints=most_checkpoints(job.run.save_total_limit or 1, has_best=False)
        if job.run.save_strategy != "no"
        else 0,
        is_model_only=job.run.save_only_model,
        has_averages="adam" in job.run.optim or bool(job.run.deepspeed),
    )


def _full(tokens: int, longest: int) -> list[int]:
    """Cut tokens into documents of the greatest length and a rest."""
    return [longest] * (tokens // longest) + ([tokens % longest] if tokens % longest else [])
