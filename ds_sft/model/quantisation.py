"""Holding a frozen model in 4 bits (Dettmers 2023, "QLoRA"): NF4 with quantised scales, through bitsandbytes."""

from typing import Any

import torch
from transformers import BitsAndBytesConfig

from ds_sft.contracts import Family


def in_4_bits(family: Family, *, computes_in: torch.dtype) -> dict[str, Any]:
    """Give what from_pretrained needs to quantise while it loads.

    Args:
        family: Names the layers that stay as they are.
        computes_in: Dtype of the products.

    Returns:
        Keyword arguments; embeddings and norms stay as they are too.
    """
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computes_in,
        llm_int8_skip_modules=list(family.kept_in_16_bits),
    )
    return {"quantization_config": config}
