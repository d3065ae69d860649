"""Predicts the GPU memory of training adapters on published sizes, from tensors that are measured on a CPU.

Run it as `python benchmarks/adapter_memory.py`; it writes results/adapter_memory.json. It is a prediction: no GPU is
used. Weights are counted exactly on models without storage. Activations are what autograd keeps, measured at full width
on models of one and of two layers and continued in a straight line to all of them: with gradient checkpointing the
inputs of every layer and everything of one. Left out: the CUDA context (about 0.5 GB), fragmentation, and what kernels
need for themselves.
"""

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import T5Config

from ds_sft.config.arguments import LoraArguments
from ds_sft.contracts import Family
from ds_sft.families import family_named
from ds_sft.families.flan_t5.modeling import UntiedT5
from ds_sft.families.yuan2.native.configuration import Yuan2Config
from ds_sft.families.yuan2.native.model import Yuan2ForCausalLM
from ds_sft.model.lora import Base, attach_adapters, lora_config
from ds_sft.training.inputs import inputs_of

RESULTS = Path(__file__).parent / "results" / "adapter_memory.json"
NUM_TOKENS, RANK = 1024, 16
SMALL_VOCABULARY = 1024
GIGABYTE = 1e9
BF16, FP32, ADAMW = 2, 4, 16
"""Bytes; AdamW's are an fp32 weight, its gradient and two averages."""
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Four bits, a byte of scale for 64 of them, and an fp32 number for 256 of those."""
SCORES = 4 + 2 + 2
"""Bytes of a score while the loss is made: log probabilities in fp32, the product and the gradient in bf16."""


@dataclass(frozen=True)
class Size:
    """A published model.

    Args:
        family: Its name.
        config: Its shape, without the number of layers.
        num_layers: Of the decoder, and of the encoder where there is one.
        vocabulary: Rows of its table.
        fp32: Ends of the names of weights that quantised models keep in fp32.
    """

    family: str
    config: Mapping[str, Any]
    num_layers: int
    vocabulary: int
    fp32: tuple[str, ...] = ()

    def model(self, *, num_layers: int, vocabulary: int) -> Any:
        """Make it with so many layers."""
        if self.family == "yuan2":
            return Yuan2ForCausalLM(Yuan2Config(**self.config, num_hidden_layers=num_layers, vocab_size=vocabulary))
        return UntiedT5(T5Config(**self.config, num_layers=num_layers, vocab_size=vocabulary))

    def batch(self) -> dict[str, torch.Tensor]:
        """Make a flat batch of one document, every token of it supervised."""
        ids = torch.arange(NUM_TOKENS).remainder(SMALL_VOCABULARY)[None]
        offsets = torch.tensor([0, NUM_TOKENS], dtype=torch.int32)
        if self.family == "yuan2":
            return {"input_ids": ids, "labels": ids, "offsets": offsets}
        return {
            "input_ids": ids,
            "labels": ids,
            "offsets": offsets,
            "decoder_input_ids": ids,
            "decoder_offsets": offsets,
        }


SIZES = {
    "Yuan2-2B": Size(
        "yuan2",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "pad_token_id": 0,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        24,
        135_040,
    ),
    "Flan-T5-XL": Size(
        "flan_t5",
        {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_heads": 32, "feed_forward_proj": "gated-gelu"},
        24,
        32_128,
        (".wo.weight",),
    ),
}


def main() -> None:
    """Predict every size in bf16 and in 4 bits, and write the figures."""
    rows = []
    for name, size in SIZES.items():
        kept = _activations(size)
        for is_quantised in (False, True):
            parts = {"weights": _weights(size, is_quantised=is_quantised), **_trained(size), **kept}
            total = sum(parts.values())
            told = {part: round(value / GIGABYTE, 3) for part, value in parts.items()}
            rows.append({"model": name, "is_quantised": is_quantised, "gigabytes": round(total / GIGABYTE, 2), **told})
            print(rows[-1])
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.machine(),
        "torch": version("torch"),
        "tokens": NUM_TOKENS,
        "rank": RANK,
        "is_prediction": True,
    }
    RESULTS.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def _weights(size: Size, *, is_quantised: bool) -> float:
    """Give the bytes of the frozen model."""
    with torch.device("meta"):
        model = size.model(num_layers=size.num_layers, vocabulary=size.vocabulary)
    kept = family_named(size.family).kept_in_16_bits
    packed = {
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path.rpartition(".")[-1] not in kept
    }
    total = 0.0
    for name, weight in model.named_parameters():
        in_16_bits = FP32 if is_quantised and name.endswith(size.fp32) and size.fp32 else BF16
        total += weight.numel() * (NF4 if is_quantised and name in packed else in_16_bits)
    return total


def _trained(size: Size) -> dict[str, float]:
    """Give the bytes of adapters with their gradients and averages."""
    one, two = (_num_trained(_adapted(size, num_layers)) for num_layers in (1, 2))
    return {"adapters": ADAMW * float(one + (two - one) * (size.num_layers - 1))}


def _activations(size: Size) -> dict[str, float]:
    """Give the bytes that autograd keeps, and those of the scores while the loss is made."""
    kept = {
        (num_layers, is_checkpointing): _kept(size, num_layers, is_checkpointing=is_checkpointing)
        for num_layers in (1, 2)
        for is_checkpointing in (False, True)
    }
    a_layer = kept[2, False] - kept[1, False]
    inputs = kept[2, True] - kept[1, True]
    return {
        "activations": kept[1, True] + inputs * (size.num_layers - 1) + a_layer,
        "scores": float(NUM_TOKENS * size.vocabulary * SCORES),
    }


def _kept(size: Size, num_layers: int, *, is_checkpointing: bool) -> float:
    """Measure what a forward pass leaves for the backward pass, parameters left out."""
    adapted = _adapted(size, num_layers)
    if is_checkpointing:
        adapted.gradient_checkpointing_enable({"use_reentrant": False})
    adapted.train()
    own = {weight.untyped_storage().data_ptr() for weight in adapted.parameters()}
    with _counted(own) as sizes, torch.autocast("cpu", dtype=torch.bfloat16):
        inputs = inputs_of(size.batch(), device=torch.device("cpu"))
        del inputs["labels"]
        adapted(**inputs, use_cache=False)
    return float(sum(sizes.values()))


@contextmanager
def _counted(own: set[int]) -> Iterator[dict[int, int]]:
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield sizes


def _adapted(size: Size, num_layers: int) -> Any:
    family: Family = family_named(size.family)
    model = size.model(num_layers=num_layers, vocabulary=SMALL_VOCABULARY)
    config = lora_config(LoraArguments(lora_r=RANK), family=family)
    base = Base("measured", (), is_as_stored=True)
    return attach_adapters(model.bfloat16(), config, family=family, base=base, seed=0, holds_16_bits=False).model


def _num_trained(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


if __name__ == "__main__":
    main()
