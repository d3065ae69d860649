"""What a doctor or a launch looks at: the paths that a command line of training names, read without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ds_sft
from ds_sft.config.aliases import flag_groups
from ds_sft.config.recipe import recipe_arguments

_INPUTS = ("deepspeed", "data_path", "eval_data_path", "model_name_or_path", "lora_weight_path")
CODE = "code of ds_sft"


@dataclass(frozen=True)
class Subject:
    """A job, as far as hosts must agree about it.

    Args:
        inputs: Name -> absolute path of what must be the same on every host; a name on the hub is none.
        output_dir: Absolute; None when none is named.
    """

    inputs: dict[str, str]
    output_dir: str | None


def subject_of(arguments: Sequence[str]) -> Subject:
    """Read a command line of training.

    Args:
        arguments: An optional YAML recipe, then flags, which win.

    Returns:
        The paths in it, and that of our code.
    """
    is_recipe = bool(arguments) and not arguments[0].startswith("-")
    recipe = Path(arguments[0]) if is_recipe else None
    words = [*(recipe_arguments(recipe) if recipe else ()), *arguments[is_recipe:]]
    named = {name: values[0] for name, values in flag_groups(words) if values}
    inputs = {name: _absolute(named[name]) for name in _INPUTS if name in named and _is_local(name, named[name])}
    if recipe:
        inputs["recipe"] = _absolute(str(recipe))
    output = named.get("output_dir")
    code = {CODE: str(Path(ds_sft.__file__).parent)}
    return Subject(code | inputs, _absolute(output) if output else None)


def _is_local(name: str, value: str) -> bool:
    # Only a model may be a name on the hub.
    return name != "model_name_or_path" or Path(value).expanduser().exists() or value.startswith(("/", ".", "~"))


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
