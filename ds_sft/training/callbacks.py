"""What a run tells while it trains: one plain line each logging step, from rank zero only."""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ds_sft.zero.settings import write_resolved

log = logging.getLogger(__name__)

_ROUNDING = 1e-9
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
            log.info("%s", training_line(logs, state))
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


def training_line(logs: Mapping[str, float], state: TrainerState) -> str:
    """Put the figures of one logging step into one line.

    Args:
        logs: `loss`, and what else is known of the row; a figure that is missing is left out.
        state: Tells the step.

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
    ]
    measured = {name: tell(logs[name]) for name, tell in _MEASURED.items() if name in logs}
    asides = [measured.pop(name) for name in _ASIDES if name in measured]
    if asides and "tokens_per_second" in measured:
        measured["tokens_per_second"] += f" ({', '.join(asides)})"
    return "  ".join([*figures, *measured.values()])


def _memory(peak: float) -> str:
    """Tell a peak, with the size of the GPU where there is one."""
    told = f"{peak / _BYTES_PER_GIB:.1f}"
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        told += f"/{total / _BYTES_PER_GIB:.0f}"
    return f"memory {told} GiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


_ASIDES = ("supervised_tokens_per_second", "tokens_per_second_per_rank")
_MEASURED: Mapping[str, Callable[[float], str]] = {
    "tokens_per_second": lambda rate: f"{rate:,.0f} tokens/s",
    "supervised_tokens_per_second": lambda rate: f"{rate:,.0f} supervised",
    "tokens_per_second_per_rank": lambda rate: f"{rate:,.0f} a rank",
    "peak_memory_bytes": _memory,
    "data_wait_share": lambda share: f"data wait {share:.1%}",
    "mfu": lambda share: f"MFU {share:.1%}",
    "seconds_left": lambda seconds: f"eta {_duration(seconds)}",
}
"""Figure of a row -> how the line tells it, in the order of the line."""
