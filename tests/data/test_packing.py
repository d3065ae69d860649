"""Micro-batches hold every sample once under their budgets, are equally full, and as many in every epoch."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_sft.data.packing import Budgets, Lengths, Plan, count_micro_batches, fill_evenly, fill_in_order

SIDES = st.integers(1, 2)
SHAPES = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=80)
BUDGETS = st.tuples(st.integers(60, 400), st.integers(60, 400))


def tokens_of(plan: Plan, lengths: Lengths) -> list[list[int]]:
    """Give the tokens of each micro-batch on each side."""
    return [[int(side[plan[number]].sum()) for number in range(len(plan))] for side in lengths]


def lognormal(num: int, *, mean: float, most: int, seed: int = 1) -> npt.NDArray[np.int32]:
    drawn = np.random.RandomState(seed).lognormal(mean, 1, num)
    return np.clip(drawn, 1, most).astype(np.int32)


def evenly(lengths: Lengths, budgets: Budgets, *, multiple_of: int = 1, seed: int = 0, epoch: int = 0) -> Plan:
    num = count_micro_batches(lengths, budgets, multiple_of=multiple_of)
    return fill_evenly(lengths, budgets, num_micro_batches=num, seed=seed, epoch=epoch)


def in_order(lengths: Lengths, budgets: Budgets) -> Plan:
    return fill_in_order(lengths, budgets)


@pytest.mark.parametrize("fill", [evenly, in_order])
@given(shapes=SHAPES, budgets=BUDGETS, sides=SIDES)
def test_every_sample_comes_once_and_no_micro_batch_is_empty_or_over_a_budget(
    fill: Callable[[Lengths, Budgets], Plan], shapes: list[tuple[int, int]], budgets: tuple[int, int], sides: int
) -> None:
    lengths = np.array(shapes).T[:sides]
    plan = fill(lengths, budgets[:sides])
    assert sorted(sample for number in range(len(plan)) for sample in plan[number]) == list(range(len(shapes)))
    assert all(plan[number] for number in range(len(plan)))
    for tokens, budget in zip(tokens_of(plan, lengths), budgets, strict=False):
        assert max(tokens) <= budget


@settings(max_examples=30)
@given(shapes=SHAPES, budgets=BUDGETS, sides=SIDES, multiple_of=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_every_epoch_has_as_many_micro_batches_in_full_steps(
    shapes: list[tuple[int, int]], budgets: tuple[int, int], sides: int, multiple_of: int, seed: int
) -> None:
    lengths = np.array(shapes).T[:sides]
    num = count_micro_batches(lengths, budgets[:sides], multiple_of=multiple_of)
    assert num % multiple_of == 0 or num == len(shapes)
    for epoch in range(8):
        plan = fill_evenly(lengths, budgets[:sides], num_micro_batches=num, seed=seed, epoch=epoch)
        assert len(plan) == num


def test_samples_in_order_fill_each_micro_batch_until_the_next_one_does_not_fit() -> None:
    plan = fill_in_order(np.array([[3, 4, 3, 1, 9, 10, 2]]), (10,))
    assert [plan[number] for number in range(len(plan))] == [[0, 1, 2], [3, 4], [5], [6]]


def test_samples_in_order_stop_at_the_budget_that_is_full_first() -> None:
    plan = fill_in_order(np.array([[1, 1, 1, 5, 5], [4, 4, 4, 1, 1]]), (10, 8))
    assert [plan[number] for number in range(len(plan))] == [[0, 1], [2, 3], [4]]


def test_the_longest_samples_are_spread_and_the_short_ones_fill_up() -> None:
    plan = evenly(np.array([[8, 7, 6, 4, 3, 2]]), (10,))
    assert sorted(sorted(plan[number]) for number in range(len(plan))) == [[0, 5], [1, 4], [2, 3]]


def test_micro_batches_are_nearly_full_and_nearly_equal() -> None:
    lengths = lognormal(20_000, mean=5, most=1500)[None]
    budget = int(8 * lengths.mean())
    (tokens,) = tokens_of(evenly(lengths, (budget,)), lengths)
    assert sum(tokens) / (len(tokens) * budget) > 0.97
    assert min(tokens) > 0.95 * budget


def test_micro_batches_are_nearly_full_where_the_longest_sample_fills_one() -> None:
    lengths = lognormal(20_000, mean=6, most=2048)[None]
    (tokens,) = tokens_of(evenly(lengths, (2048,)), lengths)
    assert sum(tokens) / (len(tokens) * 2048) > 0.95


def test_one_of_two_budgets_is_nearly_used_up() -> None:
    lengths = np.stack([lognormal(20_000, mean=6, most=2048), lognormal(20_000, mean=4, most=2048, seed=2)])
    budgets = (4 * 2048, 4 * 2048)
    source, _ = tokens_of(evenly(lengths, budgets), lengths)
    assert sum(source) / (len(source) * budgets[0]) > 0.95


def test_the_last_step_takes_its_micro_batches_from_all_steps() -> None:
    lengths = np.full((1, 90), 10)
    assert count_micro_batches(lengths, (100,), multiple_of=1) == 9
    assert count_micro_batches(lengths, (100,), multiple_of=8) == 16
    (tokens,) = tokens_of(evenly(lengths, (100,), multiple_of=8), lengths)
    assert sorted(set(tokens)) == [50, 60]


def test_fewer_samples_than_micro_batches_of_a_step_stand_alone() -> None:
    plan = evenly(np.array([[5, 6, 7]]), (100,), multiple_of=8)
    assert sorted(plan[number] for number in range(len(plan))) == [[0], [1], [2]]


def test_a_plan_is_a_function_of_seed_and_epoch() -> None:
    lengths = lognormal(200, mean=5, most=1500)[None]
    given = [(seed, epoch) for seed in (0, 7) for epoch in (0, 1)]
    plans = [evenly(lengths, (4000,), seed=seed, epoch=epoch) for seed, epoch in given]
    again = evenly(lengths, (4000,), seed=7, epoch=1)
    assert again.samples.tolist() == plans[3].samples.tolist()
    assert again.starts.tolist() == plans[3].starts.tolist()
    assert len({plan.samples.tobytes() for plan in plans}) == len(plans)


def test_a_plan_does_not_change_with_a_version_of_numpy() -> None:
    plan = evenly(np.array([[5, 1, 4, 1, 3, 9, 2, 6]]), (12,), seed=7, epoch=2)
    assert [plan[number] for number in range(len(plan))] == [[5, 6], [0, 2, 3], [7, 4, 1]]


def test_samples_meet_others_in_the_next_epoch() -> None:
    lengths = lognormal(2000, mean=5, most=1500)[None]
    pairs = []
    for epoch in (0, 1):
        plan = evenly(lengths, (2000,), epoch=epoch)
        batches = [sorted(plan[number]) for number in range(len(plan))]
        pairs.append({(a, b) for batch in batches for a in batch for b in batch if a < b})
    assert len(pairs[0] & pairs[1]) < 0.05 * len(pairs[0])


def test_samples_of_one_length_change_places_where_nothing_else_fits() -> None:
    lengths = np.array([[60, 60, 60, 40, 40, 40]])
    met = {
        tuple(sorted(tuple(sorted(plan[number])) for number in range(3)))
        for plan in (evenly(lengths, (100,), epoch=epoch) for epoch in range(30))
    }
    assert len(met) == 6


def test_micro_batches_come_in_no_order_of_their_longest_sample() -> None:
    lengths = lognormal(8000, mean=5, most=1500)[None]
    plan = evenly(lengths, (2000,))
    longest = [lengths[0, plan[number]].max() for number in range(len(plan))]
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.1
