"""What a doctor says: one fact a line, how bad it is, and what mends it."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.text import Text

from ds_sft.visible import visible

Level = Literal["good", "warning", "fault"]

_SIGNS: dict[Level, tuple[str, str]] = {"good": ("✓", "green"), "warning": ("!", "yellow"), "fault": ("✗", "bold red")}


@dataclass(frozen=True)
class Fact:
    """One thing that was looked at.

    Args:
        name: What, in one or two words.
        level: How bad it is; a fault stops a launch.
        told: What was found, in words.
        fix: What to do; empty where nothing is to be done.
    """

    name: str
    level: Level
    told: str
    fix: str = ""


def good(name: str, told: str) -> Fact:
    """Make a fact that is as it should be.

    Args:
        name: What.
        told: What was found.

    Returns:
        The fact.
    """
    return Fact(name, "good", told)


def warning(name: str, told: str, fix: str) -> Fact:
    """Make a fact that a job may live with.

    Args:
        name: What.
        told: What was found.
        fix: What to do.

    Returns:
        The fact.
    """
    return Fact(name, "warning", told, fix)


def fault(name: str, told: str, fix: str) -> Fact:
    """Make a fact with which a job must not start.

    Args:
        name: What.
        told: What was found.
        fix: What to do.

    Returns:
        The fact.
    """
    return Fact(name, "fault", told, fix)


def fault_in_words(name: str, line: str) -> Fact:
    """Make a fault of one of our error lines, whose last part is the remedy.

    Args:
        name: What.
        line: Such as `rule, value; remedy`.

    Returns:
        The fact.
    """
    told, _, fix = line.rpartition("; ")
    return fault(name, told, fix) if told else fault(name, line, "")


def faults_in(facts: Iterable[Fact]) -> list[Fact]:
    """Pick the faults.

    Args:
        facts: Of any level.

    Returns:
        The faults.
    """
    return [fact for fact in facts if fact.level == "fault"]


def as_lines(facts: Iterable[Fact]) -> Iterator[Text]:
    """Put facts into words.

    Args:
        facts: Of any level.

    Yields:
        One line for each, safe to print.
    """
    for fact in facts:
        sign, style = _SIGNS[fact.level]
        fix = f" -> {fact.fix}" if fact.fix else ""
        yield Text.assemble((sign, style), " ", (fact.name, "bold"), visible(f": {fact.told}{fix}".replace("\n", " ")))


def as_objects(facts: Iterable[Fact]) -> list[dict[str, Any]]:
    """Give facts as plain values for JSON.

    Args:
        facts: Of any level.

    Returns:
        One object for each.
    """
    return [asdict(fact) for fact in facts]
