"""Head and loss in one: only supervised tokens are scored, a few at a time, and no scores are kept.

The loss is a sum over supervised tokens, divided by their number in the whole global batch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.model.new_rows import NewRowsHead

_CHUNK_BYTES = {"cpu": 2**27, "cuda": 2**30}
"""Scores in memory at a time. Too few rows make thin products: one row each is 12 times slower than 256."""


@dataclass(frozen=True)
class Targets:
    """What some states should foretell.

    Args:
        places: Of the states, counted over rows laid end to end, shape [targets].
        ids: The tokens, shape [targets].
        label_smoothing: Share of a target's weight that is spread over the vocabulary.
    """

    places: torch.Tensor
    ids: torch.Tensor
    label_smoothing: float = 0.0

    def to(self, device: torch.device) -> "Targets":
        """Copy to a device without waiting for it.

        Args:
            device: Of the model.

        Returns:
            The same targets there.
        """
        places, ids = (tensor.to(device, non_blocking=True) for tensor in (self.places, self.ids))
        return replace(self, places=places, ids=ids)


@dataclass
class TargetLosses(ModelOutput):
    """What a model gives that was asked for losses and not for scores.

    Args:
        loss: Sum over the targets, in nats; a scalar.
        target_losses: Of each target, without a gradient, shape [targets].
    """

    loss: torch.Tensor | None = None
    target_losses: torch.Tensor | None = None


class LossHead(nn.Linear):
    """An output head that gives scores, or losses without keeping scores.

    The loss is made in here because under ZeRO-3 the weight is whole only while its own module runs.

    Args:
        hidden_size: Width H of the states.
        vocab_size: Number V of scores.
    """

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__(hidden_size, vocab_size, bias=False)

    def forward(  # type: ignore[override]  # losses, if there are targets
        self,
        states: torch.Tensor,
        target_ids: torch.Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        own: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Score states, or compare them with targets.

        Args:
            states: Shape [..., H]; [targets, H] with `target_ids`.
            target_ids: What each state should foretell, shape [targets].
            label_smoothing: Share of a target's weight that is spread over the vocabulary.
            own: Rows [R, H] in place of some of the head's, and which these are [R]; only with `target_ids`.

        Returns:
            Scores [..., V]; with `target_ids` the summed loss, and each target's without a gradient.
        """
        if target_ids is None:
            return functional.linear(states, self.weight)
        dtype, is_training = working_dtype(states), torch.is_grad_enabled()
        found: tuple[torch.Tensor, torch.Tensor] = _LossWithoutScores.apply(  # type: ignore[no-untyped-call]  # as torch has it
            *(states, self.weight, *(own or (None, None))),
            *(target_ids, (label_smoothing, dtype, is_training)),
        )
        return found


def working_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Give the dtype that matrix products with a tensor have, autocast or not.

    Args:
        tensor: Floating point.

    Returns:
        Its own dtype, or that of the autocast around.
    """
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def targets_of(labels: torch.Tensor, *, label_smoothing: float = 0.0) -> Targets:
    """Find the supervised tokens of a batch; before it is copied to a device, no device is waited for.

    Args:
        labels: Target ids aligned with the states that foretell them, `IGNORE_INDEX` elsewhere, shape [B, T].
        label_smoothing: Share of a target's weight that is spread over the vocabulary.

    Returns:
        The targets.
    """
    flat = labels.flatten()
    places = flat.ne(IGNORE_INDEX).nonzero().flatten()
    return Targets(places, flat[places], label_smoothing)


def losses_at(targets: Targets, *, states: torch.Tensor, head: nn.Module) -> TargetLosses:
    """Compare the states that foretell targets with these.

    Args:
        targets: From `targets_of`.
        states: Final states, scaled as the head wants them, shape [B, T, H].
        head: A `LossHead`, also under new rows; any other, such as one with an adapter, gives the scores of all targets
            at once.

    Returns:
        The losses.
    """
    rows = states.flatten(0, 1).index_select(0, targets.places)
    if isinstance(head, LossHead) or (isinstance(head, NewRowsHead) and isinstance(head.base, LossHead)):
        total, losses = head(rows, targets.ids, label_smoothing=targets.label_smoothing)
        return TargetLosses(total, losses)
    scores = head(rows)
    losses = functional.cross_entropy(
        scores.to(torch.promote_types(scores.dtype, torch.float32)),
        targets.ids,
        reduction="none",
        label_smoothing=targets.label_smoothing,
    )
    return TargetLosses(losses.sum(), losses.detach())


def token_mean_loss(
    outputs: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Give this rank's share of the loss of a global batch.

    transformers 5.23 averages each micro-batch of a T5 by itself and adds the averages up, so that two ranks double
    the loss. Here every token weighs the same, however the batch is split over ranks and accumulation steps.

    Args:
        outputs: Of the model, with the summed `loss`.
        labels: Target ids, shape [B, T].
        num_items_in_batch: Supervised tokens of all ranks and accumulation steps; None for this micro-batch alone.

    Returns:
        The sum of the token losses divided by that number; a scalar.
    """
    if num_items_in_batch is None:
        num_items_in_batch = labels.ne(IGNORE_INDEX).sum().clamp(min=1)
    return outputs["loss"] / num_items_in_batch


