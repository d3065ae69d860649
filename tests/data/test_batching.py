"""Orders are the same everywhere, go on where they stopped, and favour no rank."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_sft.data.batching import EpochOrder, group_by_length_order

RANKS, PER_RANK = 4, 2
BATCH = RANKS * PER_RANK


@pytest.fixture(scope="module")
def lengths() -> npt.NDArray[np.int32]:
    """Lengths as conversations have them: many short ones, a few very long."""
    drawn: npt.NDArray[np.float64] = np.random.RandomState(1).lognormal(5, 1, size=8000)
    return drawn.astype(np.int32) + 1


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=200),
    batch_size=st.integers(1, 16),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 100),
)
def test_every_sample_comes_once(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    order = group_by_length_order(np.array(lengths), batch_size=batch_size, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(len(lengths)))


@given(lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=100, unique=True), batch_size=st.integers(1, 8))
def test_the_longest_sample_is_in_the_first_batch(lengths: list[int], batch_size: int) -> None:
    order = group_by_length_order(np.array(lengths), batch_size=batch_size, seed=3, epoch=1)
    assert lengths.index(max(lengths)) in order[:batch_size]


def test_the_order_is_a_function_of_seed_and_epoch(lengths: npt.NDArray[np.int32]) -> None:
    given = [(seed, epoch) for seed in (0, 7) for epoch in (0, 1)]
    orders = [group_by_length_order(lengths, batch_size=BATCH, seed=seed, epoch=epoch) for seed, epoch in given]
    again = group_by_length_order(lengths, batch_size=BATCH, seed=7, epoch=1)
    assert (again == orders[3]).all()
    assert len({order.tobytes() for order in orders}) == len(orders)


def test_the_order_does_not_change_with_a_version_of_numpy() -> None:
    lengths = np.array([5, 1, 4, 1, 3, 9, 2, 6])
    assert group_by_length_order(lengths, batch_size=2, seed=7, epoch=2).tolist() == [7, 5, 3, 1, 2, 0, 6, 4]


def test_a_sample_has_other_company_in_the_next_epoch() -> None:
    lengths = np.arange(1, 101)
    epochs = [group_by_length_order(lengths, batch_size=4, seed=0, epoch=epoch).reshape(-1, 4) for epoch in (0, 1)]
    first, second = ({tuple(sorted(batch)) for batch in batches.tolist()} for batches in epochs)
    assert len(first & second) < 5


def test_batches_waste_little_on_padding(lengths: npt.NDArray[np.int32]) -> None:
    def padded(order: npt.NDArray[np.int64]) -> float:
        return float(lengths[order].reshape(-1, BATCH).max(axis=1).sum() * BATCH / lengths.sum())

    assert padded(group_by_length_order(lengths, batch_size=BATCH, seed=0, epoch=0)) < 1.15
    assert padded(np.random.RandomState(0).permutation(len(lengths))) > 2


def test_no_rank_gets_longer_samples_than_another(lengths: npt.NDArray[np.int32]) -> None:
    order = group_by_length_order(lengths, batch_size=BATCH, seed=0, epoch=0)
    means = lengths[order].reshape(-1, RANKS, PER_RANK).mean(axis=(0, 2))
    assert means.max() / means.min() < 1.05


def test_batches_come_in_no_order_of_length(lengths: npt.NDArray[np.int32]) -> None:
    order = group_by_length_order(lengths, batch_size=BATCH, seed=0, epoch=0)
    means = lengths[order].reshape(-1, BATCH).mean(axis=1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.1


def test_an_order_is_asked_for_when_an_epoch_begins() -> None:
    orders = iter([np.array([1, 0, 2]), np.array([2, 1, 0])])
    sampler = EpochOrder(lambda: next(orders), num_samples=3)
    assert len(sampler) == 3
    assert [list(sampler), list(sampler)] == [[1, 0, 2], [2, 1, 0]]
