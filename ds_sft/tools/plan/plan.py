"""`ds-sft plan`: what a run will need, whether that fits, and the cheapest way that does."""

import json
import logging
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_sft.errors import ConfigError, UsageError
from ds_sft.tools.plan.choices import RESERVED, Choice, cheapest, choices, enough_gpus, parse_size, smallest
from ds_sft.tools.plan.figures import Data, data_of, disk_of_job, time_of
from ds_sft.tools.plan.job import Job, read_job
from ds_sft.tools.plan.table import Plan, as_dict, as_lines, batch_equation, missing, told_switch
from ds_sft.tools.plan.write import write_recipe

log = logging.getLogger(__name__)

_GB, _TERA = 1e9, 1e12


@dataclass(frozen=True)
class Machines:
    """Where the run is to be.

    Args:
        num_gpus: In all; None for those that a shipped recipe is for, or one.
        gpu_memory: Of one, such as `24GB`; None when only figures are asked for.
        num_hosts: That share the GPUs.
        peak_tflops: Of one GPU in the numbers of the run, operations a second / 1e12.
    """

    num_gpus: int | None = None
    gpu_memory: str | None = None
    num_hosts: int = 1
    peak_tflops: float = 300.0


def plan(arguments: Sequence[str], machines: Machines, *, is_json: bool) -> Iterator[str]:
    """Foretell a run.

    Args:
        arguments: A recipe's file or name, then flags of training.
        machines: Where.
        is_json: One JSON object instead of text.

    Yields:
        Lines for stdout.

    Raises:
        ConfigError: When the run does not fit, with what is missing and the nearest one that fits.
    """
    job = read_job(arguments, num_gpus=machines.num_gpus, num_hosts=machines.num_hosts)
    gpu_memory = parse_size(machines.gpu_memory) if machines.gpu_memory else None
    found = data_of(job)
    data = None if isinstance(found, str) else found
    ways = choices(job, data)
    whole = Plan(job, ways, gpu_memory, found, time_of(job, data), disk_of_job(job), machines.peak_tflops * _TERA)
    if is_json:
        yield json.dumps(as_dict(whole))
    else:
        yield from as_lines(whole)
    asked = next(choice for choice in ways if choice.is_asked)
    if gpu_memory is not None and asked.short(gpu_memory) > 0:
        raise ConfigError(
            f"gpu_memory: must hold the run, but {asked.name} needs {_needed(asked, gpu_memory)}; "
            f"{_nearest(job, data, gpu_memory)}"
        )
    if job.recipe_gpus:
        log.info("next: ds-sft init %s -o my.yaml", job.words.name)
    else:
        log.info("next: ds-sft train %s", shlex.join(arguments))


def refuse_fit_without_size(fit: str | None, *, gpu_memory: str | None, output: Path | None, is_json: bool) -> None:
    """Refuse options that would have no effect.

    Args:
        fit: Size to fit into; None when the run is only looked at.
        gpu_memory: Size that the run is held against.
        output: File for a recipe.
        is_json: Whether JSON was asked for.

    Raises:
        UsageError: For each of them.
    """
    faults = []
    if output is not None and not fit:
        faults.append(f"output: needs --fit, but only {output} is given; add --fit 24GB")
    if fit and gpu_memory:
        faults.append(f"gpu_memory: must not stand beside --fit {fit}, but is {gpu_memory}; drop one of them")
    if fit and is_json:
        faults.append("json: tells a plan, but --fit was asked for; plan the recipe that -o writes with --json")
    if faults:
        raise UsageError(*faults)


def fit(arguments: Sequence[str], machines: Machines, *, output: Path | None) -> Iterator[str]:
    """Find the cheapest way that fits, and write it as a recipe.

    Args:
        arguments: A recipe's file or name, then flags of training.
        machines: Where; with the memory of a GPU.
        output: File for the recipe; None to tell it only.

    Yields:
        Lines for stdout.

    Raises:
        UsageError: Without a size to fit into.
        ConfigError: When nothing fits.
    """
    if machines.gpu_memory is None:
        raise UsageError("fit: must have a size, but has none; give one such as --fit 24GB")
    job = read_job(arguments, num_gpus=machines.num_gpus, num_hosts=machines.num_hosts)
    gpu_memory, found = parse_size(machines.gpu_memory), data_of(job)
    data = None if isinstance(found, str) else found
    chosen = cheapest(job, data, gpu_memory=gpu_memory)
    if chosen is None:
        least = smallest(job, data)
        raise ConfigError(
            f"fit: some way must fit, but the smallest, {_told(least)}, needs {_needed(least, gpu_memory)}; "
            f"{_more_gpus(job, data, gpu_memory)}"
        )
    memory = f"{chosen.memory.peak / _GB:.1f} GB on each GPU"
    yield f"{chosen.name}: {memory}, {missing(chosen, gpu_memory)} in {gpu_memory / _GB:g} GB"
    yield f"batch: {batch_equation(chosen.job)}"
    yield f"gradient checkpointing: {told_switch(chosen.job.run.activation_checkpointing)}"
    if chosen.host_memory:
        yield f"RAM: {chosen.host_memory / _GB:.1f} GB on each host"
    if output is None:
        log.info("next: the same with -o my.yaml writes it")
        return
    write_recipe(chosen, gpu_memory=gpu_memory, into=output)
    log.info("wrote %s", output)
    log.info("next: ds-sft plan %s --gpus %d --gpu_memory %s", output, job.num_ranks, machines.gpu_memory)


def _nearest(job: Job, data: Data | None, gpu_memory: float) -> str:
    """Name the cheapest way that fits, or the GPUs that it takes."""
    found = cheapest(job, data, gpu_memory=gpu_memory)
    if found is None:
        return _more_gpus(job, data, gpu_memory)
    return f"nearest that fits: {_told(found)} ({found.memory.peak / _GB:.1f} GB); --fit writes it"


def _more_gpus(job: Job, data: Data | None, gpu_memory: float) -> str:
    num = enough_gpus(job, data, gpu_memory=gpu_memory)
    if num is None:
        return "no number of such GPUs is enough: take larger ones, a smaller --model_max_length, or --lora_r 16"
    return f"nearest that fits: {num} GPUs of that size"


def _needed(choice: Choice, gpu_memory: float) -> str:
    needs = f"{choice.memory.peak / _GB:.1f} GB and {RESERVED / _GB:g} GB of reserve"
    return f"{needs}, of {gpu_memory / _GB:g} GB: {missing(choice, gpu_memory)}"


def _told(choice: Choice) -> str:
    run = choice.job.run
    checkpointing = " with gradient checkpointing" if run.activation_checkpointing else ""
    return f"{choice.name}, {choice.job.budgets[0]} tokens x {run.gradient_accumulation_steps}{checkpointing}"
