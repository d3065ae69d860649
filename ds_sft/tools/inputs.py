"""Reads the command line of a verb that looks at samples, and opens what it names: data and tokenizer, no weights."""

import logging
import shlex
from collections.abc import Container, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ds_sft.config.aliases import flag_groups
from ds_sft.config.flags import flag_parser, split_recipe, unknown_faults
from ds_sft.config.losses import loss_faults, say_which_loss
from ds_sft.config.sources import DataArguments, ModelArguments
from ds_sft.data.draft import Encoder
from ds_sft.data.read import RecordFile, open_records
from ds_sft.errors import ConfigError, DataError, UsageError, raise_together
from ds_sft.families import family_of
from ds_sft.model.folder import find_model_folder
from ds_sft.tools.flags import GROUPS, WITHOUT_EFFECT, LimitArguments

log = logging.getLogger(__name__)

_LEAST_TOKENS = 2


@dataclass(frozen=True)
class Inputs:
    """What samples are made of.

    Args:
        records: The conversations that training would read.
        encoder: Family, tokenizer and limit.
        is_strict: Whether training would stop at the first rejected conversation.
    """

    records: RecordFile
    encoder: Encoder
    is_strict: bool


def read_inputs(arguments: Sequence[str], *, verb: str) -> Inputs:
    """Read a command line and open what it names.

    Args:
        arguments: An optional YAML recipe, then flags of training.
        verb: For the messages.

    Returns:
        Data, family and tokenizer.

    Raises:
        UsageError: For flags that do not exist and values of the wrong type.
        DataError: When the data file holds nothing.
    """
    model, data, limit = _parse(arguments, verb)
    folder = find_model_folder(model.model_name_or_path, cache_dir=limit.cache_dir)
    family = family_of(folder.config, folder=folder.path)
    raise_together([*_number_faults(data, limit), *loss_faults(data, family=family)])
    say_which_loss(data, family=family)
    records = first_records(Path(data.data_path).expanduser(), data.num_data)
    tokenizer = family.load_tokenizer(folder.path)
    encoder = Encoder(family, tokenizer, data.layout_options(max_tokens=limit.model_max_length))
    return Inputs(records, encoder, data.strict_data)


def first_records(path: Path, num_data: int) -> RecordFile:
    """Open the conversations that are asked for.

    Args:
        path: Of the data file.
        num_data: The first so many; -1 for all.

    Returns:
        At least one.

    Raises:
        DataError: When the file holds none.
    """
    records = open_records(path)
    if not records:
        raise DataError(f"{path}: must hold at least one conversation, but has 0; add some")
    return records if num_data < 0 else records[:num_data]


def say_next(verb: str, arguments: Sequence[str]) -> None:
    """Name the command to go on with.

    Args:
        verb: Of `ds-sft`.
        arguments: Those of this command.
    """
    log.info("next: ds-sft %s %s", verb, shlex.join(arguments))


@dataclass(frozen=True)
class Words:
    """A command line of training.

    Args:
        name: Of the recipe.
        recipe: Flags and values that stand in it.
        flags: Flags and values of the command line itself, which win.
    """

    name: str
    recipe: Sequence[str]
    flags: Sequence[str]


def read_flags(
    words: Words, *, groups: Sequence[Any], without_effect: Container[str], verb: str, about: str
) -> list[Any]:
    """Read those flags of training that a verb knows; a recipe may have others.

    Args:
        words: The command line.
        groups: Dataclasses of flags.
        without_effect: Flags of the groups that are left at their defaults.
        verb: Of `ds-sft`.
        about: What the verb looks at, which flags have an effect on.

    Returns:
        One of each group.

    Raises:
        UsageError: For flags that do not exist and values of the wrong type.
    """
    known = {flag.name for group in groups for flag in fields(group)}
    asked, ignored = [], []
    for name, values in flag_groups(words.recipe):
        if name in known and name not in without_effect:
            asked += [f"--{name}", *values]
        elif name:
            ignored.append(name)
    if ignored:
        log.info("%s: no effect on %s, so not read: %s", words.name, about, ", ".join(ignored))
    for name, values in flag_groups(words.flags):
        asked += [*([f"--{name}"] if name else []), *values]
        if name in without_effect:
            log.warning("--%s: ignored, because it has no effect on %s", name, about)
    namespace, unknown = flag_parser(*groups, program=f"ds-sft {verb}").parse_known_args(asked)
    if unknown:
        raise UsageError(*unknown_faults(unknown, sorted(known)))
    parsed = vars(namespace)
    return [group(**{flag.name: parsed[flag.name] for flag in fields(group)}) for group in groups]


def _parse(arguments: Sequence[str], verb: str) -> tuple[ModelArguments, DataArguments, LimitArguments]:
    words = Words("".join(arguments[:1]), *split_recipe(arguments))
    model, data, limit = read_flags(words, groups=GROUPS, without_effect=WITHOUT_EFFECT, verb=verb, about="samples")
    return model, data, limit


def _number_faults(data: DataArguments, limit: LimitArguments) -> list[ConfigError]:
    faults = []
    if limit.model_max_length < _LEAST_TOKENS:
        told = limit.model_max_length
        faults.append(f"model_max_length: must be at least {_LEAST_TOKENS}, but is {told}; give another value")
    return [*map(ConfigError, faults), *num_data_faults(data.num_data)]


def num_data_faults(num_data: int) -> list[ConfigError]:
    """Judge how many conversations are asked for.

    Args:
        num_data: -1 for all.

    Returns:
        One error, or none.
    """
    if num_data == -1 or num_data > 0:
        return []
    return [ConfigError(f"num_data: must be -1 (all) or at least 1, but is {num_data}; give one of those")]
