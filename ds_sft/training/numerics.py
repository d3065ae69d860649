"""Numbers that are not finite, and losses that jump: noticed at the step, on all ranks alike."""

import logging
import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import torch

from ds_sft.errors import NumericsError

log = logging.getLogger(__name__)

NanPolicy = Literal["skip", "stop", "rollback"]

_IN_A_ROW = 3
_WINDOW = 64
_LEAST_LOSSES = 16
_SPIKE = 8.0
_LEAST_SPREAD = 1e-3
"""Of the median: a loss that hardly moves has no spikes in its last digits."""
_MAD_TO_DEVIATION = 1.4826
"""Turns the median absolute deviation of a normal distribution into its standard deviation."""


class Numerics:
    """Watches the loss and the gradients of every step, and says what happens after one that is not finite.

    Args:
        policy: `skip` leaves the step out, `stop` ends the run, `rollback` also puts the last checkpoint back.
        device: Where losses lie.
    """

    def __init__(self, policy: NanPolicy, device: torch.device) -> None:
        self._policy = policy
        self._in_a_row = 0
        self._step_loss = torch.zeros((), device=device)
        self.num_left_out = 0
        """Steps since the last log line."""

    def add(self, loss: torch.Tensor) -> torch.Tensor:
        """Take note of a micro-batch.

        Args:
            loss: A scalar.

        Returns:
            The loss, or zero for one that is not finite: a sum would never get rid of it again.
        """
        self._step_loss += loss
        return torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0)

    def look(self, grad_norm: float | None) -> tuple[float, float, bool]:
        """Look at the step that is being made, and begin the next one.

        Args:
            grad_norm: Of all ranks; None where it is not known, as for gradients that may overflow.

        Returns:
            Loss of this rank, gradient norm, and whether both are finite here.
        """
        loss = float(self._step_loss)
        self._step_loss.zero_()
        norm = 0.0 if grad_norm is None else grad_norm
        return loss, norm, math.isfinite(loss) and math.isfinite(norm)

    def judge(self, step: int, *, loss: float, grad_norm: float, is_finite: bool) -> bool:
        """Decide what happens after a step.

        Args:
            step: Its number.
            loss: Of this rank.
            grad_norm: Of all ranks.
            is_finite: Whether both were finite on every rank.

        Returns:
            Whether the last checkpoint must be put back.

        Raises:
            NumericsError: When the run must end.
        """
        if is_finite:
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        self.num_left_out += 1
        told = (
            f"step {step}: loss and gradients must be finite, but the loss is {loss} and the gradient norm {grad_norm}"
        )
        if self._policy == "stop":
            raise NumericsError(f"{told}; nan_policy stop ends the run; lower --learning_rate or look at the data")
        if self._in_a_row >= _IN_A_ROW:
            raise NumericsError(f"{told}, the third time in a row; lower --learning_rate or look at the data")
        log.warning("%s; the step is left out (nan_policy %s)", told, self._policy)
        return self._policy == "rollback"

    def report(self) -> dict[str, Any]:
        """Give what a log line must say instead of a mean over steps of which some were left out, and begin the next.

        Returns:
            Nothing where all were finite.
        """
        left_out, self.num_left_out = self.num_left_out, 0
        return {"loss": None, "left_out_steps": left_out} if left_out else {}


class StepGuard:
    """Keeps a torch optimizer from stepping on gradients that are not finite, where DeepSpeed calls it without looking.

    Args:
        optimizer: That DeepSpeed steps at ZeRO-0.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.norm: float | None = None
        optimizer.register_step_pre_hook(self._look)

    def _look(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(self.norm):
            # A parameter without a gradient is left as it is.
            for parameter in parameters:
                parameter.grad = None


class Spikes:
    """Finds losses that stand far above the ones before them."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=_WINDOW)

    @property
    def window(self) -> list[float]:
        """The losses that a new one is held against, the oldest first."""
        return list(self._losses)

    def restore(self, window: Sequence[float]) -> None:
        """Put back what `window` gave.

        Args:
            window: Losses.
        """
        self._losses.extend(window)

    def note(self, step: int, loss: float | None) -> dict[str, float]:
        """Hold a loss against the ones before, remember it, and tell a spike.

        Args:
            step: Of the line.
            loss: Its loss; None where there is none.

        Returns:
            `loss_spike` for the log line, where it is one.
        """
        deviation = None if loss is None else self.deviation(loss)
        if deviation is None:
            return {}
        log.warning("step %d: the loss %.4f stands %.1f deviations above the median before it", step, loss, deviation)
        return {"loss_spike": deviation}

    def deviation(self, loss: float) -> float | None:
        """Hold a loss against the ones before, and remember it.

        Args:
            loss: Of a logging step.

        Returns:
            By how many deviations it is too high (median and median absolute deviation of the last 64); None below 8
            or before 16 are known.
        """
        if not math.isfinite(loss):
            return None
        known = self.window
        self._losses.append(loss)
        if len(known) < _LEAST_LOSSES:
            return None
        median = statistics.median(known)
        spread = statistics.median(abs(other - median) for other in known) * _MAD_TO_DEVIATION
        deviation = (loss - median) / max(spread, _LEAST_SPREAD * abs(median), 1e-12)
        return round(deviation, 1) if deviation > _SPIKE else None


def on_any_rank(flags: Sequence[bool], *, device: torch.device) -> list[bool]:
    """Tell which flags are up on any rank; every rank must call this.

    Args:
        flags: Of this rank.
        device: Where collectives of training run.

    Returns:
        The same list on every rank.
    """
    if not torch.distributed.is_initialized():
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(raised, op=torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in raised.tolist()]
