"""What every command line of ours has in common: an optional recipe in front, faults as errors, and a hint for each."""

import difflib
from argparse import ArgumentDefaultsHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser

from ds_sft.config.recipe import recipe_arguments
from ds_sft.errors import UsageError


class FlagParser(HfArgumentParser):
    """argparse that raises its faults instead of leaving the program."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found.

        Args:
            message: argparse's words.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f"command line: {message}; see --help")


def flag_parser(*groups: Any, program: str) -> FlagParser:
    """Make a parser for some groups of flags.

    Args:
        *groups: Dataclasses; each field is a flag.
        program: Its name in the help.

    Returns:
        The parser; it takes whole names only.
    """
    return FlagParser(groups, prog=program, allow_abbrev=False, formatter_class=ArgumentDefaultsHelpFormatter)


def split_recipe(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Read the recipe of a command line.

    Args:
        arguments: An optional YAML recipe first, then flags.

    Returns:
        The flags and values of the recipe, and those of the command line itself.
    """
    if not arguments or arguments[0].startswith("-"):
        return [], list(arguments)
    return recipe_arguments(Path(arguments[0])), list(arguments[1:])


def unknown_faults(unknown: Sequence[str], known: Sequence[str]) -> list[str]:
    """Tell every word that no flag takes.

    Args:
        unknown: What a parser left over.
        known: Names of the flags that exist.

    Returns:
        One line for each, with the nearest name that exists.
    """
    faults = []
    for before, word in zip(["", *unknown], unknown, strict=False):
        if not word.startswith("--"):
            if not before.startswith("--"):
                faults.append(f"command line: every value must follow a flag, but {word!r} does not; name its flag")
            continue
        close = difflib.get_close_matches(word[2:], known, n=1)
        hint = f"did you mean --{close[0]}?" if close else "see --help"
        faults.append(f"{word}: flag must exist, but does not; {hint}")
    return faults