class _LossWithoutScores(torch.autograd.Function):
    """Cross entropy of a linear head, whose gradients are made together with the loss, chunk by chunk.

    Three matrix products for each chunk: scores, gradient of the states, gradient of the weight. Making the scores
    again in the backward pass would be a fourth. The weight's gradient is summed in fp32 whatever the dtype: summed in
    bf16, small parts would vanish beside large ones.
    """

    @staticmethod
    def forward(  # autograd takes no keywords
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        own: torch.Tensor | None,
        own_ids: torch.Tensor | None,
        target_ids: torch.Tensor,
        how: tuple[float, torch.dtype, bool],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the summed loss, and that of each target."""
        label_smoothing, dtype, is_training = how
        wide = torch.promote_types(dtype, torch.float32)
        needs = [is_training and needed for needed in ctx.needs_input_grad[:3]]
        losses = rows.new_empty(len(rows), dtype=wide)
        row_slopes = torch.empty_like(rows, dtype=dtype) if needs[0] else None
        weight_slopes, own_slopes = (
            torch.zeros_like(each, dtype=wide) if needed and each is not None else None
            for each, needed in zip((weight, own), needs[1:], strict=True)
        )
        with torch.autocast(rows.device.type, enabled=False):
            table, extra = weight.to(dtype), None if own is None else own.to(dtype)
            for part in _chunks(len(rows), bytes_of_row=len(weight) * wide.itemsize, device=rows.device):
                states, targets = rows[part].to(dtype), target_ids[part, None]
                logs = _scores(states, table, extra, own_ids).log_softmax(dim=-1, dtype=wide)
                losses[part] = _token_losses(logs, targets, label_smoothing)
                slopes = _score_slopes(logs, targets, label_smoothing).to(dtype) if any(needs) else logs
                taken = None if own_ids is None else _take_columns(slopes, own_ids)
                if row_slopes is not None:
                    torch.mm(slopes, table, out=row_slopes[part])
                    if taken is not None and extra is not None:
                        row_slopes[part].addmm_(taken, extra)
                if weight_slopes is not None:
                    _add_product(weight_slopes, slopes.t(), states)
                if own_slopes is not None and taken is not None:
                    _add_product(own_slopes, taken.t(), states)
                del logs, slopes  # as large as the scores; the next chunk's must not come on top
        ctx.slopes = row_slopes, weight_slopes, own_slopes
        ctx.dtypes = rows.dtype, weight.dtype, None if own is None else own.dtype
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor, _losses: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients in place: they are as large as the head, and are needed once."""
        found, ctx.slopes = ctx.slopes, None
        scaled = (
            None if slopes is None else slopes.mul_(slope).to(dtype)
            for slopes, dtype in zip(found, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None)


def _chunks(num_rows: int, *, bytes_of_row: int, device: torch.device) -> Iterator[slice]:
    """Cut rows into equal chunks whose scores fit into the bound."""
    most = max(1, _CHUNK_BYTES.get(device.type, _CHUNK_BYTES["cuda"]) // bytes_of_row)
    size = -(-num_rows // max(1, -(-num_rows // most)))
    for begin in range(0, num_rows, max(1, size)):
        yield slice(begin, begin + size)


def _scores(
    states: torch.Tensor, table: torch.Tensor, own: torch.Tensor | None, own_ids: torch.Tensor | None
) -> torch.Tensor:
    scores = states @ table.t()
    return scores if own is None or own_ids is None else scores.index_copy_(1, own_ids, states @ own.t())


def _take_columns(slopes: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Take the gradients of some scores out, and leave zeros: the table's rows have no part in those."""
    taken = slopes.index_select(1, ids)
    slopes.index_fill_(1, ids, 0)
    return taken


def _token_losses(logs: torch.Tensor, targets: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    losses = (label_smoothing - 1) * logs.gather(1, targets)[:, 0]
    return losses - label_smoothing * logs.mean(dim=-1) if label_smoothing else losses


def _score_slopes(logs: torch.Tensor, targets: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Turn log probabilities [rows, V] into the gradient of the scores, in place: p - (1 - s) at the target - s / V."""
    slopes = logs.exp_()
    if label_smoothing:
        slopes -= label_smoothing / slopes.shape[1]
    return slopes.scatter_add_(1, targets, torch.full_like(targets, label_smoothing - 1, dtype=slopes.dtype))


def _add_product(into: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if into.dtype == left.dtype:
        into.addmm_(left, right)
    else:
        into += left @ right
