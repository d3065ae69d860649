"""Shows and keeps the settings a run really has."""

import logging
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from ds_sft.config.arguments import DataArguments, LoraArguments, ModelArguments, TrainingArguments
from ds_sft.config.parse import Settings

log = logging.getLogger(__name__)

FILE = "ds_sft.resolved.yaml"
_NOT_OF_THE_RUN = ("local_rank",)


def show_settings(settings: Settings) -> None:
    """Log every setting that is not at its default.

    Args:
        settings: As parsed.
    """
    defaults = _defaults()
    for name, value in _plain(settings).items():
        if name not in defaults or (defaults[name] or None) != (value or None):
            log.info("  %s: %s", name, value)


def write_settings(settings: Settings, *, into: Path) -> Path:
    """Write all settings as a recipe that repeats the run.

    Args:
        settings: As parsed.
        into: The run's folder.

    Returns:
        The written file.
    """
    path = into / FILE
    content = {name: value for name, value in _plain(settings).items() if value is not None}
    path.write_text(yaml.safe_dump(content, sort_keys=True, allow_unicode=True), encoding="utf-8")
    return path


def _plain(settings: Settings) -> dict[str, Any]:
    """Give the settings as plain values, without the secrets that a file must not hold."""
    return {
        name: value.value if isinstance(value, Enum) else value
        for name, value in settings.as_dict().items()
        if name not in _NOT_OF_THE_RUN and value != "***"
    }


def _defaults() -> dict[str, Any]:
    return {
        field.name: field.default.value if isinstance(field.default, Enum) else field.default
        for kind in (ModelArguments, DataArguments, LoraArguments, TrainingArguments)
        for field in fields(kind)
        if field.init
    }
