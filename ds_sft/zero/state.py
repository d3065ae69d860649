"""Finds what an optimizer steps: the numbers of each parameter that this rank owns, and their optimizer state.

Every engine is seen in the same way, as blocks: one tensor that the optimizer steps, and which stretch of which
parameter lies where in it. A checkpoint made of such stretches fits any number of ranks and any ZeRO stage.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ds_sft.errors import ConfigError

WEIGHT = "weight"
_STEPS = "step"
_COUNTERS = ("global_steps", "global_samples", "skipped_steps", "micro_steps")


@dataclass(frozen=True)
class Span:
    """A stretch of one parameter inside a block.

    Args:
        name: Of the parameter.
        start: First number of the flattened parameter.
        numel: How many numbers.
        offset: Where they begin in the block.
    """

    name: str
    start: int
    numel: int
    offset: int


@dataclass(frozen=True)
class Block:
    """One tensor that the optimizer steps.

    Args:
        tensor: The weights in the optimizer's precision.
        state: What the optimizer keeps for it; empty before the first step.
        spans: Which parameters lie in it; padding belongs to none.
        settings: The optimizer's settings for it, its learning rate among them.
        counts_in_tensors: Whether the optimizer counts its steps in tensors, as torch's do; DeepSpeed's take integers.
    """

    tensor: torch.Tensor
    state: MutableMapping[str, Any]
    spans: tuple[Span, ...]
    settings: MutableMapping[str, Any]
    counts_in_tensors: bool

    def arrays(self) -> dict[str, torch.Tensor]:
        """Give what has one number for each weight: the weights themselves, then the optimizer's averages.

        Returns:
            Name -> flat view of the living tensor.
        """
        alike = {
            name: value.detach().reshape(-1)
            for name, value in self.state.items()
            if isinstance(value, torch.Tensor) and value.shape == self.tensor.shape and name != _STEPS
        }
        return {WEIGHT: self.tensor.detach().reshape(-1), **alike}

    def numbers(self) -> dict[str, float]:
        """Give what the optimizer counts for the whole block, for example its steps.

        Returns:
            Name -> number.

        Raises:
            ConfigError: When the optimizer keeps something that is neither one number nor one for each weight.
        """
        arrays = self.arrays()
        return {name: _number(name, value) for name, value in self.state.items() if name not in arrays}

    def allocate(self, arrays: Mapping[str, torch.dtype], numbers: Mapping[str, float]) -> None:
        """Make an empty state like the one an optimizer makes at its first step.

        Args:
            arrays: Name -> dtype of what has one number for each weight.
            numbers: Name -> value of what is counted for the whole block.
        """
        for name, dtype in arrays.items():
            if name != WEIGHT and name not in self.state:
                self.state[name] = torch.zeros_like(self.tensor, dtype=dtype, memory_format=torch.preserve_format)
        on_device = self.settings.get("fused") or self.settings.get("capturable")
        device = self.tensor.device if on_device else torch.device("cpu")
        for name, value in numbers.items():
            number = torch.tensor(float(value), dtype=torch.float32, device=device)
            self.state[name] = number if self.counts_in_tensors else int(value)


def is_replicated(optimizer: Any) -> bool:
    """Tell whether every rank holds the same blocks, so that one copy is enough.

    Args:
        optimizer: torch's, or DeepSpeed's around it.

    Returns:
        False where ZeRO gives each rank a part.
    """
    return isinstance(optimizer, torch.optim.Optimizer)


def blocks(model: nn.Module, optimizer: Any) -> Iterator[Block]:
    """Give all that the optimizer steps on this rank.

    Args:
        model: Without the engine around it.
        optimizer: torch's, or DeepSpeed's around it.

    Yields:
        Blocks; each may be read and written until the next one comes.

    Raises:
        ConfigError: For an engine whose state is laid out in another way.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if is_replicated(optimizer):
        yield from _whole(names, optimizer)
        return
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        yield from _partitioned_weights(names, optimizer)
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        yield from _partitioned_states(
            names, optimizer, optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups
        )
    elif isinstance(optimizer, BF16_Optimizer):
        yield from _partitioned_states(names, optimizer, optimizer.bf16_groups, optimizer.fp32_groups_flat_partition)
    else:
        raise ConfigError(
            "zero_optimization.stage: must be at least 1 where checkpoints are saved in 16 bits, but DeepSpeed chose "
            f"{type(optimizer).__name__}; use stage 1, or --save_strategy no"
        )


@contextmanager
def rewritten(optimizer: Any) -> Iterator[None]:
    """Let blocks be written inside, and bring the model's own weights up to date afterwards; every rank must enter.

    Args:
        optimizer: torch's, or DeepSpeed's around it.

    Yields:
        Nothing.
    """
    if is_replicated(optimizer):
        yield
        return
    if not hasattr(optimizer, "update_lp_params"):
        # ZeRO-3 keeps small weights whole between steps; they must be put together anew.
        optimizer.checkpoint_event_prologue()
        yield
        for number in range(len(optimizer.fp16_groups)):
            with _in_memory(optimizer, number):
                optimizer._reassign_or_swap_out_partitioned_parameters(number)
        optimizer.checkpoint_event_epilogue()
        return
    yield
    optimizer.update_lp_params()


