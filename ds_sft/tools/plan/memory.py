"""The most memory that one rank needs, from the shape of a model and the settings of a run; sizes in bytes.

Peaks are those of tensors. Three moments can be the fullest: the end of the forward pass, the end of the backward pass,
and the optimizer's step.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ds_sft.contracts import ModelShape, Stack, Weight
from ds_sft.tools.plan.engine import Engine

Computes = Literal["fp32", "16 bits"]

_FP32, _BITS_16 = 4, 2
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Four bits, a byte of scale for 64 of them, and an fp32 number for 256 of those."""
_AVERAGES = 8
_MASTER = 4
_LARGEST_SCORES = {"cpu": 2**27, "gpu": 2**30}
"""fp32 scores that the loss holds at a time, as ds_sft/model/loss.py."""
_STATES_AT_ENDS = 6
"""As wide as the model, kept by embedding, final norm and loss for each token."""
_DIVIDES_GRADIENTS, _DIVIDES_WEIGHTS = 2, 3


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
    averages: int = _AVERAGES

    def tokens(self, reader: str) -> int:
        """Give the tokens of a side."""
        return self.source_tokens if reader == "source" else self.target_tokens


@dataclass(frozen=True)
class Memory:
    """What lies on one GPU at its fullest, and in the RAM of its host for it.

    Args:
        parameters: As they are held.
        gradients: At the end of the backward pass.
        optimizer: Its states, and the fp32 copies of what trains.
        activations: Kept for the backward pass.
        loss: Scores and the gradient of the head.
        buffers: For communication, gathered weights, and gradients on their way.
        peak: The most at a moment; not all of the above live at the same one.
        host: In RAM for this rank.
        nvme: On disk for this rank.
    """

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    loss: float
    buffers: float
    peak: float
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
        return sum(_size(weight) for weight in shape.weights)
    rows = [weight for weight in shape.weights if weight.is_linear and _has_adapter(weight, adapters)]
    return sum(
        weight.num * (adapters.rank * sum(weight.shape) + adapters.has_magnitudes * weight.shape[0]) for weight in rows
    )


def memory_of(
    shape: ModelShape,
    load: Load,
    *,
    adapters: Adapters | None,
    engine: Engine | None,
    num_ranks: int,
    device: Literal["gpu", "cpu"] = "gpu",
) -> Memory:
    """Foretell the memory of one rank.

    Args:
        shape: Of the model.
        load: Of a rank.
        adapters: None where the model trains.
        engine: None without DeepSpeed.
        num_ranks: That share the work.
        device: `cpu` for a run without GPUs, whose optimizer is torch's plain loop.

    Returns:
        The figures.
    """
    trained = num_trained(shape, adapters)
    states = _states(shape, load, adapters, engine, num_ranks, trained)
    activations = _activations(shape, load, engine, adapters, device)
    loss = _loss(shape, load, adapters, device)
    buffers = _buffers(shape, load, engine, num_ranks, trained, device)
    # A second micro-batch makes a second copy of what a rank owns before it is added to the first.
    is_copied = load.accumulation > 1 and engine is not None and engine.stage == _DIVIDES_GRADIENTS
    copy = states.gradients if is_copied else 0.0
    early = _early(states, engine, trained) if device == "gpu" else 0.0
    lasting = states.parameters + states.optimizer
    kept = sum(activations.layers) + activations.ends
    forward = (
        lasting
        + states.gradients_at_once
        + early
        + kept
        + activations.recomputed
        + max(loss, activations.working)
        + buffers
    )
    backward = lasting + states.gradients + activations.ends + activations.last + buffers + copy
    step = lasting + states.gradients + _step(states, load, engine, device, shape)
    return Memory(
        parameters=states.parameters,
        gradients=states.gradients,
        optimizer=states.optimizer,
        activations=kept + activations.recomputed + activations.working,
        loss=loss,
        buffers=buffers + copy,
        peak=max(forward, backward, step),
        host=states.host,
        nvme=states.nvme,
    )


