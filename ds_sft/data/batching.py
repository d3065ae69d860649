"""In which order samples are trained: a pure function of seed and epoch, however many ranks share the work."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from ds_sft.data.fillers import filler_of
from ds_sft.errors import ConfigError

Order = npt.NDArray[np.int64]

_BATCHES_SORTED_TOGETHER = 100
_PARTS_SORTED_APART = 4


class RankBatches(Sampler[list[int]]):
    """The micro-batches of one rank; all ranks together train each sample of an epoch exactly once.

    A step takes the next `batch_size * accumulation * world_size` samples of the epoch's order, its micro-steps the
    next `batch_size * world_size` of them, and the ranks a share each, in the order of their numbers. So a step has the
    same samples however they are split. What is left for the last micro-step of an epoch is spread evenly: all ranks
    have equally many rows then too, at least one, and those that would have one row less get a filler in its place.
    One rank alone never needs any.

    Args:
        order: Gives the samples of an epoch, each once.
        num_samples: How many they are.
        batch_size: Samples that one rank takes at a time.
        accumulation: Micro-steps of a step.
        rank: Whose batches these are.
        world_size: Number of ranks.
        drop_last: Whether the samples behind an epoch's last full step are left out.

    Raises:
        ConfigError: When that leaves no step at all.
    """

    def __init__(
        self,
        *,
        order: Callable[[int], Order],
        num_samples: int,
        batch_size: int,
        accumulation: int,
        rank: int,
        world_size: int,
        drop_last: bool,
    ) -> None:
        self._order = order
        self._rank = rank
        self._world_size = world_size
        self._micro_step = batch_size * world_size
        self._num_samples = num_samples
        self._epoch = 0
        if drop_last:
            self._num_samples = _in_full_steps(num_samples, self._micro_step * accumulation, what="samples")

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is trained next.

        Args:
            epoch: From 0.
        """
        self._epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self._num_samples / self._micro_step)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order(self._epoch)[: self._num_samples]
        for start in range(0, len(order), self._micro_step):
            samples = order[start : start + self._micro_step]
            first, behind = (len(samples) * rank // self._world_size for rank in (self._rank, self._rank + 1))
            num_rows = math.ceil(len(samples) / self._world_size)
            fillers = [filler_of(int(order[-1]))] * (num_rows - (behind - first))
            yield samples[first:behind].tolist() + fillers


class MicroBatches(Protocol):
    """What `PackedRankBatches` wants of a plan: the samples of each micro-batch."""

    def __getitem__(self, number: int, /) -> list[int]: ...


class PackedRankBatches(Sampler[list[int]]):
    """The micro-batches of one rank, where they were filled beforehand: all ranks together train each exactly once.

    A step takes the next `accumulation * world_size` micro-batches of the epoch's plan, and each of its micro-steps one
    for each rank, in the order of their numbers. So a step has the same samples however it is split. Where the last
    micro-step of an epoch has less than one for each rank, the others get a filler.

    Args:
        plan: Gives the micro-batches of an epoch.
        num_micro_batches: How many they are, the same in every epoch.
        filler: Number of the filler.
        accumulation: Micro-steps of a step.
        rank: Whose micro-batches these are.
        world_size: Number of ranks.
        drop_last: Whether the micro-batches behind an epoch's last full step are left out.

    Raises:
        ConfigError: When that leaves no step at all.
    """

    def __init__(
        self,
        *,
        plan: Callable[[int], MicroBatches],
        num_micro_batches: int,
        filler: int,
        accumulation: int,
        rank: int,
        world_size: int,
        drop_last: bool,
    ) -> None:
        self._plan = plan
        self._num_micro_batches = num_micro_batches
        self._filler = filler
        self._rank = rank
        self._world_size = world_size
        self._epoch = 0
        if drop_last:
            step = accumulation * world_size
            self._num_micro_batches = _in_full_steps(num_micro_batches, step, what="micro-batches")

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is trained next.

        Args:
            epoch: From 0.
        """
        self._epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self._num_micro_batches / self._world_size)

    def __iter__(self) -> Iterator[list[int]]:
        plan = self._plan(self._epoch)
        for number in range(self._rank, len(self) * self._world_size, self._world_size):
            yield plan[number] if number < self._num_micro_batches else [self._filler]


def shuffled_order(num_samples: int, *, seed: int, epoch: int) -> Order:
    """Shuffle the samples of an epoch, as accelerate's sampler does from the same seed.

    Args:
        num_samples: How many there are.
        seed: Of the run.
        epoch: From 0.

    Returns:
        Each sample once, shape [samples].
    """
    generator = torch.Generator().manual_seed(seed + epoch)
    order: Order = torch.randperm(num_samples, generator=generator).numpy()
    return order


def group_by_length_order(lengths: npt.NDArray[np.integer[Any]], *, batch_size: int, seed: int, epoch: int) -> Order:
    """Shuffle the samples of an epoch so that those of a batch are of nearly the same length.

    A hundred batches of shuffled samples at a time (a quarter of them, where they are few) are sorted by length and cut
    into batches; then the batches are shuffled, and the samples within each of them, so that no rank always gets the
    longest. The batch with the longest sample of all comes first: a run that does not fit into memory ends at once.

    Args:
        lengths: Of each sample, shape [samples].
        batch_size: Samples of like length. Those of a whole step make the order independent of the number of ranks.
        seed: Of the run.
        epoch: From 0.

    Returns:
        Each sample once, shape [samples]; the batch that is not full, if there is one, comes last.
    """
    generator = generator_of(seed, epoch)
    order = generator.permutation(len(lengths))
    longest = int(np.argmax(lengths[order]))
    order[[0, longest]] = order[[longest, 0]]
    num_full = len(order) // batch_size * batch_size
    full, rest = order[:num_full], order[num_full:]
    num_together = max(1, min(_BATCHES_SORTED_TOGETHER, num_full // batch_size // _PARTS_SORTED_APART))
    together = np.arange(num_full) // (batch_size * num_together)
    batches = full[np.lexsort((lengths[full], together))].reshape(-1, batch_size)
    generator.shuffle(batches)
    batches = np.take_along_axis(batches, generator.random_sample(batches.shape).argsort(axis=1), axis=1)
    if num_full:
        first = int(np.argmax((batches == order[0]).any(axis=1)))
        batches[[0, first]] = batches[[first, 0]]
    return np.concatenate([batches.ravel(), rest])


def generator_of(seed: int, epoch: int) -> np.random.RandomState:
    """Give numpy's old generator: its numbers never change with a version, so a resumed run finds the same order.

    Args:
        seed: Of the run.
        epoch: From 0.

    Returns:
        A generator of its own.
    """
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch])))


def _in_full_steps(num: int, step: int, *, what: str) -> int:
    full = num - num % step
    if not full:
        raise ConfigError(
            f"dataloader_drop_last: must leave a full step, but there are {num} {what}, and a step takes {step}; leave "
            "it out, or lower --gradient_accumulation_steps"
        )
    return full
