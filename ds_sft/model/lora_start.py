"""First values of adapters that are computed: from what 4 bits lose, or from the inputs of each layer."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from ds_sft.errors import ConfigError
from ds_sft.model.lora import ADAPTER, PREFIX, Adapters
from ds_sft.model.quantisation import dequantised, is_quantised
from ds_sft.model.weights import stored_weight


@torch.no_grad()
def make_up_for_4_bits(adapters: Adapters, *, stored: Path) -> None:
    """Let the product of each pair of adapters begin as the best approximation of what quantisation took away.

    It is algorithm 1 of Li 2023 ("LoftQ") with one step: the quantised weights stay as they are. peft 0.21.2
    has the same, but for CUDA only, and without regard to the scale of the product.

    Args:
        adapters: On a model that is held in 4 bits.
        stored: Folder with the weights in full precision.
    """
    for path, module in adapters.model.named_modules():
        held: Any = module.get_base_layer().weight if isinstance(module, LoraLayer) else None
        if held is None or not is_quantised(held):
            continue
        layer: Any = module
        exact = stored_weight(stored, f"{path.removeprefix(PREFIX)}.weight").to(held.device).float()
        left, sizes, right = torch.linalg.svd(exact - dequantised(held).float(), full_matrices=False)
        rank = layer.r[ADAPTER]
        root = (sizes[:rank] / layer.scaling[ADAPTER]).sqrt()
        layer.lora_A[ADAPTER].weight.copy_(root[:, None] * right[:rank])
        layer.lora_B[ADAPTER].weight.copy_(left[:, :rank] * root)


@torch.no_grad()
def begin_at_inputs(adapters: Adapters, inputs: Mapping[str, Any]) -> None:
    """Let each first matrix hold the directions in which its layer's inputs vary most (Paischer 2024, "EVA").

    Every layer keeps its rank, as peft's does with rho = 1. peft 0.21.2 goes over batches until its estimate stands
    still, which need not end; one batch, flat so that no padding counts, is decomposed exactly here.

    Args:
        adapters: On a model with whole weights; the second matrices are zero, so nothing it computes changes.
        inputs: The arguments of the model for one batch, the same on every rank.

    Raises:
        ConfigError: When a layer sees fewer tokens than there are directions to find.
    """
    model = adapters.model
    layers: dict[str, Any] = {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}
    hooks = [
        layer.register_forward_pre_hook(partial(_take_directions, path=path.removeprefix(PREFIX)))
        for path, layer in layers.items()
    ]
    model.eval()
    try:
        model(**inputs)
    finally:
        model.train()
        for hook in hooks:
            hook.remove()


def _take_directions(layer: Any, given: tuple[torch.Tensor, ...], *, path: str) -> None:
    states, rank = given[0].flatten(0, -2).float(), layer.r[ADAPTER]
    if len(states) <= rank:
        raise ConfigError(
            f"lora_init: eva finds lora_r directions in more tokens than that, but {path} sees {len(states)} tokens "
            f"of the first samples for rank {rank}; lower lora_r, or leave lora_init out"
        )
    centred = states - states.mean(dim=0)
    # Of the square matrix, which is small where there are many tokens.
    _, directions = torch.linalg.eigh(centred.T @ centred)
    weight = layer.lora_A[ADAPTER].weight
    weight.copy_(directions.T.flip(0)[:rank])