@dataclass(frozen=True)
class _States:
    """Weights, gradients and optimizer of a rank; `gradients_at_once` are there before the backward pass ends."""

    parameters: float
    gradients: float
    gradients_at_once: float
    optimizer: float
    share: float
    bytes_of_gradient: int
    host: float
    nvme: float


def _states(
    shape: ModelShape, load: Load, adapters: Adapters | None, engine: Engine | None, num_ranks: int, trained: int
) -> _States:
    frozen = sum(_frozen_bytes(weight, load, adapters) for weight in shape.weights) if adapters else 0.0
    again = load.accumulation > 1
    if engine is None:
        weights = _FP32 * trained
        return _States(frozen + weights, weights, weights * again, load.averages * trained, trained, _FP32, 0.0, 0.0)
    width = _FP32 if load.computes == "fp32" else _BITS_16
    share = trained / (num_ranks if engine.stage else 1)
    whole = frozen + width * trained
    divided = engine.stage == _DIVIDES_WEIGHTS
    lies_whole = _undivided(shape, engine, width) if divided else 0.0
    parameters = (lies_whole + (whole - lies_whole) / num_ranks) if divided else whole
    gradients = width * (share if engine.stage >= _DIVIDES_GRADIENTS else trained)
    optimizer = (_MASTER + load.averages) * share
    at_once = gradients if again or divided else 0.0
    moved: dict[str, float] = {"gpu": 0.0, "cpu": 0.0, "nvme": 0.0}
    if engine.optimizer_on != "gpu":
        # Beside the states: an fp32 gradient that stays, and 16-bit numbers on their way.
        moved["cpu"] += (_FP32 + width) * share
        gradients, at_once = 0.0, 0.0
    moved[engine.optimizer_on] += optimizer
    if engine.weights_on != "gpu":
        moved[engine.weights_on] += parameters - lies_whole
        parameters = lies_whole
    return _States(parameters, gradients, at_once, moved["gpu"], share, width, moved["cpu"], moved["nvme"])


def _early(states: _States, engine: Engine | None, trained: int) -> float:
    """Give gradients that a GPU has room made for while nearly all activations are still there.

    ZeRO-2 makes room for a rank's own gradients when its first bucket is full; a CPU has pages for them only when they
    are written.
    """
    if engine is None or engine.stage != _DIVIDES_GRADIENTS or states.gradients_at_once:
        return 0.0
    return states.gradients * max(0.0, 1 - engine.bucket / max(1, trained))


def _frozen_bytes(weight: Weight, load: Load, adapters: Adapters) -> float:
    plain = _FP32 if load.computes == "fp32" else _BITS_16
    if not adapters.is_quantised or not weight.is_linear:
        return float(_size(weight) * plain)
    if _ends_in(weight.name, adapters.kept_in_16_bits):
        return float(_size(weight) * (_FP32 if weight.stays_wide else plain))
    return _size(weight) * _NF4


def _undivided(shape: ModelShape, engine: Engine, width: int) -> float:
    return float(sum(_size(weight) for weight in shape.weights if math.prod(weight.shape) < engine.persistent) * width)


@dataclass(frozen=True)
class _Activations:
    """`layers` are kept until the backward pass reaches them; `recomputed` is one of them, made again."""

    layers: list[float]
    ends: float
    recomputed: float
    working: float
    last: float


def _activations(
    shape: ModelShape, load: Load, engine: Engine | None, adapters: Adapters | None, device: str
) -> _Activations:
    kind = load.computes if load.computes == "fp32" or engine or adapters else "autocast"
    number = _BITS_16 if kind == "16 bits" else _FP32
    whole = [_kept(stack, load, kind, device) for stack in shape.stacks]
    working = [2 * number * load.tokens(stack.reader) * (stack.inner + shape.width) for stack in shape.stacks]
    ends = float(number * _STATES_AT_ENDS * shape.width * (load.source_tokens + load.target_tokens))
    ends += sum(2 * number * stack.bias_heads * load.longest**2 for stack in shape.stacks)
    if kind == "autocast":
        # Casts of the weights, which the backward pass needs too.
        ends += _BITS_16 * sum(_size(weight) for weight in shape.weights if weight.reader != "nothing")
    largest = max(range(len(whole)), key=lambda index: whole[index] + working[index])
    if load.is_checkpointing:
        inputs = [stack.num * number * shape.width * load.tokens(stack.reader) for stack in shape.stacks]
        last = max(kept + work for kept, work in zip(whole, working, strict=True))
        return _Activations([float(one) for one in inputs], ends, whole[largest], working[largest], last)
    layers = [stack.num * kept for stack, kept in zip(shape.stacks, whole, strict=True)]
    return _Activations(layers, ends, 0.0, working[largest], whole[0] + working[0])


