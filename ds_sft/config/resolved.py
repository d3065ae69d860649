"""Shows and keeps the settings a run really has."""

import logging
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from ds_sft.config.parse import Settings, parse

log = logging.getLogger(__name__)

FILE = "ds_sft.resolved.yaml"
_NOT_OF_THE_RUN = ("local_rank",)
_REQUIRED = ("model_name_or_path", "data_path", "output_dir")


def show_settings(settings: Settings) -> None:
    """Log every setting that is not at its default.

    Args:
        settings: As parsed.
    """
    defaults = _defaults()
    for name, value in _plain(settings).items():
        if name in _REQUIRED or value != defaults[name]:
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
    # A flag can neither be given without a value nor with an empty list.
    content = {name: value for name, value in _plain(settings).items() if value is not None and value != []}
    # A link of this name may lead out of the folder.
    path.unlink(missing_ok=True)
    with path.open("x", encoding="utf-8") as stream:
        yaml.safe_dump(content, stream, sort_keys=True, allow_unicode=True)
    return path


def _plain(settings: Settings) -> dict[str, Any]:
    """Give the settings as plain values, without the secrets that a file must not hold."""
    return {
        name: value.value if isinstance(value, Enum) else value
        for name, value in settings.as_dict().items()
        if name not in _NOT_OF_THE_RUN and value != "***"
    }


def _defaults() -> dict[str, Any]:
    """Give the values that the parser itself fills in, which are not always those of the dataclasses."""
    return _plain(parse([word for name in _REQUIRED for word in (f"--{name}", "unset")]))
