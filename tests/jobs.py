"""What the ranks of a test do; a module of its own, so that the fork server can import it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ds_sft.train import train
from ds_sft.zero.gather import stream_parameters


@dataclass(frozen=True)
class Trained:
    """What a run leaves: its log and its weights in fp32, as plain numbers."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)


def train_and_log(flags: list[str]) -> Trained:
    """Run the main job and give losses and gradient norms of every step, unrounded."""
    trainer = train(flags)
    history = [row for row in trainer.state.log_history if "loss" in row]
    return Trained([row["loss"] for row in history], [row["grad_norm"] for row in history])


def main_flags(model: Path, data: Path, output: Path, **flags: Any) -> list[str]:
    """Give the flags of a short deterministic run: AdamW at a constant rate, a line for every step, fp32."""
    given = {
        "model_name_or_path": model,
        "data_path": data,
        "output_dir": output,
        "max_steps": 8,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "save_dtype": "fp32",
        "report_to": "none",
        "seed": 7,
        **flags,
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def weights_after(flags: list[str]) -> dict[str, list[float]]:
    """Run the main job and give every weight, gathered on rank zero, as lists."""
    trainer = train(flags)
    model = trainer.accelerator.unwrap_model(trainer.model)
    tensors = dict(stream_parameters(model, keep=trainer.is_world_process_zero(), dtype=torch.float32))
    return {name: tensor.flatten().tolist() for name, tensor in tensors.items()}


def read_json(file: Path) -> Any:
    """Give the content of a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))
