"""A list of samples becomes one batch, flat or padded; the one place where shapes are checked.

Labels leave here aligned with the logits of their positions, for every family: the loss shifts nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch

from ds_sft.contracts import IGNORE_INDEX

Batch = dict[str, torch.Tensor]
Rows = Sequence[dict[str, Sequence[int]]]
Side = Literal["left", "right"]


@dataclass(frozen=True)
class DataCollatorForSupervisedDataset:
    """Pads encoder-decoder samples to the longest of the batch.

    Args:
        pad_token_id: Fills inputs that end early.
        decoder_start_token_id: What the decoder sees before the first target token.
        decoder_pad_token_id: Fills decoder inputs that end early; the loss never looks there.
        padding_side: Side on which the encoder's inputs are padded; targets are padded on the right.
        multiple_of: Lengths are rounded up to a multiple of this (8 suits tensor cores).
    """

    pad_token_id: int
    decoder_start_token_id: int
    decoder_pad_token_id: int
    padding_side: Side = "right"
    multiple_of: int = 1

    def __call__(self, rows: Rows) -> Batch:
        """Make a batch.

        The decoder's inputs are made here, because the trainer takes the labels away before the model could shift
        them.

        Args:
            rows: Samples with `input_ids` [S] and `labels` [T].

        Returns:
            `input_ids` and `attention_mask` [B, S], `labels` and `decoder_input_ids` [B, T].
        """
        inputs, mask = _pad([row["input_ids"] for row in rows], self.pad_token_id, self.padding_side, self.multiple_of)
        labels, _ = _pad([row["labels"] for row in rows], IGNORE_INDEX, "right", self.multiple_of)
        decoder_inputs = labels.roll(1, dims=1)
        decoder_inputs[:, 0] = self.decoder_start_token_id
        decoder_inputs.masked_fill_(decoder_inputs.eq(IGNORE_INDEX), self.decoder_pad_token_id)
        return {
            "input_ids": inputs,
            "attention_mask": mask,
            "labels": labels,
            "decoder_input_ids": decoder_inputs,
        }


@dataclass(frozen=True)
class DataCollatorForCausalDataset:
    """Pads decoder-only samples to the longest of the batch, and gives each position the token after it as its label.

    Args:
        pad_token_id: Fills inputs that end early.
        padding_side: Side on which samples are padded.
        multiple_of: Lengths are rounded up to a multiple of this (8 suits tensor cores).
    """

    pad_token_id: int
    padding_side: Side = "right"
    multiple_of: int = 1

    def __call__(self, rows: Rows) -> Batch:
        """Make a batch.

        Args:
            rows: Samples with `input_ids` [T] and `labels` [T], the label of a token at the token's own place.

        Returns:
            `input_ids`, `attention_mask` and `labels` [B, T], the labels at the place of the token before.
        """
        inputs, mask = _pad([row["input_ids"] for row in rows], self.pad_token_id, self.padding_side, self.multiple_of)
        labels, _ = _pad([row["labels"] for row in rows], IGNORE_INDEX, self.padding_side, self.multiple_of)
        labels = labels.roll(-1, dims=1)
        labels[:, -1] = IGNORE_INDEX
        # Padding on the left now holds a row's first label, which has no token before it.
        labels.masked_fill_(mask.eq(0), IGNORE_INDEX)
        return {"input_ids": inputs, "attention_mask": mask, "labels": labels}


@dataclass(frozen=True)
class FlatCollatorForSupervisedDataset:
    """Lays encoder-decoder samples one behind the other, without padding.

    Args:
        decoder_start_token_id: What the decoder sees before the first target token of each sample.
        decoder_pad_token_id: What it sees in place of a target token that the loss must not look at.
    """

    decoder_start_token_id: int
    decoder_pad_token_id: int

    def __call__(self, rows: Rows) -> Batch:
        """Make a batch of D documents.

        Args:
            rows: Samples with `input_ids` and `labels`.

        Returns:
            `input_ids` [1, S], `labels` and `decoder_input_ids` [1, T]; where documents begin and end among them,
            `offsets` and `decoder_offsets` [D + 1].
        """
        inputs, offsets = _lay_flat([row["input_ids"] for row in rows])
        labels, decoder_offsets = _lay_flat([row["labels"] for row in rows])
        decoder_inputs = labels.roll(1, dims=1)
        decoder_inputs[:, decoder_offsets[:-1]] = self.decoder_start_token_id
        decoder_inputs.masked_fill_(decoder_inputs.eq(IGNORE_INDEX), self.decoder_pad_token_id)
        return {
            "input_ids": inputs,
            "offsets": offsets,
            "labels": labels,
            "decoder_input_ids": decoder_inputs,
            "decoder_offsets": decoder_offsets,
        }


@dataclass(frozen=True)
class FlatCollatorForCausalDataset:
    """Lays decoder-only samples one behind the other, without padding."""

    def __call__(self, rows: Rows) -> Batch:
        """Make a batch of D documents.

        Args:
            rows: Samples with `input_ids` and `labels`, the label of a token at the token's own place.

        Returns:
            `input_ids` and `labels` [1, T], the labels at the place of the token before; where documents begin and end
            among them, `offsets` [D + 1].
        """
        inputs, offsets = _lay_flat([row["input_ids"] for row in rows])
        labels, label_offsets = _lay_flat([row["labels"] for row in rows])
        if not torch.equal(offsets, label_offsets):
            raise AssertionError("a sample must have a label for each token")
        labels = labels.roll(-1, dims=1)
        # No token of its own comes before the first label of a document.
        labels[:, offsets[1:] - 1] = IGNORE_INDEX
        return {"input_ids": inputs, "labels": labels, "offsets": offsets}


@dataclass(frozen=True)
class TreeCollatorForCausalDataset:
    """Lays trees of decoder-only samples one behind the other, without padding."""

    def __call__(self, rows: Rows) -> Batch:
        """Make a batch of D samples, of which T tokens are stored.

        Args:
            rows: Trees, as `ds_sft.data.sharing.SampleTrees` gives them.

        Returns:
            `input_ids` [1, T] without what samples share; `labels` [1, U] of the samples whole, at the place of the
            token before; where samples begin and end among those, `offsets` [D + 1]; how many tokens each begins with
            as the one before it does, `shared` [D].
        """
        inputs, labels, shared = (
            torch.cat([torch.as_tensor(row[name], dtype=torch.long) for row in rows])
            for name in ("input_ids", "labels", "shared")
        )
        offsets = torch.tensor([0, *accumulate(length for row in rows for length in row["lengths"])], dtype=torch.int32)
        if len(labels) != offsets[-1] or len(inputs) != offsets[-1] - shared.sum():
            raise AssertionError("a sample must have a label for each token, and a tree each token that is not shared")
        labels = labels.roll(-1)
        labels[offsets[1:] - 1] = IGNORE_INDEX
        return {"input_ids": inputs[None], "labels": labels[None], "offsets": offsets, "shared": shared}


Collator = (
    DataCollatorForCausalDataset
    | DataCollatorForSupervisedDataset
    | FlatCollatorForCausalDataset
    | FlatCollatorForSupervisedDataset
    | TreeCollatorForCausalDataset
)


def _lay_flat(sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the ids [1, all tokens], and where each sequence begins and the last one ends [D + 1]."""
    lengths = [len(sequence) for sequence in sequences]
    if 0 in lengths:
        raise AssertionError(f"sample {lengths.index(0)} of {len(lengths)} of a flat batch is without a token")
    ids = torch.cat([torch.as_tensor(sequence, dtype=torch.long) for sequence in sequences])
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return ids[None], offsets


def _pad(
    sequences: Sequence[Sequence[int]], fill: int, side: Side, multiple_of: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the padded ids and the mask of real tokens, both [B, longest]."""
    longest = max(len(sequence) for sequence in sequences)
    if longest == 0:
        raise AssertionError(f"a batch of {len(sequences)} samples without a single token")
    width = -(-longest // multiple_of) * multiple_of
    ids = torch.full((len(sequences), width), fill, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if side == "left" else slice(0, len(sequence))
        ids[row, place] = torch.as_tensor(sequence, dtype=torch.long)
        mask[row, place] = 1
    return ids, mask
