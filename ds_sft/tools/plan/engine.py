"""What DeepSpeed divides, moves off the GPU and holds in buffers, read from its JSON file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_sft.errors import ConfigError

_DEFAULT_BUCKET = 500_000_000
_DEFAULT_LIVE = 1_000_000_000
_DEFAULT_SUB_GROUP = 1_000_000_000
_PREFETCHED, _PERSISTENT = 0.9, 10
"""Shares of the squared width and of the width that transformers puts in the place of "auto"."""


@dataclass(frozen=True)
class Engine:
    """DeepSpeed's settings, as far as they decide memory; sizes are numbers of elements.

    Args:
        stage: Of ZeRO.
        optimizer_on: Where optimizer states lie.
        weights_on: Where weights lie, with stage 3.
        bucket: Gradients that are reduced at once.
        num_buckets: How many of those there are.
        prefetched: Weights that are gathered ahead of use.
        kept: Gathered weights that are kept for their next use.
        persistent: Weights smaller than this are not divided.
        sub_group: Most weights that the optimizer takes at a time, with stage 3.
    """

    stage: int
    optimizer_on: str = "gpu"
    weights_on: str = "gpu"
    bucket: int = _DEFAULT_BUCKET
    num_buckets: int = 2
    prefetched: int = 0
    kept: int = 0
    persistent: int = 0
    sub_group: int = _DEFAULT_SUB_GROUP

    @property
    def name(self) -> str:
        """What the table calls it."""
        places = {"cpu": "RAM", "nvme": "NVMe"}
        if self.weights_on != "gpu":
            return f"ZeRO-{self.stage}, all in {places[self.weights_on]}"
        return f"ZeRO-{self.stage}" + (
            "" if self.optimizer_on == "gpu" else f", optimizer in {places[self.optimizer_on]}"
        )


def engine_of(config: Mapping[str, Any], *, width: int, path: Path) -> Engine:
    """Read a DeepSpeed config.

    Args:
        config: Content of the file.
        width: Of the model, for "auto".
        path: The file, for messages.

    Returns:
        Its settings.

    Raises:
        ConfigError: When a value that decides memory is none that DeepSpeed takes.
    """
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, dict) else None
    if stage not in (0, 1, 2, 3):
        raise ConfigError(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3, but is {stage!r}; see ds_configs/")
    divides = stage == 3  # noqa: PLR2004  # the stage that divides weights
    automatic = {
        "reduce_bucket_size": width * width,
        "stage3_prefetch_bucket_size": int(_PREFETCHED * width * width),
        "stage3_param_persistence_threshold": _PERSISTENT * width,
    }

    def size(name: str, default: float) -> int:
        value = zero.get(name, default)
        if value != "auto" and not isinstance(value, int | float):
            raise ConfigError(f"{path}: zero_optimization.{name} must be a number, but is {value!r}; see ds_configs/")
        return int(automatic.get(name, default) if value == "auto" else value)

    def device(name: str) -> str:
        moved = (zero.get(name) or {}).get("device", "none")
        return "gpu" if moved in ("none", None) else str(moved)

    return Engine(
        stage=stage,
        optimizer_on=device("offload_optimizer"),
        weights_on=device("offload_param"),
        bucket=size("reduce_bucket_size", _DEFAULT_BUCKET),
        # Stage 3 fills one bucket whatever overlap_comm says.
        num_buckets=2 if zero.get("overlap_comm", divides) and not divides else 1,
        prefetched=size("stage3_prefetch_bucket_size", 5e7) if divides else 0,
        # What is used again within this many weights is kept: half of them lie on the way to the head, half back.
        kept=min(
            size("stage3_max_live_parameters", _DEFAULT_LIVE), size("stage3_max_reuse_distance", _DEFAULT_LIVE) // 2
        ),
        persistent=size("stage3_param_persistence_threshold", 1e5) if divides else 0,
        sub_group=size("sub_group_size", _DEFAULT_SUB_GROUP),
    )
