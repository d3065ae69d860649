"""Where training runs: on GPUs when there are any, else on the CPU, without a flag."""

import logging
import os
from dataclasses import replace

import torch

from ds_sft.config.parse import Settings
from ds_sft.errors import ConfigError

log = logging.getLogger(__name__)


def on_this_device(settings: Settings) -> Settings:
    """Fit the settings to the machine, and say what was changed.

    Args:
        settings: As parsed.

    Returns:
        The same on a machine with a GPU; else with `use_cpu` on and `tf32` left alone.

    Raises:
        ConfigError: When a process without a launcher sees several GPUs.
    """
    if torch.cuda.is_available():
        num_devices = torch.cuda.device_count()
        if num_devices > 1 and "RANK" not in os.environ and not settings.training["use_cpu"]:
            # transformers would split batches over the GPUs of one process and multiply the loss by their number.
            raise ConfigError(
                f"GPUs: one process must see one GPU, but sees {num_devices}; start with `deepspeed` or `torchrun`, or "
                "set CUDA_VISIBLE_DEVICES=0"
            )
        return settings
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    changes: dict[str, bool | None] = {"use_cpu": True}
    if not settings.training["use_cpu"]:
        log.info("no GPU found: training on the CPU (use_cpu: False -> True)")
    if settings.training["tf32"]:
        log.warning("tf32: True -> not set, because it is a number format of GPUs")
        changes["tf32"] = None
    return replace(settings, training={**settings.training, **changes})
