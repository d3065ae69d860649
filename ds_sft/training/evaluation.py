"""The loss over held-out samples, summed over all ranks, and what the model answers."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from ds_sft.training.inputs import inputs_of
from ds_sft.training.predictions import Predicting, prediction_metrics

_LARGEST_EXPONENT = 700.0
"""exp of more is no float."""


def evaluation_metrics(
    trainer: Trainer,
    model: nn.Module,
    loader: Any,
    *,
    prefix: str,
    is_stop_asked: Callable[[], bool],
    predicting: Predicting | None = None,
) -> dict[str, float] | None:
    """Give the mean loss over all supervised tokens; every rank must call this.

    Args:
        trainer: Puts batches on the device and adds up over ranks.
        model: The engine, or what can evaluate before there is one.
        loader: Of batches.
        prefix: Begins the names of the metrics.
        is_stop_asked: Whether this rank has been asked to stop; all ranks then stop after the same batch.
        predicting: Questions that are answered too; None for none.

    Returns:
        `loss` in nats, `perplexity`, `num_tokens` and, with questions, the scores of the answers, each with the
        prefix; None when it was stopped.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.double, device=trainer.args.device)
    for batch in loader:
        inputs = inputs_of(batch, device=trainer.args.device)
        del inputs["labels"]
        with torch.no_grad(), trainer.compute_loss_context_manager():
            losses = model(**inputs, use_cache=False)["target_losses"].double()
        found = torch.stack([losses.sum(), losses.new_tensor(len(losses)), losses.new_tensor(is_stop_asked())])
        # A plain sum over ranks: each sample is in one batch of one rank, and fillers count nothing.
        sums += trainer.accelerator.reduce(found, reduction="sum")
        if sums[2]:
            break
    total_loss, total_tokens, is_stopped = sums.tolist()
    more: dict[str, float] | None = {}
    if predicting is not None and not is_stopped:
        more = prediction_metrics(predicting, trainer, model, prefix=prefix, is_stop_asked=is_stop_asked)
    model.train(was_training)
    if is_stopped or more is None:
        return None
    loss = total_loss / max(total_tokens, 1.0)
    return {
        f"{prefix}_loss": loss,
        f"{prefix}_perplexity": math.exp(min(loss, _LARGEST_EXPONENT)),
        f"{prefix}_num_tokens": total_tokens,
        **more,
    }
