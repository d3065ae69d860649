"""What a run is, in figures: told in a few lines before the first step, kept as an event."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerState

from ds_sft.config.arguments import TrainingArguments
from ds_sft.config.budgets import budgets_of
from ds_sft.contracts import Family
from ds_sft.data.account import Account
from ds_sft.training.compute import peak_of, precision_of
from ds_sft.zero.gather import full_shape

_PERCENT = 100.0
_TERA = 1e12


@dataclass(frozen=True)
class Given:
    """What a run was given.

    Args:
        model: Its folder, or its name on the hub.
        family: Of the model.
        account: What became of the training data.
        versions: Package -> version.
    """

    model: str
    family: Family
    account: Account
    versions: Mapping[str, str]


def run_figures(given: Given, model: nn.Module, args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
    """Give what a run is.

    Args:
        given: What it was given.
        model: Without the engine around it.
        args: Of the run.
        state: With the number of steps.

    Returns:
        Plain data; `tokens` and `supervised_tokens` (of an epoch) are None where samples are made on access,
        `zero_stage` without DeepSpeed, and `peak_flops`, the matrix products a second of the first rank, where nothing
        is logged.
    """
    trained, total = _parameter_counts(model)
    counters = given.account.counters
    return {
        "model": given.model,
        "family": given.family.name,
        "trained_parameters": trained,
        "parameters": total,
        "precision": precision_of(args),
        "peak_flops": peak_of(args),
        "zero_stage": _zero_stage(args),
        "device": torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type,
        "batch": _batch(args, given.family),
        "steps": state.max_steps,
        "epochs": float(state.num_train_epochs),
        "data": str(given.account.data),
        "loss_mode": given.account.mode,
        "samples": counters["samples"],
        "tokens": counters.get("tokens_total"),
        "supervised_tokens": counters.get("tokens_supervised"),
        "versions": dict(given.versions),
    }


def header_lines(figures: Mapping[str, Any]) -> list[str]:
    """Put the figures into words.

    Args:
        figures: As `run_figures` gives them.

    Returns:
        Lines: model, batch as an equation, tokens, and the peak that MFU is measured against, where it was measured.
    """
    trained, total = figures["trained_parameters"], figures["parameters"]
    stage = figures["zero_stage"]
    batch = figures["batch"]
    tokens, supervised = figures["tokens"], figures["supervised_tokens"]
    size = f"{batch['size']:,} {batch['unit']}"
    equation = f"{size} = {batch['micro']} micro x {batch['accumulation']} accumulate x {batch['ranks']} ranks"
    told = "not counted, because samples are made on access"
    if tokens and supervised is not None:
        told = f"{tokens:,} an epoch, {supervised:,} of them supervised ({_PERCENT * supervised / tokens:.1f} %)"
    return [
        f"model: {figures['model']} ({figures['family']}), {trained:,} of {total:,} parameters train "
        f"({_PERCENT * trained / max(1, total):.2f} %), {figures['precision']}, "
        + ("without DeepSpeed" if stage is None else f"ZeRO-{stage}"),
        f"batch: {equation}; {figures['steps']} steps, {figures['samples']:,} samples",
        f"tokens: {told}",
        *_peak_line(figures),
    ]


def _peak_line(figures: Mapping[str, Any]) -> list[str]:
    if not figures["peak_flops"]:
        return []
    peak = f"{figures['peak_flops'] / _TERA:.3g} TFLOP/s"
    return [f"peak: {peak} measured with matrix products in {figures['precision']} on {figures['device']}"]


def _parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Count what trains and what there is; peft knows how many weights a packed 4-bit one holds."""
    if isinstance(model, PeftModel):
        counts: tuple[int, int] = model.get_nb_trainable_parameters()
        return counts
    sizes = [(full_shape(weight).numel(), weight.requires_grad) for weight in model.parameters()]
    return sum(size for size, is_trained in sizes if is_trained), sum(size for size, _ in sizes)


def _batch(args: TrainingArguments, family: Family) -> dict[str, Any]:
    """Give the factors of a step; with packing it is filled up to a budget of tokens."""
    micro, unit = args.train_batch_size, "samples"
    if args.packing:
        micro = budgets_of(vars(args), is_encoder_decoder=family.is_encoder_decoder)[0]
        unit = "source tokens at most" if family.is_encoder_decoder else "tokens at most"
    accumulation, ranks = args.gradient_accumulation_steps, args.world_size
    size = micro * accumulation * ranks
    return {"unit": unit, "size": size, "micro": micro, "accumulation": accumulation, "ranks": ranks}


def _zero_stage(args: TrainingArguments) -> int | None:
    # transformers makes the attribute with DeepSpeed only.
    return int(args.hf_deepspeed_config.get_value("zero_optimization.stage", 0)) if args.deepspeed else None
