"""The loss: a sum over supervised tokens, divided by their number in the whole global batch."""

from collections.abc import Mapping

import torch
from torch.nn import functional

from ds_sft.contracts import IGNORE_INDEX


def token_losses(logits: torch.Tensor, labels: torch.Tensor, *, label_smoothing: float = 0.0) -> torch.Tensor:
    """Give the cross entropy of every target token, computed in fp32.

    Args:
        logits: Scores, shape [B, T, V].
        labels: Target ids aligned with the logits, `IGNORE_INDEX` where the loss must not look, shape [B, T].
        label_smoothing: Share of the target's weight that is spread over the vocabulary.

    Returns:
        Losses in nats, zero where ignored, shape [B, T].
    """
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return losses.view_as(labels)


def token_mean_loss(
    outputs: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    *,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Give this rank's share of the loss of a global batch.

    transformers 5.23 averages each micro-batch of a T5 by itself and adds the averages up, so that two ranks double
    the loss. Here every token weighs the same, however the batch is split over ranks and accumulation steps.

    Args:
        outputs: Of the model, with `logits` of shape [B, T, V].
        labels: Target ids aligned with the logits, shape [B, T].
        num_items_in_batch: Supervised tokens of all ranks and accumulation steps; None for this micro-batch alone.
        label_smoothing: As in `token_losses`.

    Returns:
        The sum of the token losses divided by that number; a scalar.
    """
    total = token_losses(outputs["logits"], labels, label_smoothing=label_smoothing).sum()
    if num_items_in_batch is None:
        num_items_in_batch = labels.ne(IGNORE_INDEX).sum().clamp(min=1)
    return total / num_items_in_batch
