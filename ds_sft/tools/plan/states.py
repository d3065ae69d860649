"""Weights, gradients and optimizer states of one rank, from model and settings, in bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ds_sft.contracts import ModelShape
from ds_sft.model.costs import ADAM_AVERAGES, MASTER_WEIGHT
from ds_sft.shapes import Weight
from ds_sft.tools.plan.engine import Engine

Computes = Literal["fp32", "16 bits"]

FP32, BITS_16 = 4, 2
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Four bits, a byte of scale for 64 of them, and an fp32 number for 256 of those."""
DIVIDES_GRADIENTS, DIVIDES_WEIGHTS = 2, 3
"""Stages of ZeRO."""


@dataclass(frozen=True)
class Adapters:
    """Adapters that train in the place of the model.

    Args:
        rank: Of each.
        targets: Ends of the names of linear layers, or None for all but the head.
        is_quantised: Whether the model is held in 4 bits.
        kept_in_16_bits: Ends of the names of linear layers that are not.
        has_magnitudes: Whether each row of a weight trains its length too.
    """

    rank: int
    targets: Sequence[str] | None
    is_quantised: bool
    kept_in_16_bits: Sequence[str]
    has_magnitudes: bool = False


@dataclass(frozen=True)
class Load:
    """What one rank computes at a time.

    Args:
        source_tokens: Of a micro-batch; 0 without an encoder.
        target_tokens: Of a micro-batch.
        supervised_tokens: Of a micro-batch.
        longest: Tokens of the longest document.
        accumulation: Micro-batches of a step.
        is_checkpointing: Whether layers keep their inputs only.
        computes: In which numbers.
        averages: Bytes of the optimizer for a weight, beside an fp32 copy.
    """

    source_tokens: int
    target_tokens: int
    supervised_tokens: int
    longest: int
    accumulation: int
    is_checkpointing: bool
    computes: Computes
    averages: int = ADAM_AVERAGES

    def tokens(self, reader: str) -> int:
        """Give the tokens of a side."""
        return self.source_tokens if reader == "source" else self.target_tokens


@dataclass(frozen=True)
class States:
    """Weights, gradients and optimizer of a rank; `gradients_at_once` are there before the backward pass ends."""

    parameters: float
    gradients: float
    gradients_at_once: float
    optimizer: float
    share: float
    bytes_of_gradient: int
    host: float
    nvme: float


def num_trained(shape: ModelShape, adapters: Adapters | None) -> int:
    """Count what trains.

    Args:
        shape: Of the model.
        adapters: None where all of it does. Rows of new tokens are left out: a handful.

    Returns:
        Number of parameters.
    """
    if adapters is None:
        return sum(size_of(weight) for weight in shape.weights)
    rows = [weight for weight in shape.weights if weight.is_linear and _has_adapter(weight, adapters)]
    return sum(
        weight.num * (adapters.rank * sum(weight.shape) + adapters.has_magnitudes * weight.shape[0]) for weight in rows
    )


def states_of(
    shape: ModelShape, load: Load, adapters: Adapters | None, engine: Engine | None, num_ranks: int, trained: int
) -> States:
    """Count what lasts.

    Args:
        shape: Of the model.
        load: Of a rank.
        adapters: None where the model trains.
        engine: None without DeepSpeed.
        num_ranks: That share the work.
        trained: Parameters that train.

    Returns:
        The sizes.
    """
    frozen = sum(_frozen_bytes(weight, load, adapters) for weight in shape.weights) if adapters else 0.0
    again = load.accumulation > 1
    if engine is None:
        weights = FP32 * trained
        return States(frozen + weights, weights, weights * again, load.averages * trained, trained, FP32, 0.0, 0.0)
    width = FP32 if load.computes == "fp32" else BITS_16
    share = trained / (num_ranks if engine.stage else 1)
    whole = frozen + width * trained
    divided = engine.stage == DIVIDES_WEIGHTS
    lies_whole = _undivided(shape, engine, width) if divided else 0.0
    parameters = (lies_whole + (whole - lies_whole) / num_ranks) if divided else whole
    gradients = width * (share if engine.stage >= DIVIDES_GRADIENTS else trained)
    optimizer = (MASTER_WEIGHT + load.averages) * share
    at_once = gradients if again or divided else 0.0
    moved: dict[str, float] = {"gpu": 0.0, "cpu": 0.0, "nvme": 0.0}
    if engine.optimizer_on != "gpu":
        # Beside the states: an fp32 gradient that stays, and 16-bit numbers on their way.
        moved["cpu"] += (FP32 + width) * share
        gradients, at_once = 0.0, 0.0
    moved[engine.optimizer_on] += optimizer
    if engine.weights_on != "gpu":
        moved[engine.weights_on] += parameters - lies_whole
        parameters = lies_whole
    return States(parameters, gradients, at_once, moved["gpu"], share, width, moved["cpu"], moved["nvme"])


def early_gradients(states: States, engine: Engine | None, trained: int) -> float:
    """Give gradients that a GPU has room made for while nearly all activations are still there.

    ZeRO-2 makes room for a rank's own gradients when its first bucket is full; a CPU has pages for them only when they
    are written.
    """
    if engine is None or engine.stage != DIVIDES_GRADIENTS or states.gradients_at_once:
        return 0.0
    return states.gradients * max(0.0, 1 - engine.bucket / max(1, trained))


def size_of(weight: Weight) -> int:
    """Count the parameters of one kind.

    Args:
        weight: The kind.

    Returns:
        Of all of them together.
    """
    return weight.num * math.prod(weight.shape)


def _frozen_bytes(weight: Weight, load: Load, adapters: Adapters) -> float:
    plain = FP32 if load.computes == "fp32" else BITS_16
    if not adapters.is_quantised or not weight.is_linear:
        return float(size_of(weight) * plain)
    if _ends_in(weight.name, adapters.kept_in_16_bits):
        return float(size_of(weight) * (FP32 if weight.stays_wide else plain))
    return size_of(weight) * _NF4


def _undivided(shape: ModelShape, engine: Engine, width: int) -> float:
    return float(
        sum(size_of(weight) for weight in shape.weights if math.prod(weight.shape) < engine.persistent) * width
    )


def _has_adapter(weight: Weight, adapters: Adapters) -> bool:
    if adapters.targets is None:
        return weight.reader != "supervised"
    return _ends_in(weight.name, adapters.targets)


def _ends_in(name: str, endings: Sequence[str]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)
