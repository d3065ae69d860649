"""Which samples share a micro-batch: equally full ones under budgets of tokens, as many in every epoch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ds_sft.data.batching import Order, generator_of

Lengths = npt.NDArray[np.integer[Any]]
"""Tokens of each sample on each side that has a budget, shape [sides, samples]."""
Budgets = tuple[int, ...]
"""Most tokens of a micro-batch on each side."""

_SPARE = 100
"""One micro-batch in so many is spare, so that samples find room in other company every epoch."""
_FINENESS = 200
"""The number of micro-batches is found to one in so many."""
_WIDEST = 8
"""In the loosest order a sample comes up to so large a part of all places later."""
_TAKERS = 2
"""At least one micro-batch in so many takes a sample at a time: with two sides they would often be few."""
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Plan:
    """The micro-batches of an epoch.

    Args:
        samples: Each sample once, those of a micro-batch behind each other, shape [samples].
        starts: Where each micro-batch begins, and where the last one ends, shape [micro-batches + 1].
    """

    samples: Order
    starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> list[int]:
        samples: list[int] = self.samples[self.starts[number] : self.starts[number + 1]].tolist()
        return samples


@dataclass(frozen=True, eq=False)
class Packing:
    """The micro-batches of every epoch.

    Args:
        plan: Gives those of an epoch, counted from 0.
        num_micro_batches: How many they are in each epoch.
    """

    plan: Callable[[int], Plan]
    num_micro_batches: int


def in_order(lengths: Lengths, budgets: Budgets) -> Packing:
    """Pack samples in their order, every epoch alike.

    Args:
        lengths: None may be over its budget.
        budgets: One for each side.

    Returns:
        The packing.
    """
    plan = fill_in_order(lengths, budgets)
    return Packing(lambda _epoch: plan, len(plan))


def equally_full(lengths: Lengths, budgets: Budgets, *, multiple_of: int, seed: int) -> Packing:
    """Pack samples into micro-batches of nearly the same number of tokens, anew every epoch.

    Args:
        lengths: None may be over its budget.
        budgets: One for each side.
        multiple_of: As in `count_micro_batches`.
        seed: Of the run.

    Returns:
        The packing.
    """
    num = count_micro_batches(lengths, budgets, multiple_of=multiple_of)
    plan = partial(fill_evenly, lengths, budgets, num_micro_batches=num, seed=seed)
    return Packing(lambda epoch: plan(epoch=epoch), num)


def fill_in_order(lengths: Lengths, budgets: Budgets) -> Plan:
    """Fill micro-batches one after the other, and leave the samples in their order.

    Args:
        lengths: None may be over its budget.
        budgets: One for each side.

    Returns:
        The same plan for every epoch.
    """
    sums = np.pad(np.cumsum(lengths, axis=1, dtype=np.int64), ((0, 0), (1, 0)))
    starts = [0]
    while starts[-1] < lengths.shape[1]:
        limits = sums[:, starts[-1]] + np.array(budgets)
        ends = [np.searchsorted(side, limit, side="right") - 1 for side, limit in zip(sums, limits, strict=True)]
        starts.append(int(min(ends)))
    return Plan(np.arange(lengths.shape[1]), np.array(starts))


def count_micro_batches(lengths: Lengths, budgets: Budgets, *, multiple_of: int) -> int:
    """Find how many micro-batches hold all samples, in every epoch.

    Args:
        lengths: None may be over its budget.
        budgets: One for each side.
        multiple_of: Micro-batches of a step. The last step of an epoch then is as full as the others: what is missing
            is taken from all, which wastes nothing, since nothing is padded.

    Returns:
        A multiple of that, or the number of samples where they are fewer.
    """
    shares = _shares(lengths, budgets)
    num_samples: int = lengths.shape[1]
    ordered = shares[:, _longest_first(lengths, shares, generator_of(0, 0))]
    most = num_samples // multiple_of

    def is_enough(num_steps: int) -> bool:
        return _fits(_spread(ordered, num_steps * multiple_of)[1])

    too_few = math.ceil((float(shares.sum(axis=1).max()) - _ROUNDING) / multiple_of) - 1
    enough, more = too_few + 1, 1
    while enough < most and not is_enough(enough):
        too_few, enough = enough, min(most, enough + max(more, enough * more // _FINENESS))
        more *= 2
    if enough > most or not is_enough(enough):
        return num_samples
    while enough - too_few > max(1, enough // _FINENESS):
        middle = (enough + too_few) // 2
        too_few, enough = (too_few, middle) if is_enough(middle) else (middle, enough)
    spared = min(most, enough + enough // _SPARE)
    return (spared if is_enough(spared) else enough) * multiple_of


def fill_evenly(lengths: Lengths, budgets: Budgets, *, num_micro_batches: int, seed: int, epoch: int) -> Plan:
    """Fill a fixed number of micro-batches equally: the longest samples first, each into the emptiest one.

    The order by length is loosened at random, as far as all still fit, so that samples meet others every epoch. With
    no looseness left only samples of equal length change places, and then all fit as they did when the micro-batches
    were counted. Last, the micro-batches are shuffled.

    Args:
        lengths: None may be over its budget.
        budgets: One for each side.
        num_micro_batches: From `count_micro_batches`.
        seed: Of the run.
        epoch: From 0.

    Returns:
        Micro-batches of nearly the same number of tokens, in random order.
    """
    generator = generator_of(seed, epoch)
    shares = _shares(lengths, budgets)
    order = _longest_first(lengths, shares, generator)
    looseness = len(order) / _WIDEST
    while True:
        loosened = order if looseness < 1 else _loosened(order, looseness, generator)
        places, loads = _spread(shares[:, loosened], num_micro_batches)
        if _fits(loads):
            break
        if looseness < 1:
            raise AssertionError(f"{len(order)} samples do not fit into {num_micro_batches} micro-batches any more")
        looseness /= 2
    places = generator.permutation(num_micro_batches)[places]
    sizes = np.bincount(places, minlength=num_micro_batches)
    return Plan(loosened[np.argsort(places, kind="stable")], np.cumsum([0, *sizes]))


def _shares(lengths: Lengths, budgets: Budgets) -> npt.NDArray[np.float64]:
    """Give each sample's part of each budget."""
    return lengths / np.array(budgets, np.float64)[:, None]


