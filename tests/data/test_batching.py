"""Orders are the same everywhere, go on where they stopped, and favour no rank; each sample is dealt out once."""

from collections.abc import Iterator
from itertools import chain

import numpy as np
import numpy.typing as npt
import pytest
from accelerate.data_loader import SeedableRandomSampler, skip_first_batches  # type: ignore[import-untyped]  # no types
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ds_sft.data.batching import PackedRankBatches, RankBatches, group_by_length_order, shuffled_order
from ds_sft.errors import ConfigError

RANKS, PER_RANK = 4, 2
BATCH = RANKS * PER_RANK
SMALL = st.integers(1, 5)


def batches_of(
    order: list[int], *, batch_size: int, accumulation: int = 1, world_size: int = 1, drop_last: bool = False
) -> list[list[list[int]]]:
    """Give the micro-batches of each rank, shape [ranks, micro-steps, rows]."""
    dealt = [
        RankBatches(
            order=lambda _: np.array(order),
            num_samples=len(order),
            batch_size=batch_size,
            accumulation=accumulation,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
        )
        for rank in range(world_size)
    ]
    assert [len(batches) for batches in dealt] == [len(list(batches)) for batches in dealt]
    return [list(batches) for batches in dealt]


def steps_of(batches: list[list[list[int]]], *, accumulation: int) -> list[set[int]]:
    """Give the samples of each step, without fillers."""
    micro_steps = list(zip(*batches, strict=True))
    return [
        {sample for rows in chain(*micro_steps[start : start + accumulation]) for sample in rows if sample >= 0}
        for start in range(0, len(micro_steps), accumulation)
    ]


def splits_of(samples_of_a_step: int) -> Iterator[tuple[int, int, int]]:
    """Give every batch size, accumulation and number of ranks of that product."""
    numbers = range(1, samples_of_a_step + 1)
    for batch_size in numbers:
        for accumulation in numbers:
            if samples_of_a_step % (batch_size * accumulation) == 0:
                yield batch_size, accumulation, samples_of_a_step // (batch_size * accumulation)


def shuffled_batches(num_samples: int) -> RankBatches:
    return RankBatches(
        order=lambda epoch: shuffled_order(num_samples, seed=1, epoch=epoch),
        num_samples=num_samples,
        batch_size=1,
        accumulation=1,
        rank=0,
        world_size=1,
        drop_last=False,
    )


@given(num_samples=st.integers(1, 80), batch_size=SMALL, accumulation=SMALL, world_size=SMALL)
def test_all_ranks_together_train_each_sample_once_an_epoch(
    num_samples: int, batch_size: int, accumulation: int, world_size: int
) -> None:
    order = list(range(num_samples))
    batches = batches_of(order, batch_size=batch_size, accumulation=accumulation, world_size=world_size)
    assert sorted(sample for sample in chain(*chain(*batches)) if sample >= 0) == order


@given(num_samples=st.integers(1, 80), batch_size=SMALL, world_size=SMALL)
def test_all_ranks_have_equally_many_micro_steps_and_rows_and_never_none(
    num_samples: int, batch_size: int, world_size: int
) -> None:
    batches = batches_of(list(range(num_samples)), batch_size=batch_size, world_size=world_size)
    num_rows = [[len(rows) for rows in of_rank] for of_rank in batches]
    assert num_rows == [num_rows[0]] * world_size
    assert num_rows[0][:-1] == [batch_size] * (len(num_rows[0]) - 1)
    assert 1 <= num_rows[0][-1] <= batch_size


@given(num_samples=st.integers(1, 60), samples_of_a_step=st.integers(1, 12), drop_last=st.booleans())
def test_a_step_has_the_same_samples_however_it_is_split(
    num_samples: int, samples_of_a_step: int, drop_last: bool
) -> None:
    order = shuffled_order(num_samples, seed=0, epoch=0).tolist()
    num_kept = num_samples // samples_of_a_step * samples_of_a_step if drop_last else num_samples
    expected = [
        set(order[start : min(start + samples_of_a_step, num_kept)]) for start in range(0, num_kept, samples_of_a_step)
    ]
    for batch_size, accumulation, world_size in splits_of(samples_of_a_step) if expected else ():
        batches = batches_of(
            order, batch_size=batch_size, accumulation=accumulation, world_size=world_size, drop_last=drop_last
        )
        assert steps_of(batches, accumulation=accumulation) == expected


@given(num_samples=st.integers(1, 80), batch_size=SMALL, world_size=SMALL)
def test_no_rank_has_more_than_one_filler_an_epoch(num_samples: int, batch_size: int, world_size: int) -> None:
    batches = batches_of(list(range(num_samples)), batch_size=batch_size, world_size=world_size)
    num_fillers = [sum(sample < 0 for sample in chain(*of_rank)) for of_rank in batches]
    assert max(num_fillers) <= 1
    assert sum(num_fillers) == -num_samples % world_size


def test_a_full_micro_step_goes_to_the_ranks_in_the_order_of_their_numbers() -> None:
    first, second = batches_of([7, 6, 5, 4, 3, 2, 1, 0], batch_size=2, accumulation=2, world_size=2)
    assert first == [[7, 6], [3, 2]]
    assert second == [[5, 4], [1, 0]]


def test_what_is_left_for_the_last_micro_step_is_spread_evenly_and_filled_with_the_last_sample() -> None:
    first, second, third = batches_of([9, 8, 7, 6, 5], batch_size=3, world_size=3)
    assert first == [[9, -1 - 5]]
    assert second == [[8, 7]]
    assert third == [[6, 5]]


