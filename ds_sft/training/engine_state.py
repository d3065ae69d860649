"""What the engine of a run counts beside weights and optimizer: learning rates, steps, the scale of fp16 losses."""

import math
from typing import Any

from accelerate.scheduler import AcceleratedScheduler  # type: ignore[import-untyped]  # accelerate ships no types
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from ds_sft.zero.state import counters, set_counters

_OF_A_GROUP = ("lr", "step")
_INFINITE = (math.inf, -math.inf)


def engine_state(trainer: Trainer) -> dict[str, Any]:
    """Give it as plain data.

    Args:
        trainer: With its engine made.

    Returns:
        `scheduler`, `groups`, and `counters` under DeepSpeed or `scaler` where torch scales fp16 losses.
    """
    groups = [{name: group[name] for name in _OF_A_GROUP if name in group} for group in _groups(trainer)]
    state = {"scheduler": _with_words(_scheduler(trainer).state_dict()), "groups": groups}
    if trainer.is_deepspeed_enabled:
        state["counters"] = counters(trainer.model_wrapped)
    elif trainer.accelerator.scaler is not None:
        state["scaler"] = trainer.accelerator.scaler.state_dict()
    return state


def set_engine_state(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put back what `engine_state` gave.

    Args:
        trainer: With its engine made.
        state: Plain data.
    """
    scheduler = _scheduler(trainer)
    stored = _with_floats(state["scheduler"])
    groups = state["groups"]
    for number, group in enumerate(_groups(trainer)):
        # An optimizer of a DeepSpeed file has one group, transformers' have two; all have the same rate.
        group.update(groups[min(number, len(groups) - 1)])
    if isinstance(scheduler, LambdaLR):
        # Rates that were asked for now count; the same run has the same ones.
        scheduler.last_epoch, scheduler._step_count = stored["last_epoch"], stored["_step_count"]  # noqa: SLF001
        for group, base, factor in zip(_groups(trainer), scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * factor(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in _groups(trainer)]  # noqa: SLF001
    else:
        scheduler.load_state_dict(stored)
    # A run may go on with or without DeepSpeed; each has counters of its own.
    if "counters" in state and trainer.is_deepspeed_enabled:
        set_counters(trainer.model_wrapped, state["counters"])
    if "scaler" in state and trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])


def _scheduler(trainer: Trainer) -> Any:
    """Give the schedule itself: accelerate wraps it where the optimizer is DeepSpeed's own."""
    scheduler: Any = trainer.lr_scheduler
    return scheduler.scheduler if isinstance(scheduler, AcceleratedScheduler) else scheduler


def _groups(trainer: Trainer) -> list[dict[str, Any]]:
    optimizer: Any = trainer.optimizer
    groups: list[dict[str, Any]] = optimizer.param_groups
    return groups


def _with_words(state: dict[str, Any]) -> dict[str, Any]:
    """Put words in place of infinite numbers, with which some schedulers begin."""
    return {name: repr(value) if value in _INFINITE else value for name, value in state.items()}


def _with_floats(state: dict[str, Any]) -> dict[str, Any]:
    words = {repr(value): value for value in _INFINITE}
    return {name: words.get(value, value) if isinstance(value, str) else value for name, value in state.items()}
