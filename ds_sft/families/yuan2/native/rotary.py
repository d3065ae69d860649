"""Rotary positions from fp32 frequencies, whatever dtype the model is cast to."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ds_sft.families.yuan2.native.configuration import Yuan2Config

DEPENDS_ON_LENGTH = ("dynamic", "longrope")
"""Scalings whose frequencies follow from the largest position of the whole batch."""


class Yuan2RotaryEmbedding(nn.Module):
    """Cosines and sines of the rotary angles (Su et al. 2021), in the half-rotated layout.

    There is no buffer that a cast could reach: `.bfloat16()` and DeepSpeed's bf16 engine make of the official buffer a
    table in which 2048 positions are no longer distinguishable. Frequencies are computed here, on the CPU, in fp32.

    Args:
        config: Its `rope_parameters` choose the scaling; the formulas are transformers' own.
    """

    def __init__(self, config: Yuan2Config) -> None:
        super().__init__()
        self.config = config
        self._known: dict[torch.device, tuple[torch.Tensor, float]] = {}

    def frequencies(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Give the frequencies for some positions.

        Args:
            position_ids: Positions; where the scaling depends on the length, the largest decides.

        Returns:
            Radians a position, fp32, shape [D / 2]; and a factor for cosines and sines.
        """
        kind = (self.config.rope_parameters or {}).get("rope_type", "default")
        if kind in DEPENDS_ON_LENGTH:
            found, scale = ROPE_INIT_FUNCTIONS[kind](self.config, position_ids.device, int(position_ids.max()) + 1)
            return found.float(), scale
        device = position_ids.device
        if device not in self._known:
            compute: Callable[[Any], tuple[torch.Tensor, float]]
            compute = _unscaled if kind == "default" else ROPE_INIT_FUNCTIONS[kind]
            found, scale = compute(self.config)
            self._known[device] = found.float().to(device), scale
        return self._known[device]

    @torch.no_grad()
    def forward(self, states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give cosines and sines.

        Args:
            states: Tell the dtype.
            position_ids: Shape [B, T] or [1, T].

        Returns:
            Two tensors of shape [B, 1, T, D], to be broadcast over the heads.
        """
        found, scale = self.frequencies(position_ids)
        # Autocast must not turn the angles into bf16.
        with torch.autocast(device_type=states.device.type, enabled=False):
            angles = position_ids[:, None, :, None].float() * found
            angles = torch.cat([angles, angles], dim=-1)
            return (angles.cos() * scale).to(states.dtype), (angles.sin() * scale).to(states.dtype)


def rotate(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Turn queries or keys by the angles of their positions.

    Args:
        states: Shape [B, N, T, D].
        cosines: Shape [B, 1, T, D].
        sines: Shape [B, 1, T, D].

    Returns:
        The same shape.
    """
    first, second = states.chunk(2, dim=-1)
    return states * cosines + torch.cat([-second, first], dim=-1) * sines


def _unscaled(config: Yuan2Config) -> tuple[torch.Tensor, float]:
    theta = (config.rope_parameters or {})["rope_theta"]
    width = config.head_dim
    return 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width), 1.0
