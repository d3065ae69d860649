"""Samples become one padded batch with the shapes and masks that the model needs."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.data.collate import (
    Batch,
    DataCollatorForCausalDataset,
    DataCollatorForSupervisedDataset,
    FlatCollatorForCausalDataset,
    FlatCollatorForSupervisedDataset,
)

IGNORE = IGNORE_INDEX
PAD, START, DECODER_PAD = 90, 91, 92
COLLATE = DataCollatorForSupervisedDataset(
    pad_token_id=PAD, decoder_start_token_id=START, decoder_pad_token_id=DECODER_PAD
)
ROWS: list[dict[str, Sequence[int]]] = [
    {"input_ids": [5, 6, 7], "labels": [8]},
    {"input_ids": [9], "labels": [IGNORE, 11, 12]},
]


def test_inputs_are_padded_on_the_right_and_masked() -> None:
    batch = COLLATE(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [9, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_inputs_are_padded_on_the_left_when_asked_and_targets_still_on_the_right() -> None:
    batch = replace(COLLATE, padding_side="left")(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [PAD, PAD, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["labels"].tolist() == [[8, IGNORE, IGNORE], [IGNORE, 11, 12]]


def test_labels_are_padded_with_what_the_loss_ignores() -> None:
    assert COLLATE(ROWS)["labels"].tolist() == [[8, IGNORE, IGNORE], [IGNORE, 11, 12]]


def test_decoder_inputs_are_the_labels_one_step_later_behind_the_start_token() -> None:
    assert COLLATE(ROWS)["decoder_input_ids"].tolist() == [
        [START, 8, DECODER_PAD],
        [START, DECODER_PAD, 11],
    ]


def test_a_token_whose_id_is_the_padding_id_is_still_attended_to() -> None:
    batch = COLLATE([{"input_ids": [PAD, 5], "labels": [PAD]}])
    assert batch["attention_mask"].tolist() == [[1, 1]]
    assert batch["labels"].tolist() == [[PAD]]


def test_lengths_are_rounded_up_to_the_multiple() -> None:
    batch = replace(COLLATE, multiple_of=8)([{"input_ids": [5] * 8, "labels": [5] * 9}])
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "input_ids": (1, 8),
        "attention_mask": (1, 8),
        "labels": (1, 16),
        "decoder_input_ids": (1, 16),
    }


def test_ids_are_64_bit_integers() -> None:
    assert {tensor.dtype for tensor in COLLATE(ROWS).values()} == {torch.int64}


def test_a_batch_without_a_token_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="a batch of 2 samples without a single token"):
        COLLATE([{"input_ids": [], "labels": [1]}] * 2)


CAUSAL = DataCollatorForCausalDataset(pad_token_id=PAD)
CAUSAL_ROWS: list[dict[str, Sequence[int]]] = [
    {"input_ids": [5, 6, 7, 8], "labels": [IGNORE, IGNORE, 7, 8]},
    {"input_ids": [9, 10], "labels": [IGNORE, 10]},
]


def test_a_causal_label_stands_at_the_place_of_the_token_before() -> None:
    batch = CAUSAL(CAUSAL_ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE, 7, 8, IGNORE], [10, IGNORE, IGNORE, IGNORE]]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_causal_samples_padded_on_the_left_keep_ids_and_labels_side_by_side() -> None:
    batch = replace(CAUSAL, padding_side="left", multiple_of=8)(CAUSAL_ROWS)
    assert batch["input_ids"].tolist() == [[PAD] * 4 + [5, 6, 7, 8], [PAD] * 6 + [9, 10]]
    assert batch["labels"].tolist() == [[IGNORE] * 5 + [7, 8, IGNORE], [IGNORE] * 6 + [10, IGNORE]]


FLAT = FlatCollatorForSupervisedDataset(decoder_start_token_id=START, decoder_pad_token_id=DECODER_PAD)
FLAT_CAUSAL = FlatCollatorForCausalDataset()


def plain(batch: Batch) -> dict[str, list[object]]:
    return {name: tensor.tolist() for name, tensor in batch.items()}


def test_flat_causal_samples_stand_one_behind_the_other_and_foretell_nothing_of_the_next() -> None:
    rows: list[dict[str, Sequence[int]]] = [*CAUSAL_ROWS, {"input_ids": [3, 4], "labels": [3, 4]}]
    assert plain(FLAT_CAUSAL(rows)) == {
        "input_ids": [[5, 6, 7, 8, 9, 10, 3, 4]],
        "labels": [[IGNORE, 7, 8, IGNORE, 10, IGNORE, 4, IGNORE]],
        "offsets": [0, 4, 6, 8],
    }


def test_flat_targets_begin_with_the_start_token_each() -> None:
    assert plain(FLAT(ROWS)) == {
        "input_ids": [[5, 6, 7, 9]],
        "offsets": [0, 3, 4],
        "labels": [[8, IGNORE, 11, 12]],
        "decoder_input_ids": [[START, START, DECODER_PAD, 11]],
        "decoder_offsets": [0, 1, 4],
    }


def test_a_flat_sample_has_the_labels_and_decoder_inputs_of_the_padded_one() -> None:
    for flat, padded, rows in ((FLAT, COLLATE, ROWS), (FLAT_CAUSAL, CAUSAL, CAUSAL_ROWS)):
        for row in rows:
            of_flat, of_padded = plain(flat([row])), plain(padded([row]))
            assert {name: of_flat[name] for name in of_padded if name != "attention_mask"} == {
                name: ids for name, ids in of_padded.items() if name != "attention_mask"
            }


@pytest.mark.parametrize("collate", [FLAT, FLAT_CAUSAL])
def test_flat_ids_are_64_bit_integers_and_what_tells_documents_is_32_bit(
    collate: FlatCollatorForSupervisedDataset | FlatCollatorForCausalDataset,
) -> None:
    batch = collate(CAUSAL_ROWS)
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        name: torch.int32 if name.endswith("offsets") else torch.int64 for name in batch
    }


def test_a_flat_sample_without_a_token_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="sample 1 of 2 of a flat batch is without a token"):
        FLAT([ROWS[0], {"input_ids": [], "labels": [1]}])


def test_a_causal_sample_whose_labels_are_not_its_tokens_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="a label for each token"):
        FLAT_CAUSAL(ROWS)
