"""Flags of older transformers and FastChat command lines, translated with one note each instead of a crash."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

REMOVED = "transformers 5 removed it and it has no effect any more"


@dataclass(frozen=True)
class Alias:
    """What became of an old flag.

    Args:
        why: Ends the note to the user.
        new: The flag that takes its value; None drops it.
        values: Old value (lower case) -> new value, where they differ; a value mapped to None drops the flag.
        variable: Environment variable that takes the value instead of a flag.
    """

    why: str
    new: str | None = None
    values: Mapping[str, str | None] = field(default_factory=dict)
    variable: str | None = None


_IS_TRUE = {"true": "true", "1": "true", "yes": "true", "false": None, "0": None, "no": None}

ALIASES: Mapping[str, Alias] = {
    "adafactor": Alias(
        "it is an optimizer like the others",
        "optim",
        dict.fromkeys(_IS_TRUE, None) | {"true": "adafactor", "1": "adafactor", "yes": "adafactor"},
    ),
    "bf16_opt_level": Alias(REMOVED),
    "dispatch_batches": Alias("it moved into --accelerator_config"),
    "evaluation_strategy": Alias("transformers renamed it", "eval_strategy"),
    "fp16_backend": Alias(REMOVED),
    "fp16_opt_level": Alias(REMOVED),
    "fsdp_min_num_params": Alias(REMOVED),
    "fsdp_transformer_layer_cls_to_wrap": Alias(REMOVED),
    "gradient_checkpointing": Alias("transformers renamed it", "activation_checkpointing"),
    "gradient_checkpointing_kwargs": Alias("transformers renamed it", "activation_checkpointing_kwargs"),
    "group_by_length": Alias(
        "transformers renamed it",
        "train_sampling_strategy",
        {key: value and "group_by_length" for key, value in _IS_TRUE.items()},
    ),
    "half_precision_backend": Alias(REMOVED),
    "include_inputs_for_metrics": Alias("it is now --include_for_metrics inputs"),
    "include_tokens_per_second": Alias("tokens per second are always logged"),
    "jit_mode_eval": Alias(REMOVED),
    "logging_dir": Alias("transformers 5 takes it from the environment", variable="TENSORBOARD_LOGGING_DIR"),
    "mp_parameters": Alias(REMOVED),
    "no_cuda": Alias("transformers renamed it", "use_cpu", _IS_TRUE),
    "overwrite_output_dir": Alias("an output folder is never emptied"),
    "past_index": Alias(REMOVED),
    "per_gpu_eval_batch_size": Alias("transformers renamed it", "per_device_eval_batch_size"),
    "per_gpu_train_batch_size": Alias("transformers renamed it", "per_device_train_batch_size"),
    "ray_scope": Alias(REMOVED),
    "save_safetensors": Alias("weights are always written as safetensors"),
    "sharded_ddp": Alias(REMOVED),
    "split_batches": Alias("it moved into --accelerator_config"),
    "torchdynamo": Alias("transformers renamed it", "torch_compile_backend"),
    "tpu_metrics_debug": Alias(REMOVED),
    "tpu_num_cores": Alias(REMOVED),
    "use_ipex": Alias(REMOVED),
    "use_mps_device": Alias(REMOVED),
    "warmup_ratio": Alias("a value below 1 is a share of all steps", "warmup_steps"),
    "xpu_backend": Alias("transformers renamed it", "ddp_backend"),
}
_SILENT = ("gradient_checkpointing", "gradient_checkpointing_kwargs")
"""Still in everybody's command lines and still accepted by transformers itself: not worth a note."""


@dataclass(frozen=True)
class Translation:
    """A command line in today's words.

    Args:
        arguments: Flags and values, underscores only.
        notes: One line for each flag that was changed or dropped.
        environment: Variables that took the place of flags.
    """

    arguments: tuple[str, ...]
    notes: tuple[str, ...]
    environment: Mapping[str, str]


def translate(arguments: Sequence[str]) -> Translation:
    """Put a command line into today's words.

    Args:
        arguments: Flags and values as the user gave them.

    Returns:
        The same with every old flag renamed or dropped, and the notes that say so.
    """
    new: list[str] = []
    notes: list[str] = []
    environment: dict[str, str] = {}
    for name, values in flag_groups(arguments):
        if name not in ALIASES:
            new += [*([f"--{name}"] if name else []), *values]
            continue
        alias = ALIASES[name]
        value = values[0] if values else "true"
        target = alias.values.get(value.lower(), value) if alias.new else None
        told = f"--{name} {' '.join(values)}".rstrip()
        if alias.variable:
            environment[alias.variable] = value
            notes.append(f"{told}: set {alias.variable}={value} instead, because {alias.why}")
        elif target is None:
            notes.append(f"{told}: ignored, because {alias.why}")
        else:
            new += [f"--{alias.new}", target, *values[1:]]
            if name not in _SILENT:
                notes.append(f"{told}: read as --{alias.new} {target}, because {alias.why}")
    return Translation(tuple(new), tuple(notes), environment)


def flag_groups(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Group a command line into flags and their values.

    Args:
        arguments: Flags and values as the user gave them.

    Returns:
        Names, with underscores only, and their values; those in front of the first flag have an empty name.
    """
    groups: list[tuple[str, list[str]]] = [("", [])]
    for argument in arguments:
        if argument.startswith("--") and argument != "--":
            name, has_value, value = argument[2:].partition("=")
            groups.append((name.replace("-", "_"), [value] if has_value else []))
        else:
            groups[-1][1].append(argument)
    return groups
