"""Tokens are those of the data: no padding and no filler, in flat and in padded batches."""

from collections.abc import Sequence

import pytest
import torch

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.data.collate import (
    Collator,
    DataCollatorForCausalDataset,
    DataCollatorForSupervisedDataset,
    FlatCollatorForCausalDataset,
    FlatCollatorForSupervisedDataset,
)
from ds_sft.training.throughput import Throughput

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
