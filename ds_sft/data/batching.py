"""In which order samples are trained: a pure function of seed and epoch, the same on every rank."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

Order = npt.NDArray[np.int64]

_BATCHES_SORTED_TOGETHER = 100
_PARTS_SORTED_APART = 4


class EpochOrder(Sampler[int]):
    """Samples in an order that is asked for when an epoch begins.

    It has no `set_epoch`: after a resume, accelerate's loaders call that with 0 whatever epoch goes on, on some numbers
    of ranks.

    Args:
        order: Gives the samples of the epoch that is trained now.
        num_samples: How many they are.
    """

    def __init__(self, order: Callable[[], Order], *, num_samples: int) -> None:
        self._order = order
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    def __iter__(self) -> Iterator[int]:
        # One by one: a list would hold an object of 32 bytes for every sample.
        return map(int, self._order())


def group_by_length_order(lengths: npt.NDArray[np.integer[Any]], *, batch_size: int, seed: int, epoch: int) -> Order:
    """Shuffle the samples of an epoch so that those of a batch are of nearly the same length.

    A hundred batches of shuffled samples at a time (a quarter of them, where they are few) are sorted by length and cut
    into batches; then the batches are shuffled, and the samples within each of them, so that no rank always gets the
    longest. The batch with the longest sample of all comes first: a run that does not fit into memory ends at once.

    Args:
        lengths: Of each sample, shape [samples].
        batch_size: Samples that all ranks together take at a time: those of one rank times the number of ranks.
        seed: Of the run.
        epoch: From 0.

    Returns:
        Each sample once, shape [samples]; the batch that is not full, if there is one, comes last.
    """
    generator = _generator(seed, epoch)
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


def _generator(seed: int, epoch: int) -> np.random.RandomState:
    """Give numpy's old generator: its numbers never change with a version, so a resumed run finds the same order."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch])))
