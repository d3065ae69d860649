"""Merges an adapter into the weights of its model, one weight at a time."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ds_sft.contracts import Family
from ds_sft.model.adapter_config import AdapterConfig
from ds_sft.model.lora import PREFIX, STORED_ROWS
from ds_sft.model.lora_targets import is_named
from ds_sft.model.quantisation import through_4_bits


@dataclass(frozen=True)
class Change:
    """What an adapter makes of a model's weights.

    Args:
        config: Settings of the adapter.
        tensors: Name in peft's words -> tensor, held against the model.
        quantised: Dtype that the model was quantised from while the adapter trained; None where it was not.
        family: Names the layers that were never quantised.
    """

    config: AdapterConfig
    tensors: Mapping[str, torch.Tensor]
    quantised: torch.dtype | None
    family: Family

    def base_of(self, name: str, weight: torch.Tensor, *, is_linear: bool) -> torch.Tensor:
        """Give a weight as the adapter found it.

        Args:
            name: Of the weight.
            weight: As it is stored.
            is_linear: Whether it belongs to a linear layer that may have been held in 4 bits.

        Returns:
            The same where it was not.
        """
        path = name.removesuffix(".weight")
        if not is_linear or self.quantised is None or is_named(path, self.family.kept_in_16_bits):
            return weight
        return through_4_bits(weight, dtype=self.quantised)

    def of(self, name: str, base: torch.Tensor) -> torch.Tensor:
        """Give a weight as the adapted model has it.

        Args:
            name: Of the weight.
            base: As the adapter found it.

        Returns:
            The same in fp32; itself where nothing changes.
        """
        path, _, kind = name.rpartition(".")
        stored = f"{PREFIX}{path}"
        if kind == "bias":
            # A layer with an adapter is the wrapper's base layer in peft's names.
            wrapped = self.tensors.get(f"{stored}.base_layer.bias", base)
            return self.tensors.get(f"{stored}.bias", wrapped)
        if f"{stored}.lora_A.weight" in self.tensors:
            return self._with_product(path, base.float())
        if f"{stored}.{STORED_ROWS}" in self.tensors:
            return self._with_rows(path, base.float())
        return base

    def _with_product(self, path: str, weight: torch.Tensor) -> torch.Tensor:
        """Add scale * B A (Hu 2021, section 4.1); with DoRA, give each row its own length (Liu 2024, equation 5)."""
        stored = f"{PREFIX}{path}"
        down, up = (self.tensors[f"{stored}.{side}.weight"].float() for side in ("lora_A", "lora_B"))
        weight = weight + self.config.scale_of(path) * (up @ down)
        length = self.tensors.get(f"{stored}.lora_magnitude_vector")
        return weight if length is None else weight * (length.float() / weight.norm(dim=1))[:, None]

    def _with_rows(self, path: str, weight: torch.Tensor) -> torch.Tensor:
        ids = torch.tensor((self.config.trainable_token_indices or {})[path])
        # Rows in reserve behind the last token of a table that was grown do not exist: all of them are new.
        grown = torch.cat([weight, weight.new_zeros(max(0, int(ids.max()) + 1 - len(weight)), weight.shape[1])])
        grown[ids] = self.tensors[f"{PREFIX}{path}.{STORED_ROWS}"].float()
        return grown
