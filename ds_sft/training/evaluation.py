"""The loss over held-out samples, summed over all ranks."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.training.inputs import inputs_of

_LARGEST_EXPONENT = 700.0
"""exp of more is no float."""


def evaluation_metrics(
    trainer: Trainer, model: nn.Module, loader: Any, *, prefix: str, is_stop_asked: Callable[[], bool]
) -> dict[str, float] | None:
    """Give the mean loss over all supervised tokens; every rank must call this.

    Args:
        trainer: Puts batches on the device and gathers over ranks.
        model: The engine, or what can evaluate before there is one.
        loader: Of batches.
        prefix: Begins the names of the metrics.
        is_stop_asked: Whether this rank has been asked to stop; all ranks then stop after the same batch.

    Returns:
        `loss` in nats, `perplexity` and `num_tokens`, each with the prefix; None when it was stopped.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.double, device=trainer.args.device)
    for batch in loader:
        inputs = inputs_of(batch, device=trainer.args.device)
        labels = inputs.pop("labels")
        with torch.no_grad(), trainer.compute_loss_context_manager():
            losses = model(**inputs, use_cache=False)["target_losses"]
        totals, counts = _summed_by_row(losses, labels.ne(IGNORE_INDEX))
        rows = torch.stack([totals, counts, torch.full_like(totals, float(is_stop_asked()))], dim=1)
        # Row by row, because the last batch is filled up with repeated samples, which gathering drops again.
        sums += trainer.accelerator.gather_for_metrics(rows).sum(dim=0)
        if sums[2]:
            break
    model.train(was_training)
    total, num_tokens, is_stopped = sums.tolist()
    if is_stopped:
        return None
    loss = total / max(num_tokens, 1.0)
    return {
        f"{prefix}_loss": loss,
        f"{prefix}_perplexity": math.exp(min(loss, _LARGEST_EXPONENT)),
        f"{prefix}_num_tokens": num_tokens,
    }


def _summed_by_row(losses: torch.Tensor, is_supervised: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the summed loss and the number of targets of each row, both [B]."""
    by_place = torch.zeros(is_supervised.shape, dtype=torch.double, device=losses.device)
    return by_place.masked_scatter(is_supervised, losses.double()).sum(dim=1), is_supervised.sum(dim=1).double()