def _kept(stack: Stack, load: Load, kind: str, device: str) -> float:
    kept = load.tokens(stack.reader) * stack.kept[kind]  # type: ignore[index]  # one of its keys
    if stack.kept_for_source:
        kept += load.source_tokens * stack.kept_for_source[kind]  # type: ignore[index]  # as above
    if device == "cpu":
        kept += load.tokens(stack.reader) * load.longest * stack.kept_on_cpu
        kept += load.target_tokens * load.longest * stack.kept_across_on_cpu
    return float(kept)


def _loss(shape: ModelShape, load: Load, adapters: Adapters | None, device: str) -> float:
    """Give scores in fp32 and in what they are computed in, and the gradient of a head that trains."""
    number = _FP32 if load.computes == "fp32" else _BITS_16
    scores = min(load.supervised_tokens * shape.vocab_size, _LARGEST_SCORES[device] // _FP32)
    head = 0 if adapters else shape.vocab_size * shape.width
    return float(scores * (_FP32 + number) + head * (_FP32 + (number if number < _FP32 else 0)))


def _buffers(
    shape: ModelShape,
    load: Load,
    engine: Engine | None,
    num_ranks: int,
    trained: int,
    device: str,
) -> float:
    if engine is None:
        return float(_FP32 * trained) if num_ranks > 1 else 0.0
    width = _FP32 if load.computes == "fp32" else _BITS_16
    # A CPU has only those pages that are written to.
    bucket = min(engine.bucket, trained) if device == "cpu" else engine.bucket
    gathered = 0
    if engine.stage == _DIVIDES_WEIGHTS and (num_ranks > 1 or engine.weights_on != "gpu"):
        divided = sum(_size(weight) for weight in shape.weights if math.prod(weight.shape) >= engine.persistent)
        largest = max(math.prod(weight.shape) for weight in shape.weights)
        gathered = min(divided, engine.kept + engine.prefetched + largest)
    return float(width * (engine.num_buckets * bucket + gathered))


def _step(states: _States, load: Load, engine: Engine | None, device: str, shape: ModelShape) -> float:
    """Give what the optimizer's step needs on top of gradients: fp32 ones, and on a CPU what its plain loop makes."""
    if engine is None:
        return float(2 * _FP32 * max(math.prod(weight.shape) for weight in shape.weights)) if device == "cpu" else 0.0
    if engine.optimizer_on != "gpu":
        return 0.0
    at_a_time = min(states.share, engine.sub_group) if engine.stage == _DIVIDES_WEIGHTS else states.share
    temporary = 2 * _FP32 * at_a_time if device == "cpu" else 0.0
    if load.computes == "fp32" and engine.stage != _DIVIDES_WEIGHTS:
        # The flat copy takes the place of the gradients.
        return float(temporary)
    return float(_FP32 * at_a_time + temporary)


def _has_adapter(weight: Weight, adapters: Adapters) -> bool:
    if adapters.targets is None:
        return weight.reader != "supervised"
    return _ends_in(weight.name, adapters.targets)


def _ends_in(name: str, endings: Sequence[str]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _size(weight: Weight) -> int:
    return weight.num * math.prod(weight.shape)


def parts_of(memory: Memory) -> Iterator[float]:
    """Give the columns of the table, in their order."""
    yield from (memory.parameters, memory.gradients, memory.optimizer, memory.activations, memory.loss, memory.buffers)
