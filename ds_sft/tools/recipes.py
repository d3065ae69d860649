"""`ds-sft recipes` and `ds-sft init`: the complete runs that are shipped, and a copy of one to change."""

import difflib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ds_sft.errors import MissingInputError, SaveError, UsageError

log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parents[1]
_CONFIGS = "ds_configs"
_TITLE = re.compile(r"# (?P<about>.+), (?P<place>[^,\n]+)\n")
_NUM_GPUS = re.compile(r" x (\d+) GPUs$", re.MULTILINE)
_DEEPSPEED_FILE = re.compile(rf"^deepspeed: {_CONFIGS}/(?P<file>\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Recipe:
    """A run that is shipped.

    Args:
        name: Of the file, without its suffix.
        about: Which model, and what of it trains.
        place: Which machines.
        num_gpus: In all.
    """

    name: str
    about: str
    place: str
    num_gpus: int


def config_folder() -> Path:
    """Find the shipped DeepSpeed files and recipes.

    Returns:
        The folder inside the package where that is installed, beside it in the repository.

    Raises:
        MissingInputError: When neither is there.
    """
    for folder in (_PACKAGE / _CONFIGS, _PACKAGE.parent / _CONFIGS):
        if (folder / "recipes").is_dir():
            return folder
    raise MissingInputError(
        f"recipes: must lie in {_PACKAGE / _CONFIGS} or beside the package, but do not; install ds_sft again"
    )


def shipped_recipes() -> list[Recipe]:
    """Read what is shipped.

    Returns:
        All recipes by name.
    """
    return [_read(file) for file in sorted((config_folder() / "recipes").glob("*.yaml"))]


def recipes(*, is_json: bool) -> Iterator[str]:
    """List the recipes.

    Args:
        is_json: One object for each instead of a table.

    Yields:
        Lines for stdout.
    """
    shipped = shipped_recipes()
    for recipe in shipped:
        told = f"{recipe.name:<20} {recipe.place:<20} {recipe.about}"
        yield json.dumps(asdict(recipe)) if is_json else told
    log.info("next: ds-sft init %s -o my.yaml", shipped[0].name)


def recipe_text(name: str) -> str:
    """Read a recipe, with the place of its DeepSpeed file written out so that it works from any folder.

    Args:
        name: Of the recipe.

    Returns:
        YAML.

    Raises:
        UsageError: When there is no such recipe.
    """
    folder = config_folder()
    known = [recipe.name for recipe in shipped_recipes()]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else "; see: ds-sft recipes"
        raise UsageError(f"recipe: must be one that `ds-sft recipes` lists, but is {name!r}{hint}")
    text = (folder / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    # A path in double quotes as in JSON is the same in YAML.
    return _DEEPSPEED_FILE.sub(lambda found: f"deepspeed: {json.dumps(str(folder / found['file']))}", text)


def init(name: str, output: Path) -> None:
    """Copy a recipe, to be changed.

    Args:
        name: Of the recipe.
        output: Must not exist.
    """
    write_new(output, recipe_text(name))
    log.info("wrote %s; set model_name_or_path, data_path and output_dir in it", output)
    log.info("next: ds-sft validate %s", output)


def write_new(output: Path, text: str) -> None:
    """Write a file that is not there yet.

    Args:
        output: Must not exist.
        text: Its content.

    Raises:
        SaveError: When it exists or cannot be written.
    """
    try:
        with output.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise SaveError(f"output: must not exist, but {output} does; name another file, or remove it") from error
    except OSError as error:
        raise SaveError(f"output: must be writable, but {output}: {error.strerror}; name another file") from error


def _read(file: Path) -> Recipe:
    text = file.read_text(encoding="utf-8")
    title, gpus = _TITLE.match(text), _NUM_GPUS.search(text)
    if title is None or gpus is None:
        raise AssertionError(f"{file} must begin with what it is, and tell its GPUs beside its accumulation")
    return Recipe(file.stem, title["about"], title["place"], int(gpus[1]))
