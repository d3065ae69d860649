"""What a run tells while it trains: one plain line each logging step, from rank zero only."""

import logging
import math
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ds_sft.zero.settings import write_resolved

log = logging.getLogger(__name__)

_ROUNDING = 1e-9
_BYTES_PER_KIB = 2**10
_BYTES_PER_GIB = 2**30


class ResolvedConfigCallback(TrainerCallback):
    """Keeps the DeepSpeed config that the engine really runs with, as soon as every "auto" has its value.

    Args:
        config: Filled by transformers just before training begins.
        into: The run's folder.
    """

    def __init__(self, config: Mapping[str, Any], into: Path) -> None:
        self._config = config
        self._into = into

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the file, on rank zero.

        Args:
            args: Unused.
            state: Tells whether this rank writes.
            control: Unused.
            **kwargs: Unused.
        """
        if state.is_world_process_zero:
            write_resolved(self._config, into=self._into)


class StopCallback(TrainerCallback):
    """Ends training after the step on which all ranks agreed, with a checkpoint.

    Args:
        is_stopped: Tells whether they agreed.
    """

    def __init__(self, is_stopped: Callable[[], bool]) -> None:
        self._is_stopped = is_stopped

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask transformers to save and to stop.

        Args:
            args: Unused.
            state: Unused.
            control: Takes the wishes.
            **kwargs: Unused.
        """
        if self._is_stopped():
            control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep transformers from taking a stop in the middle of an epoch for its end.

        Args:
            args: Unused.
            state: Tells where the epoch stands.
            control: Takes the wishes.
            **kwargs: Unused.
        """
        is_at_the_end = abs((state.epoch or 0.0) - round(state.epoch or 0.0)) < _ROUNDING
        if self._is_stopped() and not is_at_the_end:
            control.should_log = control.should_save = control.should_evaluate = False


class BeginCallback(TrainerCallback):
    """Does something when transformers has set up its own counters.

    Args:
        act: What.
    """

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Do it.

        Args:
            args: Unused.
            state: Unused.
            control: Unused.
            **kwargs: Unused.
        """
        self._act()


class ProgressCallback(TrainerCallback):
    """Prints step, epoch, loss, learning rate, gradient norm, throughput, memory and time left."""

    def __init__(self) -> None:
        self._started = 0.0
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock.

        Args:
            args: Unused.
            state: Where the run begins; above zero after a resume.
            control: Unused.
            **kwargs: Unused.
        """
        self._started = time.perf_counter()
        self._first_step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print one line.

        Args:
            args: Unused.
            state: Tells the step and whether this rank speaks.
            control: Unused.
            logs: What was measured since the last line.
            **kwargs: Unused.
        """
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            log.info("%s", training_line(logs, state, seconds_left=self._seconds_left(state)))
        elif "eval_loss" in logs:
            log.info(
                "eval at step %d  loss %.4f  perplexity %.4g  over %d tokens",
                state.global_step,
                logs["eval_loss"],
                logs["eval_perplexity"],
                logs["eval_num_tokens"],
            )
            if "eval_rougeL" in logs:
                scores = {name: logs[f"eval_{name}"] for name in ("rouge1", "rouge2", "rougeL", "bleu", "chrf")}
                log.info("answers: %s (percent)", "  ".join(f"{name} {score:.1f}" for name, score in scores.items()))

    def _seconds_left(self, state: TrainerState) -> float:
        done = state.global_step - self._first_step
        return (time.perf_counter() - self._started) / max(done, 1) * (state.max_steps - state.global_step)


def training_line(logs: dict[str, float], state: TrainerState, *, seconds_left: float) -> str:
    """Put the figures of one logging step into one line.

    Args:
        logs: `loss`, and where known `epoch`, `learning_rate`, `grad_norm`, `tokens_per_second`.
        state: Tells the step.
        seconds_left: Until the last step.

    Returns:
        A line such as `step 120/3000  4.0%  epoch 0.12  loss 1.4820  lr 3.0e-04  ...`.
    """
    loss, norm = (math.nan if logs.get(name) is None else logs[name] for name in ("loss", "grad_norm"))
    figures = [
        f"step {state.global_step}/{state.max_steps}",
        f"{100 * state.global_step / max(state.max_steps, 1):.1f}%",
        f"epoch {state.epoch or 0:.2f}",
        f"loss {loss:.4f}",
        f"lr {logs.get('learning_rate', 0.0):.2e}",
        f"grad norm {norm:.3g}",
        f"{logs.get('tokens_per_second', 0.0):,.0f} tokens/s",
        f"memory {_memory_gib()} GiB",
        f"eta {_duration(seconds_left)}",
    ]
    return "  ".join(figures)


def peak_memory_bytes() -> int:
    """Give the peak of this rank.

    Returns:
        Of its GPU, or of its process where there is none.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_PER_KIB


def _memory_gib() -> str:
    """Give the peak of this rank, with the size of its GPU where there is one."""
    peak = f"{peak_memory_bytes() / _BYTES_PER_GIB:.1f}"
    if not torch.cuda.is_available():
        return peak
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return f"{peak}/{total / _BYTES_PER_GIB:.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"
