"""The most memory that one rank needs, from the shape of a model and the settings of a run; sizes in bytes.

Peaks are those of tensors. Three moments can be the fullest: the end of the forward pass, the end of the backward pass,
and the optimizer's step.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ds_sft.contracts import ModelShape
from ds_sft.shapes import Stack
from ds_sft.tools.plan.engine import Engine
from ds_sft.tools.plan.states import (
    BITS_16,
    DIVIDES_GRADIENTS,
    DIVIDES_WEIGHTS,
    FP32,
    Adapters,
    Load,
    States,
    early_gradients,
    num_trained,
    size_of,
    states_of,
)

_LARGEST_SCORES = {"cpu": 2**27, "gpu": 2**30}
"""fp32 scores that the loss holds at a time, as ds_sft/model/loss.py."""
_STATES_AT_ENDS = 6
"""As wide as the model, kept by embedding, final norm and loss for each token."""


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
    states = states_of(shape, load, adapters, engine, num_ranks, trained)
    activations = _activations(shape, load, engine, adapters, device)
    loss = _loss(shape, load, adapters, device)
    buffers = _buffers(shape, load, engine, num_ranks, trained, device)
    # A second micro-batch makes a second copy of what a rank owns before it is added to the first.
    is_copied = load.accumulation > 1 and engine is not None and engine.stage == DIVIDES_GRADIENTS
    copy = states.gradients if is_copied else 0.0
    early = early_gradients(states, engine, trained) if device == "gpu" else 0.0
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
    number = BITS_16 if kind == "16 bits" else FP32
    whole = [_kept(stack, load, kind, device) for stack in shape.stacks]
    working = [2 * number * load.tokens(stack.reader) * (stack.inner + shape.width) for stack in shape.stacks]
    ends = float(number * _STATES_AT_ENDS * shape.width * (load.source_tokens + load.target_tokens))
    ends += sum(2 * number * stack.bias_heads * load.longest**2 for stack in shape.stacks)
    if kind == "autocast":
        # Casts of the weights, which the backward pass needs too.
        ends += BITS_16 * sum(size_of(weight) for weight in shape.weights if weight.reader != "nothing")
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
    number = FP32 if load.computes == "fp32" else BITS_16
    scores = min(load.supervised_tokens * shape.vocab_size, _LARGEST_SCORES[device] // FP32)
    head = 0 if adapters else shape.vocab_size * shape.width
    return float(scores * (FP32 + number) + head * (FP32 + (number if number < FP32 else 0)))


def _buffers(
    shape: ModelShape,
    load: Load,
    engine: Engine | None,
    num_ranks: int,
    trained: int,
    device: str,
) -> float:
    if engine is None:
        return float(FP32 * trained) if num_ranks > 1 else 0.0
    width = FP32 if load.computes == "fp32" else BITS_16
    # A CPU has only those pages that are written to.
    bucket = min(engine.bucket, trained) if device == "cpu" else engine.bucket
    gathered = 0
    if engine.stage == DIVIDES_WEIGHTS and (num_ranks > 1 or engine.weights_on != "gpu"):
        divided = sum(size_of(weight) for weight in shape.weights if math.prod(weight.shape) >= engine.persistent)
        largest = max(math.prod(weight.shape) for weight in shape.weights)
        gathered = min(divided, engine.kept + engine.prefetched + largest)
    return float(width * (engine.num_buckets * bucket + gathered))


def _step(states: States, load: Load, engine: Engine | None, device: str, shape: ModelShape) -> float:
    """Give what the optimizer's step needs on top of gradients: fp32 ones, and on a CPU what its plain loop makes."""
    if engine is None:
        return float(2 * FP32 * max(math.prod(weight.shape) for weight in shape.weights)) if device == "cpu" else 0.0
    if engine.optimizer_on != "gpu":
        return 0.0
    at_a_time = min(states.share, engine.sub_group) if engine.stage == DIVIDES_WEIGHTS else states.share
    temporary = 2 * FP32 * at_a_time if device == "cpu" else 0.0
    if load.computes == "fp32" and engine.stage != DIVIDES_WEIGHTS:
        # The flat copy takes the place of the gradients.
        return float(temporary)
    return float(FP32 * at_a_time + temporary)


def parts_of(memory: Memory) -> Iterator[float]:
    """Give the columns of the table, in their order."""
    yield from (memory.parameters, memory.gradients, memory.optimizer, memory.activations, memory.loss, memory.buffers)
