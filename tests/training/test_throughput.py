"""Tokens are those of the data: no padding and no filler, in flat and in padded batches."""

import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from ds_sft.contracts import IGNORE_INDEX, ModelShape
from ds_sft.data.collate import (
    Batch,
    Collator,
    DataCollatorForCausalDataset,
    DataCollatorForSupervisedDataset,
    FlatCollatorForCausalDataset,
    FlatCollatorForSupervisedDataset,
)
from ds_sft.shapes import Weight
from ds_sft.training.compute import Compute
from ds_sft.training.throughput import Throughput, peak_memory_bytes

CAUSAL: list[dict[str, Sequence[int]]] = [
    {"input_ids": [5, 6, 7, 8], "labels": [IGNORE_INDEX, IGNORE_INDEX, 7, 8]},
    {"input_ids": [9, 10], "labels": [IGNORE_INDEX, 10]},
]
PAIRS: list[dict[str, Sequence[int]]] = [
    {"input_ids": [5, 6, 7], "labels": [8]},
    {"input_ids": [9], "labels": [11, 12]},
]
COLLATORS: list[tuple[Collator, list[dict[str, Sequence[int]]], list[int]]] = [
    (DataCollatorForCausalDataset(0), CAUSAL, [6, 3]),
    (FlatCollatorForCausalDataset(), CAUSAL, [6, 3]),
    (DataCollatorForSupervisedDataset(0, 0, 0), PAIRS, [7, 3]),
    (FlatCollatorForSupervisedDataset(0, 0), PAIRS, [7, 3]),
]


@pytest.mark.parametrize(("collate", "rows", "expected"), COLLATORS)
def test_tokens_of_source_and_target_count_and_padding_does_not(
    collate: Collator, rows: list[dict[str, Sequence[int]]], expected: list[int]
) -> None:
    throughput = Throughput(torch.device("cpu"), counts_targets=rows is PAIRS)
    for _ in range(2):
        throughput.count(collate(rows))
    assert throughput.counts == [2 * number for number in expected]


@pytest.mark.parametrize(("collate", "rows", "expected"), COLLATORS)
def test_a_batch_of_a_filler_counts_nothing(
    collate: Collator, rows: list[dict[str, Sequence[int]]], expected: list[int]
) -> None:
    filler = {**rows[0], "labels": [IGNORE_INDEX] * len(rows[0]["labels"])}
    throughput = Throughput(torch.device("cpu"), counts_targets=rows is PAIRS)
    throughput.count(collate([filler]))
    assert throughput.counts == [0, 0]
    throughput.count(collate(rows))
    assert throughput.counts == expected


class Clock:
    """A clock that only moves when a test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the throughput."""
    clock = Clock()
    monkeypatch.setattr("ds_sft.training.throughput.time.perf_counter", clock)
    return clock


def loader(clock: Clock, *waits: float) -> Iterator[Batch]:
    for wait in waits:
        clock.now += wait
        yield DataCollatorForCausalDataset(0)(CAUSAL)


def test_the_wait_is_the_time_from_asking_the_loader_to_getting_the_batch(clock: Clock) -> None:
    throughput = Throughput(torch.device("cpu"), counts_targets=False)
    throughput.begin(0)
    for batch in throughput.taken(loader(clock, 1.0, 0.5)):
        throughput.count(batch)
        clock.now += 3.0
    with throughput.paused():
        clock.now += 1000.0
    told = throughput.report(lambda row: row)
    assert (told["data_wait_share"], told["tokens_per_second"], told["supervised_tokens_per_second"]) == (
        *(0.2, 1.6, 0.8),
    )
    clock.now += 1.0
    assert throughput.report(lambda row: row)["data_wait_share"] == 0.0


def test_over_ranks_tokens_add_up_and_the_slowest_loader_and_the_largest_memory_count(clock: Clock) -> None:
    throughput = Throughput(torch.device("cpu"), counts_targets=False)
    throughput.begin(0)
    clock.now += 10.0
    rows = torch.tensor([[60, 30, 5_000, 3_000, 2_000_000, 7], [40, 10, 1_000, 1_000, 500_000, 9]])
    told = throughput.report(lambda row: rows + 0 * row)
    assert told == {
        "tokens_per_second": 10.0,
        "supervised_tokens_per_second": 4.0,
        "tokens_per_second_per_rank": 5.0,
        "mfu": 0.15,
        "data_wait_share": 0.2,
        "peak_memory_bytes": 9,
        "num_input_tokens_seen": 100,
    }


def test_the_share_of_the_peak_is_what_the_batches_need_and_no_longer_time(clock: Clock) -> None:
    of_a_token, of_a_pair = Weight("w", (1000, 500), 1, "target"), 4000
    compute = Compute(50e6, ModelShape((of_a_token,), 1, 1, (), of_a_pair), is_encoder_decoder=False, is_frozen=False)
    throughput = Throughput(torch.device("cpu"), counts_targets=False, compute=compute)
    throughput.begin(0)
    list(throughput.taken(loader(clock, 1.0)))
    # Documents of 4 and 2 tokens: 6 tokens and 10 + 3 pairs, three products of two operations for each.
    expected = 6 * (6 * 500_000 + 13 * 4000)
    assert throughput.report(lambda row: row)["mfu"] == pytest.approx(expected / 50e6, rel=1e-3)
    clock.now += 1.0
    assert throughput.report(lambda row: row)["mfu"] == 0.0


def test_the_time_left_counts_the_steps_of_this_start_only(clock: Clock) -> None:
    throughput = Throughput(torch.device("cpu"), counts_targets=False)
    throughput.begin(90)
    clock.now += 20.0
    throughput.report(lambda row: row)
    assert throughput.seconds_left(100, last_step=105) == 10.0


def test_the_memory_of_a_process_without_a_gpu_is_at_least_what_it_holds_now() -> None:
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    assert resident * 0.99 <= peak_memory_bytes() < 2**40


def test_waiting_for_a_batch_never_waits_for_the_device() -> None:
    """A tensor on the meta device has no value: whoever reads one is refused."""
    throughput = Throughput(torch.device("meta"), counts_targets=False)
    batches = [dict.fromkeys(("input_ids", "labels"), torch.ones(1, 2, dtype=torch.long, device="meta"))]
    for batch in throughput.taken(iter(batches)):
        throughput.count(batch)
    with pytest.raises(NotImplementedError, match="meta"):
        throughput.report(lambda row: row)