@contextmanager
def at_rest(optimizer: Any) -> Iterator[None]:
    """Let partitioned weights be gathered inside, when none is on its way; every rank must enter.

    ZeRO-3 fetches weights ahead, and an evaluation leaves some that nobody waits for: gathering one of those fails with
    "Cannot partition a param in flight".

    Args:
        optimizer: torch's, or DeepSpeed's around it.

    Yields:
        Nothing.
    """
    if is_replicated(optimizer) or hasattr(optimizer, "update_lp_params"):
        yield
        return
    optimizer.checkpoint_event_prologue()
    try:
        yield
    finally:
        # Every rank takes part in it, whatever failed on one.
        optimizer.checkpoint_event_epilogue()


def counters(engine: Any) -> dict[str, float]:
    """Give what DeepSpeed counts beside the optimizer, its loss scale among them.

    Args:
        engine: Of DeepSpeed.

    Returns:
        Name -> number; `scaler.` stands before those of the loss scale.
    """
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    scale = {} if scaler is None else {f"scaler.{name}": value for name, value in vars(scaler).items()}
    found = {name: getattr(engine, name) for name in _COUNTERS} | scale
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def set_counters(engine: Any, values: Mapping[str, float]) -> None:
    """Put back what `counters` gave.

    Args:
        engine: Of DeepSpeed.
        values: Name -> number.
    """
    for name, value in values.items():
        owner = engine.optimizer.loss_scaler if name.startswith("scaler.") else engine
        setattr(owner, name.removeprefix("scaler."), value)


def _whole(names: Mapping[int, str], optimizer: torch.optim.Optimizer) -> Iterator[Block]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            span = Span(names[id(parameter)], start=0, numel=parameter.numel(), offset=0)
            yield Block(parameter, _state_of(optimizer, parameter), (span,), group, _counts_in_tensors(optimizer))


def _partitioned_states(names: Mapping[int, str], optimizer: Any, groups: Any, flats: Any) -> Iterator[Block]:
    """ZeRO-1 and 2: the parameters of a group lie behind each other, and each rank steps one stretch of that."""
    for group, flat, settings in zip(groups, flats, optimizer.optimizer.param_groups, strict=True):
        spans = [
            Span(
                names[id(parameter)],
                start=part.lp_fragment_address.start,
                numel=part.lp_fragment_address.numel,
                offset=part.hp_fragment_address.start,
            )
            for parameter in group
            if (part := parameter._hp_mapping) is not None
        ]
        inner = optimizer.optimizer
        yield Block(flat, _state_of(inner, flat), tuple(spans), settings, _counts_in_tensors(inner))


def _partitioned_weights(names: Mapping[int, str], optimizer: Any) -> Iterator[Block]:
    """ZeRO-3: each rank steps one stretch of every parameter; the last one is padded."""
    for number, group in enumerate(optimizer.fp16_groups):
        settings = optimizer.optimizer.param_groups[optimizer.sub_group_to_group_id[number]]
        spans, offset = [], 0
        for parameter in group:
            size = parameter.partition_numel()
            start = size * optimizer._get_param_partition_rank(parameter)
            real = min(size, parameter.ds_numel - start)
            if real > 0:
                spans.append(Span(names[id(parameter)], start=start, numel=real, offset=offset))
            offset += size
        with _in_memory(optimizer, number):
            flat = optimizer.fp32_partitioned_groups_flat[number]
            inner = optimizer.optimizer
            yield Block(flat, _state_of(inner, flat), tuple(spans), settings, _counts_in_tensors(inner))


@contextmanager
def _in_memory(optimizer: Any, number: int) -> Iterator[None]:
    """Hold a group that lies on NVMe in memory, and write it back afterwards."""
    is_away = optimizer._swappable_optimizer_subgroup(number)
    if is_away:
        optimizer._optimizer_states_and_gradient_swap_in(number)
    yield
    if is_away:
        optimizer._optimizer_states_and_gradient_swap_out(number)


def _state_of(optimizer: torch.optim.Optimizer, tensor: torch.Tensor) -> MutableMapping[str, Any]:
    state: MutableMapping[str, Any] = optimizer.state[tensor]
    return state


def _counts_in_tensors(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).__module__.startswith("torch.")


def _number(name: str, value: Any) -> float:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value.item())
    if isinstance(value, int | float):
        return value
    raise ConfigError(
        f"optim: must keep one number for each weight, so that a checkpoint fits any number of ranks, but keeps {name} "
        f"as {getattr(value, 'shape', type(value).__name__)}; use adamw_torch, or --save_strategy no"
    )
