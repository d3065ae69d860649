"""The flags of training that decide what a sample is, for verbs that look at samples."""

from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from ds_sft.config.sources import (
    CACHE_DIR_HELP,
    MODEL_MAX_LENGTH,
    MODEL_MAX_LENGTH_HELP,
    DataArguments,
    ModelArguments,
)


@dataclass
class LimitArguments:
    """Flags that training shares with transformers' own."""

    cache_dir: str | None = field(default=None, metadata={"help": CACHE_DIR_HELP})
    model_max_length: int = field(default=MODEL_MAX_LENGTH, metadata={"help": MODEL_MAX_LENGTH_HELP})


GROUPS: tuple[Any, ...] = (ModelArguments, DataArguments, LimitArguments)
WITHOUT_EFFECT = frozenset(
    {
        "trust_remote_code",
        "padding_side",
        "attn_implementation",
        "eval_data_path",
        "lazy_preprocess",
        "preprocessed_path",
    }
)
"""Flags of these groups that change no sample."""


def sample_flags() -> set[str]:
    """Name the flags of these groups.

    Returns:
        Their names.
    """
    return {flag.name for group in GROUPS for flag in fields(group)}


def flag_help() -> str:
    """Describe the flags.

    Returns:
        Two lines for each that has an effect: name with default, and meaning.
    """
    told = [_told(flag) for group in GROUPS for flag in fields(group) if flag.name not in WITHOUT_EFFECT]
    return "\n".join(["FLAGS are those of training that decide what a sample is:", *told])


def _told(flag: Field[Any]) -> str:
    default = "required" if flag.default is MISSING else f"default: {flag.default}"
    return f"--{flag.name} ({default})\n    {flag.metadata['help']}"