def test_one_rank_takes_a_short_batch_and_needs_no_filler() -> None:
    assert batches_of([4, 3, 2, 1, 0], batch_size=2, accumulation=4) == [[[4, 3], [2, 1], [0]]]


def test_a_rank_for_which_no_sample_is_left_takes_a_filler() -> None:
    assert batches_of([2, 1, 0], batch_size=1, world_size=2) == [[[2], [-1]], [[1], [0]]]


def test_samples_behind_the_last_full_step_are_left_out_when_asked() -> None:
    batches = batches_of(list(range(11)), batch_size=2, accumulation=2, drop_last=True)
    assert batches == [[[0, 1], [2, 3], [4, 5], [6, 7]]]


def test_leaving_out_every_step_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        batches_of([0, 1, 2], batch_size=1, accumulation=2, world_size=2, drop_last=True)
    assert str(caught.value) == (
        "dataloader_drop_last: must leave a full step, but there are 3 samples, and a step takes 4; leave it out, or "
        "lower --gradient_accumulation_steps"
    )


def test_an_epoch_has_the_order_that_belongs_to_it() -> None:
    batches = shuffled_batches(6)
    batches.set_epoch(3)
    assert list(chain(*batches)) == shuffled_order(6, seed=1, epoch=3).tolist()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_epoch_goes_on_where_a_loader_skips_to(num_workers: int) -> None:
    batches = shuffled_batches(6)
    loader: DataLoader[int] = DataLoader(range(6), batch_sampler=batches, num_workers=num_workers)  # type: ignore[arg-type]  # torch takes any sequence
    rest = skip_first_batches(loader, 4)
    batches.set_epoch(2)
    assert [int(batch) for batch in rest] == shuffled_order(6, seed=1, epoch=2).tolist()[4:]
    batches.set_epoch(3)
    assert [int(batch) for batch in loader] == shuffled_order(6, seed=1, epoch=3).tolist()


FILLER = -100


def packed(
    num_micro_batches: int, *, accumulation: int = 1, world_size: int = 1, drop_last: bool = False, epoch: int = 0
) -> list[list[list[int]]]:
    """Give the micro-batches of each rank; micro-batch n of epoch e holds samples 10n + e and 10n + e + 1."""
    dealt = []
    for rank in range(world_size):
        batches = PackedRankBatches(
            plan=lambda epoch: [[10 * number + epoch, 10 * number + epoch + 1] for number in range(num_micro_batches)],
            num_micro_batches=num_micro_batches,
            filler=FILLER,
            accumulation=accumulation,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
        )
        batches.set_epoch(epoch)
        dealt.append(list(batches))
        assert len(batches) == len(dealt[-1])
    return dealt


@given(num=st.integers(1, 40), world_size=SMALL, accumulation=SMALL)
def test_all_ranks_together_train_each_packed_micro_batch_once_in_equally_many_micro_steps(
    num: int, world_size: int, accumulation: int
) -> None:
    dealt = packed(num, world_size=world_size, accumulation=accumulation)
    assert {len(of_rank) for of_rank in dealt} == {-(-num // world_size)}
    real = sorted(batch[0] for batch in chain(*dealt) if batch != [FILLER])
    assert real == [10 * number for number in range(num)]
    assert sum(batch == [FILLER] for batch in chain(*dealt)) == -num % world_size


@given(num=st.integers(1, 40), micro_batches_of_a_step=st.integers(1, 12), drop_last=st.booleans())
def test_a_packed_step_has_the_same_samples_however_it_is_split(
    num: int, micro_batches_of_a_step: int, drop_last: bool
) -> None:
    num_kept = num // micro_batches_of_a_step * micro_batches_of_a_step if drop_last else num
    for world_size in range(1, micro_batches_of_a_step + 1 if num_kept else 0):
        if micro_batches_of_a_step % world_size:
            continue
        accumulation = micro_batches_of_a_step // world_size
        dealt = packed(num, world_size=world_size, accumulation=accumulation, drop_last=drop_last)
        steps = steps_of(dealt, accumulation=accumulation)
        firsts = [{sample // 10 for sample in step} for step in steps]
        assert firsts == [
            set(range(start, min(start + micro_batches_of_a_step, num_kept)))
            for start in range(0, num_kept, micro_batches_of_a_step)
        ]


def test_packed_micro_batches_go_to_the_ranks_in_the_order_of_their_numbers_and_a_filler_to_who_has_none() -> None:
    assert packed(3, world_size=2, epoch=1) == [[[1, 2], [21, 22]], [[11, 12], [FILLER]]]


def test_leaving_out_every_packed_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="there are 3 micro-batches, and a step takes 4; leave it out"):
        packed(3, accumulation=2, world_size=2, drop_last=True)


def test_samples_are_shuffled_as_by_the_sampler_of_accelerate() -> None:
    sampler = SeedableRandomSampler(range(50), data_seed=7)
    for epoch in (0, 1, 5):
        sampler.set_epoch(epoch)
        assert shuffled_order(50, seed=7, epoch=epoch).tolist() == list(sampler)


def test_shuffled_samples_do_not_change_with_a_version_of_torch() -> None:
    assert shuffled_order(8, seed=7, epoch=2).tolist() == [6, 0, 2, 5, 1, 7, 3, 4]


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
