"""The loss of an evaluation is exact however the samples are split over ranks and batches, flat or padded."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ds_sft.data.batching import PackedRankBatches, RankBatches
from ds_sft.data.collate import Collator, DataCollatorForCausalDataset, FlatCollatorForCausalDataset
from ds_sft.data.datasets import Row
from ds_sft.data.fillers import WithFillers, filler_of
from ds_sft.data.packing import equally_full
from ds_sft.model.loss import Targets
from ds_sft.training.evaluation import evaluation_metrics

VOCABULARY = 11
SAMPLES: list[Row] = [
    {"input_ids": ids, "labels": np.where(np.arange(len(ids)) < 2, -100, ids)}
    for length in (3, 9, 4, 12, 5, 7, 6)
    for ids in [(np.arange(length, dtype=np.int32) * length) % VOCABULARY]
]


class Bigrams(nn.Module):
    """Scores each next token by the one before alone, so that a batch's layout cannot matter."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=generator))

    def forward(self, input_ids: torch.Tensor, targets: Targets, **_others: Any) -> dict[str, torch.Tensor]:
        scores = self.table[input_ids].flatten(0, 1)[targets.places].log_softmax(dim=1)
        return {"target_losses": -scores.gather(1, targets.ids[:, None])[:, 0]}


def by_hand() -> tuple[float, int]:
    """Give the summed loss of all samples, and their supervised tokens."""
    scores = torch.log_softmax(Bigrams().table.detach().double(), dim=1)
    pairs = [
        (int(ids[place - 1]), int(ids[place]))
        for ids in (sample["input_ids"] for sample in SAMPLES)
        for place in range(2, len(ids))
    ]
    return -sum(float(scores[before, after]) for before, after in pairs), len(pairs)


def batches_of(rank: int, world_size: int, *, is_flat: bool) -> Any:
    if not is_flat:
        return RankBatches(
            order=lambda _epoch: np.arange(len(SAMPLES)),
            num_samples=len(SAMPLES),
            batch_size=2,
            accumulation=1,
            rank=rank,
            world_size=world_size,
            drop_last=False,
        )
    lengths = np.array([[len(sample["input_ids"]) for sample in SAMPLES]])
    # Multiples of one, so that some ranks get fillers.
    packing = equally_full(lengths, (16,), multiple_of=1, seed=0)
    return PackedRankBatches(
        plan=packing.plan,
        num_micro_batches=packing.num_micro_batches,
        filler=filler_of(0),
        accumulation=1,
        rank=rank,
        world_size=world_size,
        drop_last=False,
    )


def evaluate(*, world_size: int, is_flat: bool, is_stop_asked: bool = False) -> list[dict[str, float] | None]:
    """Evaluate as each rank does, alone: nothing is added up, and the loss is the mean of its own part."""
    collate: Collator = FlatCollatorForCausalDataset() if is_flat else DataCollatorForCausalDataset(0)
    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(device=torch.device("cpu")),
        accelerator=SimpleNamespace(reduce=lambda found, **_: found),
        compute_loss_context_manager=torch.no_grad,
        _prepare_inputs=lambda batch: batch,
    )
    found = []
    for rank in range(world_size):
        rows: Any = WithFillers(SAMPLES)
        batches = batches_of(rank, world_size, is_flat=is_flat)
        loader = [collate([rows[index] for index in batch]) for batch in batches]
        found.append(evaluation_metrics(trainer, Bigrams(), loader, prefix="eval", is_stop_asked=lambda: is_stop_asked))
    return found


@pytest.mark.parametrize("is_flat", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_parts_of_all_ranks_make_the_loss_of_every_sample_once(world_size: int, is_flat: bool) -> None:
    total, num_tokens = by_hand()
    parts = [part for part in evaluate(world_size=world_size, is_flat=is_flat) if part is not None]
    assert sum(part["eval_num_tokens"] for part in parts) == num_tokens
    found = sum(part["eval_loss"] * part["eval_num_tokens"] for part in parts)
    assert found == pytest.approx(total, rel=1e-6)


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    (metrics,) = evaluate(world_size=1, is_flat=True)
    assert metrics is not None
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))


def test_an_evaluation_that_is_stopped_gives_nothing() -> None:
    assert evaluate(world_size=2, is_flat=True, is_stop_asked=True) == [None, None]
