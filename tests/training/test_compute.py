"""Operations are those that a batch needs, however it is laid out; the peak is measured beside the run, not in it."""

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_sft.config.arguments import TrainingArguments
from ds_sft.contracts import IGNORE_INDEX, ModelShape
from ds_sft.data.collate import (
    Collator,
    DataCollatorForCausalDataset,
    DataCollatorForSupervisedDataset,
    FlatCollatorForCausalDataset,
    FlatCollatorForSupervisedDataset,
)
from ds_sft.families import family_named
from ds_sft.model.costs import num_parameters
from ds_sft.shapes import Weight
from ds_sft.training.compute import Compute, _measured_peak, compute_of, peak_of

Rows = list[dict[str, Sequence[int]]]
READ, ANSWERED, SCORED, OF_SOURCE, OF_TARGET, ACROSS = 10**10, 10**8, 10**6, 10**4, 10**2, 1
SHAPE = ModelShape(
    weights=(
        Weight("encoder", (READ,), 1, "source"),
        Weight("decoder", (ANSWERED,), 1, "target"),
        Weight("head", (SCORED,), 1, "supervised"),
        Weight("table", (10**12,), 1),
    ),
    width=1,
    vocab_size=1,
    stacks=(),
    source_pair=OF_SOURCE,
    target_pair=OF_TARGET,
    cross_pair=ACROSS,
)
CAUSAL: Rows = [
    {"input_ids": [5, 6, 7, 8], "labels": [IGNORE_INDEX, IGNORE_INDEX, 7, 8]},
    {"input_ids": [9, 10], "labels": [IGNORE_INDEX, 10]},
]
PAIRS: Rows = [{"input_ids": [5, 6, 7], "labels": [8]}, {"input_ids": [9], "labels": [11, 12]}]
OF_CAUSAL = 6 * ANSWERED + 3 * SCORED + (10 + 3) * OF_TARGET
OF_PAIRS = 4 * READ + 3 * (ANSWERED + SCORED) + 10 * OF_SOURCE + (1 + 3) * OF_TARGET + 5 * ACROSS
COLLATORS: list[tuple[Collator, Rows, int]] = [
    (DataCollatorForCausalDataset(0, "left", 8), CAUSAL, OF_CAUSAL),
    (FlatCollatorForCausalDataset(), CAUSAL, OF_CAUSAL),
    (DataCollatorForSupervisedDataset(0, 0, 0, "left", 8), PAIRS, OF_PAIRS),
    (FlatCollatorForSupervisedDataset(0, 0), PAIRS, OF_PAIRS),
]


def flops(collate: Collator, rows: Rows, *, is_frozen: bool = False) -> float:
    is_pair = isinstance(collate, DataCollatorForSupervisedDataset | FlatCollatorForSupervisedDataset)
    return Compute(1.0, SHAPE, is_encoder_decoder=is_pair, is_frozen=is_frozen).flops_of(collate(rows))


@pytest.mark.parametrize(("collate", "rows", "products"), COLLATORS)
def test_the_operations_are_those_of_the_documents_and_not_of_the_padding(
    collate: Collator, rows: Rows, products: int
) -> None:
    assert flops(collate, rows) == 3 * 2 * products


@pytest.mark.parametrize(("collate", "rows", "products"), COLLATORS)
def test_a_filler_needs_no_operation(collate: Collator, rows: Rows, products: int) -> None:
    assert products
    assert flops(collate, [{**rows[0], "labels": [IGNORE_INDEX] * len(rows[0]["labels"])}]) == 0


def test_a_weight_that_is_frozen_needs_no_gradient_of_its_own() -> None:
    saved = 2 * (6 * ANSWERED + 3 * SCORED)
    collate = FlatCollatorForCausalDataset()
    assert flops(collate, CAUSAL) - flops(collate, CAUSAL, is_frozen=True) == saved


@pytest.mark.parametrize("family", ["flan_t5", "yuan2"])
def test_the_model_is_counted_as_it_is_with_its_vocabulary_grown(
    family: str, tiny_checkpoint: Path, tiny_yuan2: Path, tmp_path: Path
) -> None:
    card = family_named(family)
    folder = tiny_checkpoint if family == "flan_t5" else tiny_yuan2
    content = json.loads((folder / "config.json").read_text())
    model = card.model_class(content, frozenset()).from_pretrained(folder)
    model.resize_token_embeddings(content["vocab_size"] + 16)
    compute = compute_of(card, model.config.to_dict(), arguments(tmp_path), is_frozen=False)
    assert compute is not None
    tables = {id(weight): weight for weight in model.parameters()}
    assert num_parameters(compute.shape) == sum(weight.numel() for weight in tables.values())


def arguments(folder: Path, **flags: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **flags)


def test_nothing_is_measured_where_nothing_is_logged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ds_sft.training.compute._measured_peak", lambda *_: pytest.fail("it was measured"))
    args = arguments(tmp_path, logging_strategy="no")
    assert peak_of(args) is None
    assert compute_of(family_named("yuan2"), {}, args, is_frozen=False) is None


@pytest.mark.parametrize("seconds", [0.005, 0.02])
def test_the_peak_is_the_best_rate_and_a_product_that_takes_long_is_not_made(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()
    monkeypatch.setattr("ds_sft.training.compute.time.perf_counter", lambda: next(ticks) * seconds)
    assert _measured_peak.__wrapped__(torch.device("cpu"), torch.float32) == pytest.approx(2 * 128**3 / seconds)
    assert next(ticks) == 2 * 3, "three products of the smallest size"


def test_measuring_draws_no_random_number_of_the_run() -> None:
    before = torch.get_rng_state()
    peak = _measured_peak.__wrapped__(torch.device("cpu"), torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert 1e7 < peak < 1e15
