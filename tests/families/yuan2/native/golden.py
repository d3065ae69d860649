"""The golden checkpoint and cases of the official code, for the tests beside this file."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ds_sft.families.yuan2.native.model import Yuan2ForCausalLM

GOLDEN = Path(__file__).parents[3] / "golden" / "yuan2"
LOGITS = 1e-4
"""Largest difference of a logit in fp32; the official code differs from itself in fp64 by 1.4e-5."""


@cache
def cases() -> dict[str, torch.Tensor]:
    """Give every tensor of the golden file by `case/name`."""
    return load_file(GOLDEN / "cases.safetensors")


@cache
def facts() -> dict[str, Any]:
    """Give the scalars of every case."""
    facts: dict[str, Any] = json.loads((GOLDEN / "cases.json").read_text())
    return facts


def model(attention: str = "sdpa", **config: Any) -> Any:
    """Load the golden checkpoint for inference, in fp32; transformers types too little to say more than Any."""
    settings: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": attention, **config}
    loaded: Any = Yuan2ForCausalLM.from_pretrained(GOLDEN, **settings)
    return loaded.eval()


def logits(model: Any, input_ids: torch.Tensor, **more: Any) -> torch.Tensor:
    """Give the logits without gradients."""
    with torch.no_grad():
        found: torch.Tensor = model(input_ids, **more).logits
    return found


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Give the largest difference of two tensors of one shape."""
    assert one.shape == other.shape
    return float((one - other).abs().max())
