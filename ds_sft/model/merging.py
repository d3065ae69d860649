"""Merges an adapter into the weights of its model, one weight at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ds_sft.contracts import Family
from ds_sft.model.lora import PREFIX, STORED_ROWS
from ds_sft.model.quantisation import through_4_bits


@dataclass(frozen=True)
class Change:
    """What an adapter makes of a model's weights.

    Args:
        config: Content of adapter_config.json.
        tensors: Name in peft's words -> tensor.
        quantised: Dtype that the model was quantised from while the adapter trained; None where it was not.
        family: Names the layers that were never quantised.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    quantised: torch.dtype | None
    family: Family

    def of(self, name: str, weight: torch.Tensor, *, is_linear: bool) -> torch.Tensor:
        """Give a weight as the adapted model has it.

        Args:
            name: Of the weight.
            weight: As it is stored.
            is_linear: Whether it belongs to a linear layer.

        Returns:
            The same in fp32; itself where nothing changes.
        """
        path = name.removesuffix(".weight")
        if is_linear and self.quantised is not None and not self._is_kept(path):
            weight = through_4_bits(weight, dtype=self.quantised)
        stored = f"{PREFIX}{path}"
        if f"{stored}.lora_A.weight" in self.tensors:
            weight = self._with_product(stored, weight.float())
        if f"{stored}.{STORED_ROWS}" in self.tensors:
            weight = self._with_rows(path, weight.float())
        return self.tensors.get(f"{PREFIX}{name}", weight)

    def _with_product(self, stored: str, weight: torch.Tensor) -> torch.Tensor:
        """Add scale * B A (Hu 2021, section 4.1); with DoRA, give each row its own length (Liu 2024, equation 5)."""
        down, up = (self.tensors[f"{stored}.{side}.weight"].float() for side in ("lora_A", "lora_B"))
        path = stored.removeprefix(PREFIX)
        rank = _of_layer(self.config.get("rank_pattern"), path, self.config["r"])
        alpha = _of_layer(self.config.get("alpha_pattern"), path, self.config["lora_alpha"])
        scale = alpha / (rank**0.5 if self.config.get("use_rslora") else rank)
        weight = weight + scale * (up @ down)
        length = self.tensors.get(f"{stored}.lora_magnitude_vector")
        return weight if length is None else weight * (length.float() / weight.norm(dim=1))[:, None]

    def _with_rows(self, path: str, weight: torch.Tensor) -> torch.Tensor:
        ids = torch.tensor(self.config["trainable_token_indices"][path])
        # Rows in reserve behind the last token of a table that was grown do not exist: all of them are new.
        grown = torch.cat([weight, weight.new_zeros(max(0, int(ids.max()) + 1 - len(weight)), weight.shape[1])])
        grown[ids] = self.tensors[f"{PREFIX}{path}.{STORED_ROWS}"].float()
        return grown

    def _is_kept(self, path: str) -> bool:
        return any(path == name or path.endswith(f".{name}") for name in self.family.kept_in_16_bits)


def _of_layer(pattern: Mapping[str, int] | None, path: str, default: int) -> int:
    return next(
        (value for name, value in (pattern or {}).items() if path == name or path.endswith(f".{name}")), default
    )
