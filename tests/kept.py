"""What a forward pass leaves for the backward pass, measured."""

from typing import Any, Literal

import torch
from torch import nn

from ds_sft.training.inputs import inputs_of


def kept_by(model: nn.Module, batch: dict[str, torch.Tensor], kind: Literal["fp32", "16 bits", "autocast"]) -> int:
    """Give the bytes of all tensors that autograd saves, without weights and casts of them."""
    if kind == "16 bits":
        model = model.bfloat16()
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    shapes = {tuple(weight.shape) for weight in model.parameters()}
    casts = (
        shapes | {shape[::-1] for shape in shapes} | {(shape[0], 2 * shape[1]) for shape in shapes if len(shape) > 1}
    )
    casts |= {shape[::-1] for shape in casts}
    found: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own and not (kind == "autocast" and tuple(tensor.shape) in casts):
            found[place] = tensor
        return tensor

    inputs: dict[str, Any] = inputs_of(batch, device=torch.device("cpu"))
    del inputs["labels"]
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"),
    ):
        model.train()(**inputs, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())
