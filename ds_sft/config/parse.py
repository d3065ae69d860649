"""Reads the command line into settings; nothing heavier than the argument classes is touched."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ds_sft.config.aliases import ALIASES, translate
from ds_sft.config.arguments import DataArguments, LoraArguments, ModelArguments, TrainingArguments
from ds_sft.config.flags import flag_parser, split_recipe, unknown_faults
from ds_sft.errors import ConfigError, UsageError


@dataclass(frozen=True)
class Settings:
    """All that the user asked for.

    Args:
        model: Which model.
        data: Which conversations.
        lora: Which adapters.
        training: Values for `TrainingArguments`, which can only be made once the process group exists.
        notes: What was translated, one line each.
    """

    model: ModelArguments
    data: DataArguments
    lora: LoraArguments
    training: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def output_dir(self) -> Path:
        """The folder of the run."""
        return Path(self.training["output_dir"]).expanduser()

    def as_dict(self) -> dict[str, Any]:
        """Give every setting by its flag's name, without secrets.

        Returns:
            Flag name -> value; a token is shown as `***`.
        """
        known = {**asdict(self.model), **asdict(self.data), **asdict(self.lora), **self.training}
        return {name: "***" if name.endswith("token") and value else value for name, value in known.items()}


def parse(arguments: Sequence[str]) -> Settings:
    """Read a command line: an optional YAML recipe first, then flags, which win.

    Args:
        arguments: Without the program's name.

    Returns:
        The settings.

    Raises:
        UsageError: For flags that do not exist and values of the wrong type.
    """
    # DeepSpeed's launcher puts the rank in front of the user's own words.
    launched = list(arguments[:1]) if arguments and arguments[0].startswith("--local_rank=") else []
    given = arguments[len(launched) :]
    recipe, flags = split_recipe(given)
    translation = translate([*recipe, *launched, *flags])
    os.environ.update(translation.environment)
    classes: Any = (ModelArguments, DataArguments, LoraArguments, TrainingArguments)
    namespace, unknown = flag_parser(*classes, program="train.py").parse_known_args(list(translation.arguments))
    if unknown:
        raise UsageError(*unknown_faults(unknown, [*sorted(vars(namespace)), *ALIASES]))
    values = vars(namespace)
    if not values["output_dir"]:
        raise UsageError("output_dir: must be given, but is not; add --output_dir DIR")
    model, data, lora, training = ({f.name: values[f.name] for f in fields(kind) if f.init} for kind in classes)
    return Settings(
        model=ModelArguments(**model),
        data=DataArguments(**data),
        lora=LoraArguments(**lora),
        training=training,
        notes=translation.notes,
    )


def build_training_arguments(settings: Settings) -> TrainingArguments:
    """Make transformers' arguments; this starts the process group where none exists.

    Args:
        settings: As parsed.

    Returns:
        The arguments.

    Raises:
        ConfigError: When transformers refuses a value or a combination.
    """
    try:
        return TrainingArguments(**settings.training)
    except ValueError as error:
        raise ConfigError(f"training arguments: {' '.join(str(error).split())}; change that flag") from error
