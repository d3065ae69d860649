"""Fillers: repeated samples with which nothing is learned, for ranks that find none left in an epoch."""

from typing import Protocol

import numpy as np
from torch.utils.data import Dataset

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.data.datasets import Row


class Samples(Protocol):
    """What `WithFillers` wants of a dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...


def filler_of(sample: int) -> int:
    """Give the number under which `WithFillers` holds a sample's filler.

    Args:
        sample: Number of the sample, from 0.

    Returns:
        A number below 0.
    """
    return -1 - sample


class WithFillers(Dataset[Row]):
    """A dataset with a filler of each of its samples beside them: the same sample, of which no token is supervised.

    Args:
        samples: The dataset.
    """

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Row:
        if index >= 0:
            return self._samples[index]
        row = self._samples[filler_of(index)]  # the way there is also the way back
        return {**row, "labels": np.full_like(row["labels"], IGNORE_INDEX)}
