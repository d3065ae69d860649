"""A filler is its sample with nothing to learn: no label, so no loss and no token."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ds_sft.config.sources import DataArguments
from ds_sft.contracts import IGNORE_INDEX, LayoutOptions
from ds_sft.data.collate import (
    Batch,
    Collator,
    DataCollatorForCausalDataset,
    DataCollatorForSupervisedDataset,
    FlatCollatorForCausalDataset,
    FlatCollatorForSupervisedDataset,
)
from ds_sft.data.datasets import Row, SampleDataset, build_dataset
from ds_sft.data.draft import Encoder
from ds_sft.data.fillers import WithFillers, filler_of
from ds_sft.families import family_named
from ds_sft.model.loss import LossHead, losses_at, targets_of, token_mean_loss

COLLATORS: list[Collator] = [
    DataCollatorForSupervisedDataset(pad_token_id=0, decoder_start_token_id=0, decoder_pad_token_id=0),
    DataCollatorForCausalDataset(pad_token_id=0),
    DataCollatorForCausalDataset(pad_token_id=0, padding_side="left"),
]

FLAT: list[Collator] = [
    FlatCollatorForSupervisedDataset(decoder_start_token_id=0, decoder_pad_token_id=0),
    FlatCollatorForCausalDataset(),
]


class Two:
    """Two samples, one longer than the other."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Row:
        ids = np.arange(1, 4 + index, dtype=np.int32)
        return {"input_ids": ids, "labels": ids.copy()}


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint: Path) -> Encoder:
    """The tiny model's tokenizer."""
    family = family_named("flan_t5")
    return Encoder(family, family.load_tokenizer(tiny_checkpoint), LayoutOptions(512))


def plain(row: Row) -> dict[str, Sequence[int]]:
    return {name: ids.tolist() for name, ids in row.items()}


def build(file: Path, encoder: Encoder, *, is_lazy: bool) -> SampleDataset:
    return build_dataset(file, data=DataArguments(str(file), lazy_preprocess=is_lazy), encoder=encoder)


def batch_of(collate: Collator, *rows: Row) -> Batch:
    return collate([plain(row) for row in rows])


def only_row(rows: list[Row]) -> Row:
    (row,) = rows
    return row


def test_samples_are_those_of_the_dataset() -> None:
    dataset = WithFillers(Two())
    assert len(dataset) == 2
    assert [plain(dataset[index]) for index in range(2)] == [plain(Two()[index]) for index in range(2)]


def test_a_filler_reads_as_its_sample_and_supervises_nothing() -> None:
    assert plain(WithFillers(Two())[filler_of(1)]) == {"input_ids": [1, 2, 3, 4], "labels": [IGNORE_INDEX] * 4}


def test_a_filler_leaves_its_sample_as_it_is() -> None:
    row = Two()[0]
    WithFillers([row])[filler_of(0)]
    assert plain(row) == plain(Two()[0])


@pytest.mark.parametrize("collate", COLLATORS)
def test_a_filler_brings_no_label_into_a_batch(collate: Collator) -> None:
    dataset = WithFillers(Two())
    labels = batch_of(collate, dataset[0], dataset[filler_of(1)], dataset[1])["labels"]
    without = batch_of(collate, dataset[0], dataset[1])["labels"]
    assert labels[[0, 2]].tolist() == without.tolist()
    assert labels[1].eq(IGNORE_INDEX).all()


@pytest.mark.parametrize("collate", [*COLLATORS, *FLAT])
def test_a_batch_of_fillers_alone_has_no_loss_and_no_gradient(collate: Collator) -> None:
    labels = batch_of(collate, WithFillers(Two())[filler_of(1)])["labels"]
    states = torch.randn(*labels.shape, 8, requires_grad=True)
    losses = losses_at(targets_of(labels), states=states, head=LossHead(8, 9))
    loss = token_mean_loss(losses, labels, torch.tensor(5))
    loss.backward()  # type: ignore[no-untyped-call]  # as torch has it
    assert loss.item() == 0.0
    assert states.grad is not None
    assert not states.grad.any()


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("is_lazy", [False, True])
def test_loaders_give_fillers_of_both_datasets(
    conversations_file: Path, encoder: Encoder, is_lazy: bool, num_workers: int
) -> None:
    samples = build(conversations_file, encoder, is_lazy=is_lazy)
    loader: DataLoader[Row] = DataLoader(
        WithFillers(samples), batch_sampler=[[3], [filler_of(3)]], num_workers=num_workers, collate_fn=only_row
    )
    sample, filler = loader
    assert plain(sample) == plain(samples[3])
    assert filler["input_ids"].tolist() == sample["input_ids"].tolist()
    assert filler["labels"].tolist() == [IGNORE_INDEX] * len(sample["labels"])
