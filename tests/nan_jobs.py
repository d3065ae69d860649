"""What ranks do in tests of numbers that are not finite: the main job, with a fault put in at some steps."""

import math
from collections.abc import Callable
from typing import Any

import torch

from ds_sft.train import train
from ds_sft.training.trainer import SftTrainer

Rows = list[dict[str, Any]]
Spoil = Callable[[SftTrainer, torch.Tensor, bool], torch.Tensor]


def train_with_fault(flags: list[str], place: str, steps: list[int]) -> Rows:
    """Run the main job with NaN or infinity at one place, on the last rank only; give the rows of its log."""
    spoil, original = _places()[place], SftTrainer.compute_loss

    def compute_loss(self: SftTrainer, *given: Any, **named: Any) -> Any:
        is_last = self.args.process_index == self.args.world_size - 1
        is_now = is_last and self.state.global_step + 1 in steps
        loss = original(self, *given, **named)
        assert isinstance(loss, torch.Tensor)
        return spoil(self, loss, is_now)

    setattr(SftTrainer, "compute_loss", compute_loss)  # noqa: B010  # a method must not be assigned, says mypy
    trainer = train(flags)
    assert trainer is not None
    return [row for row in trainer.state.log_history if "loss" in row]


def _places() -> dict[str, Spoil]:
    wired: list[bool] = []
    spoilt: set[int] = set()
    now = [False]

    def in_the_loss(trainer: SftTrainer, loss: torch.Tensor, is_now: bool) -> torch.Tensor:
        return loss * math.nan if is_now else loss

    def in_a_gradient(trainer: SftTrainer, loss: torch.Tensor, is_now: bool) -> torch.Tensor:
        now[0] = is_now
        if not wired:
            assert trainer.model is not None
            weights = trainer.model.named_parameters()
            weight = next(weight for name, weight in weights if name.endswith("layer_norm.weight"))
            weight.register_hook(  # type: ignore[no-untyped-call]  # torch leaves it untyped
                lambda gradient: gradient * math.nan if now[0] else gradient
            )
            wired.append(True)
        return loss

    def in_one_micro_batch(trainer: SftTrainer, loss: torch.Tensor, is_now: bool) -> torch.Tensor:
        if not is_now or trainer.state.global_step in spoilt:
            return loss
        spoilt.add(trainer.state.global_step)
        return loss * math.inf

    return {"loss": in_the_loss, "gradient": in_a_gradient, "micro-batch": in_one_micro_batch}
