"""An independent Flan-T5: plain transformers, plain torch, no code of ds_sft; expected values come from here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration


def reference_model(checkpoint: Path, *, num_rows: int) -> T5ForConditionalGeneration:
    """Build the model by hand: both tables grown with mean rows, the head its own parameter."""
    stored = load_file(checkpoint / "model.safetensors")
    for name in ("shared.weight", "lm_head.weight"):
        table = stored[name].float()
        mean = table.mean(dim=0, keepdim=True)
        stored[name] = torch.cat([table, mean.repeat(num_rows - len(table), 1)])
    config = T5Config.from_pretrained(checkpoint)
    config.vocab_size = num_rows
    model = T5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(stored["lm_head.weight"]))
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        stored[name] = stored["shared.weight"]
    model.load_state_dict(stored)
    return model


def summed_loss(
    model: Any, rows: Sequence[Mapping[str, Sequence[int]]], *, label_smoothing: float = 0.0
) -> tuple[torch.Tensor, int]:
    """Give the summed cross entropy of samples, one at a time and without padding, and the number of target tokens.

    With smoothing, that share of a target's weight is spread evenly over the vocabulary (Szegedy 2016).
    """
    total, num_tokens = torch.zeros(()), 0
    for row in rows:
        labels = torch.tensor([row["labels"]])
        decoder_inputs = torch.cat([torch.zeros(1, 1, dtype=torch.long), labels[:, :-1]], dim=1)
        logits = model(input_ids=torch.tensor([row["input_ids"]]), decoder_input_ids=decoder_inputs).logits[0]
        logs = logits.log_softmax(-1)
        total = total - (1 - label_smoothing) * logs[torch.arange(labels.shape[1]), labels[0]].sum()
        total = total - label_smoothing * logs.mean(-1).sum()
        num_tokens += labels.shape[1]
    return total, num_tokens
