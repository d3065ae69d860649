"""What befalls a run: done to its process before it begins, so that it fails as it would in the field."""

import math
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ds_sft import train as main_job
from ds_sft.training.trainer import SftTrainer


def has_environment(variables: Mapping[str, str]) -> None:
    """Give it variables of a launcher."""
    os.environ.update(variables)


def belongs_to_another() -> None:
    """Let it be another user than the one whose folders it finds."""
    os.geteuid = lambda: os.getuid() + 1


def has_no_room() -> None:
    """Let every disk be full."""
    usage: Any = shutil.disk_usage
    shutil.disk_usage = lambda path: usage(path)._replace(free=0)


def cannot_write_more(num_bytes: int) -> None:
    """Let every file end at a size as soon as there is a model."""
    _at_the_model(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes)))


def runs_out_of_memory() -> None:
    """Let it ask for more memory than there is."""
    _at_the_model(lambda: torch.empty(10**15))


def has_a_bug() -> None:
    """Let it do what no program should."""
    _at_the_model(lambda: 1 / 0)


def is_interrupted() -> None:
    """Press Ctrl-C."""

    def press() -> None:
        raise KeyboardInterrupt

    _at_the_model(press)


def loses_its_numbers(num_steps: int) -> None:
    """Let the loss be no number in the first steps."""
    _at_each_loss(lambda trainer, loss: loss * math.nan if trainer.state.global_step < num_steps else loss)


def may_not_read(file: Path) -> None:
    """Let the system refuse a file."""
    original: Any = Path.open

    def opened(self: Path, *given: Any, **named: Any) -> Any:
        if self == file:
            raise PermissionError(13, "Permission denied")
        return original(self, *given, **named)

    setattr(Path, "open", opened)  # noqa: B010  # a method must not be assigned, says mypy


def gets_a_signal_early() -> None:
    """Send SIGTERM while the model is loaded."""
    main_job.STOP.install()

    def wait_for_the_end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    _at_the_model(wait_for_the_end)


def is_asked_to_stop() -> None:
    """Let a signal come in the first step."""

    def ask(_trainer: SftTrainer, loss: torch.Tensor) -> torch.Tensor:
        main_job.STOP._reason = "SIGTERM"
        return loss

    _at_each_loss(ask)


def _at_the_model(act: Callable[[], object]) -> None:
    name = "model_of"  # imported there from another room
    original: Any = getattr(main_job, name)

    def model_of(*given: Any, **named: Any) -> Any:
        act()
        return original(*given, **named)

    setattr(main_job, name, model_of)


def _at_each_loss(act: Callable[[SftTrainer, torch.Tensor], torch.Tensor]) -> None:
    original = SftTrainer.compute_loss

    def compute_loss(self: SftTrainer, *given: Any, **named: Any) -> Any:
        loss = original(self, *given, **named)
        assert isinstance(loss, torch.Tensor)
        return act(self, loss)

    setattr(SftTrainer, "compute_loss", compute_loss)  # noqa: B010  # a method must not be assigned, says mypy
