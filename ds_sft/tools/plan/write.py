"""Writes a chosen way as a recipe: the user's own text, with the lines changed that decide memory."""

import json
import re
from pathlib import Path

from ds_sft.config.aliases import flag_groups
from ds_sft.tools.plan.choices import Choice
from ds_sft.tools.plan.table import batch_equation
from ds_sft.tools.recipes import config_folder, write_new

_TOLD = re.compile(r"^# (start|memory|or) .*\n", re.MULTILINE)
"""Lines on top of a shipped recipe that are about its own machines."""


def write_recipe(choice: Choice, *, gpu_memory: float, into: Path) -> None:
    """Write a recipe.

    Args:
        choice: What it says.
        gpu_memory: Bytes of one GPU that it was chosen for.
        into: Must not exist.
    """
    job, run = choice.job, choice.job.run
    title = (
        f"# planned for {job.num_ranks} GPUs of {gpu_memory / 1e9:g} GB: {choice.name}, "
        f"{choice.memory.peak / 1e9:.1f} GB predicted on each\n# a step: {batch_equation(job)}\n"
    )
    text = title + _TOLD.sub("", job.text)
    lines = {name: _yaml(values) for name, values in flag_groups(job.words.flags) if name}
    lines |= {
        "per_device_train_batch_size": str(run.per_device_train_batch_size),
        "gradient_accumulation_steps": str(run.gradient_accumulation_steps),
        "gradient_checkpointing": str(bool(run.activation_checkpointing)).lower(),
    }
    for name, budget in (
        ("tokens_per_batch", run.tokens_per_batch),
        ("target_tokens_per_batch", run.target_tokens_per_batch),
    ):
        if budget is not None:
            lines[name] = str(budget)
    lines.pop("activation_checkpointing", None)
    text = _without(text, "activation_checkpointing")
    if choice.engine is None:
        lines.pop("deepspeed", None)
        text = _without(text, "deepspeed")
    elif choice.file is not None:
        # A path in double quotes as in JSON is the same in YAML.
        lines["deepspeed"] = json.dumps(str(config_folder() / choice.file))
    for name, value in lines.items():
        text = _with(text, name, value)
    write_new(into, text)


def _with(text: str, name: str, value: str) -> str:
    line, pattern = f"{name}: {value}\n", re.compile(rf"^{name}:.*\n?", re.MULTILINE)
    found = pattern.search(text)
    if found is None:
        return text.rstrip("\n") + "\n" + line
    return text[: found.start()] + line + text[found.end() :]


def _without(text: str, name: str) -> str:
    return re.sub(rf"^{name}:.*\n?", "", text, flags=re.MULTILINE)


def _yaml(values: list[str]) -> str:
    if len(values) > 1:
        return json.dumps(values)
    word = values[0] if values else "true"
    is_plain = re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?|true|false", word, flags=re.IGNORECASE)
    return word.lower() if is_plain else json.dumps(word)
