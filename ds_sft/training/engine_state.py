"""What the engine of a run counts beside weights and optimizer: learning rates, steps, the scale of fp16 losses."""

from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from ds_sft.zero.state import counters, set_counters

_OF_A_GROUP = ("lr", "step")


def engine_state(trainer: Trainer) -> dict[str, Any]:
    """Give it as plain data.

    Args:
        trainer: With its engine made.

    Returns:
        `scheduler`, `groups`, and `counters` under DeepSpeed or `scaler` where torch scales fp16 losses.
    """
    scheduler: Any = trainer.lr_scheduler
    groups = [{name: group[name] for name in _OF_A_GROUP if name in group} for group in _groups(trainer)]
    state = {"scheduler": scheduler.state_dict(), "groups": groups}
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
    scheduler: Any = trainer.lr_scheduler
    # Rates that were asked for now count; the same run has the same ones.
    scheduler.load_state_dict({name: value for name, value in state["scheduler"].items() if name != "base_lrs"})
    for group, stored in zip(_groups(trainer), state["groups"], strict=True):
        group.update(stored)
    if isinstance(scheduler, LambdaLR):
        for group, base, factor in zip(_groups(trainer), scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * factor(scheduler.last_epoch)
    # A run may go on with or without DeepSpeed; each has counters of its own.
    if "counters" in state and trainer.is_deepspeed_enabled:
        set_counters(trainer.model_wrapped, state["counters"])
    if "scaler" in state and trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])


def _groups(trainer: Trainer) -> list[dict[str, Any]]:
    optimizer: Any = trainer.optimizer
    groups: list[dict[str, Any]] = optimizer.param_groups
    return groups
