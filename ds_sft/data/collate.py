"""A list of samples becomes one padded batch; the one place where shapes are checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ds_sft.contracts import IGNORE_INDEX

Batch = dict[str, torch.Tensor]


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
    padding_side: Literal["left", "right"] = "right"
    multiple_of: int = 1

    def __call__(self, rows: Sequence[dict[str, Sequence[int]]]) -> Batch:
        """Make a batch.

        The decoder's inputs are made here, because the trainer takes the labels away before the model could shift
        them.

        Args:
            rows: Samples with `input_ids` [S] and `labels` [T].

        Returns:
            `input_ids` and `attention_mask` [B, S], `labels` and `decoder_input_ids` [B, T].
        """
        inputs, mask = self._pad([row["input_ids"] for row in rows], self.pad_token_id, self.padding_side)
        labels, _ = self._pad([row["labels"] for row in rows], IGNORE_INDEX, "right")
        decoder_inputs = labels.roll(1, dims=1)
        decoder_inputs[:, 0] = self.decoder_start_token_id
        decoder_inputs.masked_fill_(decoder_inputs.eq(IGNORE_INDEX), self.decoder_pad_token_id)
        return {
            "input_ids": inputs,
            "attention_mask": mask,
            "labels": labels,
            "decoder_input_ids": decoder_inputs,
        }

    def _pad(
        self, sequences: Sequence[Sequence[int]], fill: int, side: Literal["left", "right"]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the padded ids and the mask of real tokens, both [B, longest]."""
        longest = max(len(sequence) for sequence in sequences)
        if longest == 0:
            raise AssertionError(f"a batch of {len(sequences)} samples without a single token")
        width = -(-longest // self.multiple_of) * self.multiple_of
        ids = torch.full((len(sequences), width), fill, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            place = slice(width - len(sequence), width) if side == "left" else slice(0, len(sequence))
            ids[row, place] = torch.tensor(sequence, dtype=torch.long)
            mask[row, place] = 1
        return ids, mask