def _longest_first(lengths: Lengths, shares: npt.NDArray[np.float64], generator: np.random.RandomState) -> Order:
    """Sort by what a sample takes of the budget it takes most of; samples of the same lengths come at random."""
    shuffled = generator.permutation(lengths.shape[1])
    order: Order = shuffled[np.lexsort((*-lengths[:, shuffled], -shares[:, shuffled].max(axis=0)))]
    return order


def _loosened(order: Order, looseness: float, generator: np.random.RandomState) -> Order:
    """Let each sample come up to so many places later."""
    later = np.arange(len(order)) + looseness * generator.random_sample(len(order))
    return order[np.argsort(later, kind="stable")]


def _spread(shares: npt.NDArray[np.float64], num: int) -> tuple[Order, npt.NDArray[np.float64]]:
    """Put samples, one after the other, each into the micro-batch that is emptiest then.

    Many at a time: the emptiest ones take a sample each, up to the first that is fuller than one that just took its.
    (A sample that adds to the emptier side of its micro-batch alone would end that soon, so some are always taken.)

    Gives the micro-batch of each sample [samples], and what is in each micro-batch [sides, micro-batches].
    """
    num_samples = shares.shape[1]
    loads = np.zeros((len(shares), num))
    places = np.empty(num_samples, np.int64)
    done = 0
    while done < num_samples:
        fullness = loads.max(axis=0)
        emptiest = np.argsort(fullness, kind="stable")[: num_samples - done]
        after = loads[:, emptiest] + shares[:, done : done + len(emptiest)]
        is_next = fullness[emptiest[1:]] <= np.minimum.accumulate(after.max(axis=0))[:-1]
        num_next = len(emptiest) if is_next.all() else int(np.argmin(is_next)) + 1
        num_taken = min(max(num_next, num // _TAKERS), len(emptiest))
        taken = emptiest[:num_taken]
        loads[:, taken] = after[:, :num_taken]
        places[done : done + num_taken] = taken
        done += num_taken
    return places, loads


def _fits(loads: npt.NDArray[np.float64]) -> bool:
    return bool(loads.max() <= 1 + _ROUNDING)
