"""First values of adapters that are computed from the model: they make up for what 4 bits lose (Li 2023, "LoftQ")."""

from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from ds_sft.model.lora import ADAPTER, PREFIX, Adapters
from ds_sft.model.quantisation import dequantised, is_quantised
from ds_sft.model.weights import stored_weight


@torch.no_grad()
def make_up_for_4_bits(adapters: Adapters, *, stored: Path) -> None:
    """Let the product of each pair of adapters begin as the best approximation of what quantisation took away.

    It is algorithm 1 of the paper with one step: the quantised weights stay as they are. peft 0.21.2 has the same, but
    for CUDA only, and without regard to the scale of the product.

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
