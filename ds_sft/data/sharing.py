"""Samples of a conversation that begin with the same tokens become one tree, in which those tokens are stored once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from ds_sft.data.datasets import Row, SampleDataset

Counts = npt.NDArray[np.integer[Any]]


class SampleTrees(Dataset[Row]):
    """A dataset of trees: samples that follow each other, each of which begins with tokens of the one before it.

    Args:
        samples: With counted tokens, and without sources.
        budget: Most tokens of a tree; a conversation with more becomes several.
    """

    def __init__(self, samples: SampleDataset, *, budget: int) -> None:
        super().__init__()
        self._samples = samples
        self._shared = samples.shared()
        self._lengths = samples.num_tokens()[1]
        self._starts = starts_of_trees(self._lengths, self._shared, budget=budget)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Row:
        """Give a tree.

        The last sample comes first: in a conversation it is the longest, and the others branch off it.

        Args:
            index: From 0.

        Returns:
            `input_ids` without what is shared, `labels` of all samples whole, one behind the other, and of each sample
            its `lengths` and how many tokens are `shared` with the one before it in this order.
        """
        samples = range(self._starts[index], self._starts[index + 1])[::-1]
        rows = [self._samples[sample] for sample in samples]
        shared = np.array([0, *(self._shared[sample + 1] for sample in samples[1:])], np.int32)
        return tree_of(rows, shared)

    def num_tokens(self) -> npt.NDArray[np.int32]:
        """Give the number of stored tokens of each tree, behind a row of zeros: there are no sources.

        Returns:
            The numbers, shape [2, trees].
        """
        own = self._lengths - self._shared
        own[self._starts[:-1]] = self._lengths[self._starts[:-1]]
        stored = np.add.reduceat(own, self._starts[:-1], dtype=np.int32)
        return np.stack([np.zeros_like(stored), stored])


def starts_of_trees(lengths: Counts, shared: Counts, *, budget: int) -> npt.NDArray[np.int64]:
    """Put samples into trees, in their order, as many into each as share tokens and fit.

    Args:
        lengths: Of the samples, none over the budget, shape [samples].
        shared: How many tokens each shares with the one before it, shape [samples].
        budget: Most stored tokens of a tree.

    Returns:
        The first sample of each tree, and the number of all samples, shape [trees + 1].
    """
    starts: list[int] = []
    tokens = 0
    for sample, (length, common) in enumerate(zip(lengths.tolist(), shared.tolist(), strict=True)):
        tokens += length - common
        if common == 0 or tokens > budget:
            starts.append(sample)
            tokens = length
    return np.array([*starts, len(lengths)])


def tree_of(rows: Sequence[Row], shared: npt.NDArray[np.int32]) -> Row:
    """Lay samples one behind the other, each without the tokens that it shares with the one before it.

    Args:
        rows: Samples with `input_ids` and `labels`.
        shared: How many tokens each begins with as the one before it does, the first one 0.

    Returns:
        As `SampleTrees` gives it.
    """
    ids = [row["input_ids"] for row in rows]
    for before, own, common in zip(ids, ids[1:], shared[1:], strict=False):
        if not np.array_equal(before[:common], own[:common]):
            raise AssertionError(f"samples must begin with the same {common} tokens, but do not")
    return {
        "input_ids": np.concatenate([own[common:] for own, common in zip(ids, shared, strict=True)]),
        "labels": np.concatenate([row["labels"] for row in rows]),
        "lengths": np.array([len(own) for own in ids], np.int32),
        "shared": shared,
    }
