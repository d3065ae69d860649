"""Holds what was asked of the loss against what a family can do."""

import logging
from collections.abc import Iterator

from ds_sft.config.sources import DataArguments
from ds_sft.contracts import Family
from ds_sft.errors import ConfigError

log = logging.getLogger(__name__)


def loss_faults(data: DataArguments, *, family: Family) -> Iterator[ConfigError]:
    """Find flags of the loss that contradict each other.

    Args:
        data: With the flags.
        family: Of the checkpoint.

    Yields:
        One error for each contradiction.
    """
    modes, layout = data.loss_modes(), data.layout
    if len(modes) > 1:
        flags = " and ".join(f"--{mode}_loss" for mode in modes)
        yield ConfigError(f"loss mode: at most one may be given, but there are {flags}; keep one")
    if layout != "native" and family.loss_modes and any(mode != "efficient" for mode in modes):
        yield ConfigError(f"layout: {layout} goes with --efficient_loss only, but --{modes[0]}_loss is given; drop one")


def say_which_loss(data: DataArguments, *, family: Family) -> None:
    """Say which loss it is when none was asked for, and what was asked for in vain.

    Args:
        data: With the flags.
        family: Of the checkpoint.
    """
    modes = data.loss_modes()
    if family.loss_modes and not modes:
        log.info("loss mode: none was asked for, so every answer carries loss, as with --efficient_loss True")
    for mode in modes:
        if mode not in family.loss_modes:
            log.warning("%s_loss: ignored, because %s has one loss only: on every answer", mode, family.name)
    if not family.loss_modes and data.layout != "native":
        log.warning("layout: %s -> native, because %s has one layout only", data.layout, family.name)
