"""Holding a frozen model in 4 bits (Dettmers 2023, "QLoRA"): NF4 with quantised scales, through bitsandbytes.

bitsandbytes is an extra, so it is imported where it is needed.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from ds_sft.contracts import Family
from ds_sft.errors import ConfigError

_KIND = "nf4"
_PACKED = "Params4bit"


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
        bnb_4bit_quant_type=_KIND,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computes_in,
        llm_int8_skip_modules=list(family.kept_in_16_bits),
    )
    return {"quantization_config": config}


def missing_package() -> Iterator[ConfigError]:
    """Look for bitsandbytes without loading it.

    Yields:
        One error where it is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        yield ConfigError("q_lora: needs bitsandbytes, but it is not installed; pip install -e '.[qlora]'")


def is_quantised(weight: torch.Tensor) -> bool:
    """Tell whether a weight is held in 4 bits.

    Args:
        weight: Of a layer.

    Returns:
        True for bitsandbytes' packed parameters.
    """
    return type(weight).__name__ == _PACKED


def dequantised(weight: Any) -> torch.Tensor:
    """Give a weight that is held in 4 bits as it is used.

    Args:
        weight: A packed parameter.

    Returns:
        Its values, in the dtype that it was quantised from.
    """
    from bitsandbytes.functional import dequantize_4bit

    whole: torch.Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return whole


def through_4_bits(weight: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """Quantise and dequantise a weight, as loading and using it would.

    Args:
        weight: As it is stored.
        dtype: That it is loaded in.

    Returns:
        Its values in that dtype.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight.to(dtype), quant_type=_KIND, compress_statistics=True)
    whole: torch.Tensor = dequantize_4bit(packed, state)
    return whole
