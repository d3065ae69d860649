"""The ways to spread a run over GPUs, from the cheapest to the slowest, and the first one that fits."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ds_sft.errors import ConfigError
from ds_sft.tools.plan.engine import Engine, engine_of
from ds_sft.tools.plan.figures import Data, load_of
from ds_sft.tools.plan.job import Job, with_micro_batch
from ds_sft.tools.plan.memory import Memory, memory_of
from ds_sft.tools.recipes import config_folder
from ds_sft.zero.settings import read_deepspeed_config

RESERVED = 1e9
"""Bytes of a GPU that are left for the CUDA context, libraries and fragments; not measured here."""
WITHOUT = "no DeepSpeed"
_FILES = ("zero1.json", "zero2.json", "zero3.json", "zero2_offload.json", "zero3_offload.json")
_MOST_GPUS = 4096
_DIVIDES_WEIGHTS = 3


@dataclass(frozen=True)
class Choice:
    """One way.

    Args:
        name: In the table.
        job: The run in this way.
        engine: DeepSpeed's settings.
        memory: Of one rank.
        file: Of DeepSpeed's settings, below ds_configs/; None for the recipe's own, or for none.
        is_asked: Whether it is the recipe's.
    """

    name: str
    job: Job
    engine: Engine | None
    memory: Memory
    file: str | None
    is_asked: bool

    @property
    def host_memory(self) -> float:
        """Bytes in the RAM of one host."""
        return self.memory.host * self.job.num_ranks / self.job.num_hosts

    def short(self, gpu_memory: float) -> float:
        """Give the bytes that are missing; 0 or less when it fits."""
        return self.memory.peak + RESERVED - gpu_memory


def choices(job: Job, data: Data | None) -> list[Choice]:
    """Give the ways for the micro-batch that the run has.

    Args:
        job: The run.
        data: Its samples.

    Returns:
        One each; the recipe's own settings in the place of the shipped ones that are like them.
    """
    return list(_choices(job, data))


def cheapest(job: Job, data: Data | None, *, gpu_memory: float) -> Choice | None:
    """Find the first way that fits: nothing moved off the GPU before a low stage before large micro-batches.

    Args:
        job: The run; a step keeps its tokens, as far as micro-batches divide them.
        data: Its samples.
        gpu_memory: Bytes of one GPU.

    Returns:
        None when nothing fits.
    """
    for place in range(len(choices(job, data))):
        for smaller in _smaller(job):
            found = choices(smaller, data)[place]
            if found.short(gpu_memory) <= 0:
                return found
    return None


def smallest(job: Job, data: Data | None) -> Choice:
    """Give the way that needs least.

    Args:
        job: The run.
        data: Its samples.

    Returns:
        With the smallest micro-batch.
    """
    every = [choice for smaller in _smaller(job) for choice in choices(smaller, data)]
    return min(every, key=lambda choice: choice.memory.peak)


def enough_gpus(job: Job, data: Data | None, *, gpu_memory: float) -> int | None:
    """Find out how many GPUs it takes.

    Args:
        job: The run.
        data: Its samples.
        gpu_memory: Bytes of one.

    Returns:
        The fewest, doubled from those that there are; None where no number is enough.
    """
    num = job.num_ranks
    while (num := 2 * num) <= _MOST_GPUS:
        if smallest(replace(job, num_ranks=num, num_hosts=1), data).short(gpu_memory) <= 0:
            return num
    return None


def _choices(job: Job, data: Data | None) -> Iterator[Choice]:
    is_quantised = job.adapters is not None and job.adapters.is_quantised
    ways: list[tuple[str | None, Engine | None]] = [(None, None)]
    for file in _FILES:
        path = config_folder() / file
        engine = engine_of(read_deepspeed_config(path), width=job.shape.width, path=path)
        # Weights in 4 bits cannot be divided.
        if not (is_quantised and engine.stage == _DIVIDES_WEIGHTS):
            ways.append((file, engine))
    names = [engine.name if engine else WITHOUT for _, engine in ways]
    asked = job.engine.name if job.engine else WITHOUT
    if asked not in names:
        ways.append((None, job.engine))
        names.append(asked)
    for name, (place, settings) in zip(names, ways, strict=True):
        own = job.engine if name == asked else settings
        memory = memory_of(job.shape, load_of(job, data), adapters=job.adapters, engine=own, num_ranks=job.num_ranks)
        yield Choice(name, job, own, memory, None if name == asked else place, name == asked)


def _smaller(job: Job) -> Iterator[Job]:
    """Halve micro-batches down to one sequence, first without and then with checkpointing; a step keeps its size."""
    step = math.ceil(job.run.gradient_accumulation_steps * (job.recipe_gpus or job.num_ranks) / job.num_ranks)
    largest = max(1, min(job.budgets) // job.max_tokens)
    for is_checkpointing in sorted({bool(job.run.activation_checkpointing), True}):
        for halvings in range(int(math.log2(largest)) + 1):
            divided_by = 2**halvings
            yield with_micro_batch(
                job, divided_by=divided_by, accumulation=step * divided_by, is_checkpointing=is_checkpointing
            )


def parse_size(told: str) -> float:
    """Read a size.

    Args:
        told: Such as `24GB` or `80 GiB`.

    Returns:
        Bytes.

    Raises:
        ConfigError: When it is none.
    """
    units = {"GB": 1e9, "GIB": 2**30, "G": 1e9, "MB": 1e6, "MIB": 2**20}
    text = told.strip().upper().replace(" ", "")
    unit = next((name for name in units if text.endswith(name)), "")
    number = text.removesuffix(unit)
    try:
        size = float(number) * units.get(unit, 0)
    except ValueError:
        size = 0.0
    if not 0 < size < math.inf:
        raise ConfigError(f"gpu_memory: must be a size such as 24GB or 80GiB, but is {told!r}; give one of those")
    return size
