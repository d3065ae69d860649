"""What a model costs, counted from its shape: parameters and the operations of training; no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ds_sft.contracts import ModelShape, Work

_MULTIPLY_AND_ADD = 2
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
MASTER_WEIGHT = 4
ADAM_AVERAGES = 8
"""Bytes of an optimizer for a weight: its fp32 copy, and two averages in fp32."""


@dataclass(frozen=True)
class Disk:
    """What a run writes, in bytes.

    Args:
        exported: The model or the adapters at the end.
        checkpoint: One of them.
        num_checkpoints: Most that lie there at a time.
    """

    exported: int
    checkpoint: int
    num_checkpoints: int

    @property
    def most(self) -> int:
        """What lies there at most."""
        return self.exported + self.num_checkpoints * self.checkpoint


def num_parameters(shape: ModelShape) -> int:
    """Count the parameters of a model; a tied head is no second one.

    Args:
        shape: From the card's `shape_of`.

    Returns:
        Their number.
    """
    return sum(weight.num * math.prod(weight.shape) for weight in shape.weights)


def work_of(targets: Sequence[int], sources: Sequence[int] = (), *, num_supervised: int) -> Work:
    """Sum up documents.

    Args:
        targets: Tokens of each target, or of each document without an encoder; padding is no work.
        sources: Tokens of each source, as many as targets; empty without an encoder.
        num_supervised: Tokens with a label, of all of them.

    Returns:
        The sums.
    """
    return Work(
        source_tokens=sum(sources),
        target_tokens=sum(targets),
        supervised_tokens=num_supervised,
        source_pairs=sum(source * source for source in sources),
        target_pairs=sum(target * (target + 1) // 2 for target in targets),
        cross_pairs=sum(source * target for source, target in zip(sources, targets, strict=True)) if sources else 0,
    )


def training_flops(shape: ModelShape, work: Work, *, is_frozen: bool = False) -> float:
    """Count the operations of the matrix products that training needs, forward and backward.

    Left out: padding, the masked half of causal scores, the head on tokens without supervision, recomputation under
    gradient checkpointing, the optimizer, norms and softmax, and the adapters themselves (a hundredth or less).

    Args:
        shape: From the card's `shape_of`.
        work: Documents of a step, or of a whole run.
        is_frozen: Whether adapters train and not the weights, which then get no gradient of their own.

    Returns:
        A multiplication and an addition are two.
    """
    tokens = {
        "source": work.source_tokens,
        "target": work.target_tokens,
        "supervised": work.supervised_tokens,
        "nothing": 0,
    }
    with_weights = sum(tokens[weight.reader] * weight.num * math.prod(weight.shape) for weight in shape.weights)
    of_pairs = (
        work.source_pairs * shape.source_pair
        + work.target_pairs * shape.target_pair
        + work.cross_pairs * shape.cross_pair
    )
    # Forward, the gradient of what comes in, and that of the weight; attention multiplies two of what comes in.
    return float(_MULTIPLY_AND_ADD * ((2 if is_frozen else 3) * with_weights + 3 * of_pairs))


def disk_of(
    *,
    trained: int,
    exported: int,
    dtype: str,
    num_checkpoints: int,
    is_model_only: bool,
    has_averages: bool,
) -> Disk:
    """Count what a run writes.

    Args:
        trained: Parameters that train.
        exported: Parameters of the export: the model, or what trains beside it.
        dtype: Number format of the export.
        num_checkpoints: That are there at once.
        is_model_only: Whether checkpoints have no states of the optimizer.
        has_averages: Whether the optimizer keeps two numbers for a weight.

    Returns:
        The sizes.
    """
    size = exported * _BYTES[dtype]
    if not num_checkpoints:
        return Disk(size, 0, 0)
    states = 0 if is_model_only else trained * (MASTER_WEIGHT + (ADAM_AVERAGES if has_averages else 0))
    return Disk(size, size + states, num_checkpoints)


def most_checkpoints(save_total_limit: int, *, has_best: bool) -> int:
    """Tell how many checkpoints are there at once.

    Args:
        save_total_limit: How many of the newest stay.
        has_best: Whether the best one stays beside them.

    Returns:
        One more than stay: an old one goes only when the new one is whole.
    """
    return max(save_total_limit, 1) + has_best + 1
