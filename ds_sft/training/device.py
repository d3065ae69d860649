"""Where training runs: on GPUs when there are any, else on the CPU, without a flag."""

import logging
from dataclasses import replace

import torch

from ds_sft.config.parse import Settings

log = logging.getLogger(__name__)


def on_this_device(settings: Settings) -> Settings:
    """Fit the settings to the machine, and say what was changed.

    Args:
        settings: As parsed.

    Returns:
        The same on a machine with a GPU; else with `use_cpu` on and `tf32` left alone.
    """
    if torch.cuda.is_available():
        return settings
    changes: dict[str, bool | None] = {"use_cpu": True}
    if not settings.training["use_cpu"]:
        log.info("no GPU found: training on the CPU (use_cpu: False -> True)")
    if settings.training["tf32"]:
        log.warning("tf32: True -> not set, because it is a number format of GPUs")
        changes["tf32"] = None
    return replace(settings, training={**settings.training, **changes})
