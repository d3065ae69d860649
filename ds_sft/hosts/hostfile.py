"""Reads a hostfile strictly, before any launcher sees it: some hand its words to a shell or to ssh as they are."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ds_sft.errors import ConfigError, MissingInputError, raise_together
from ds_sft.visible import visible

MOST_SLOTS = 1024
_MOST_BYTES = 1 << 20
_MOST_LETTERS = 253
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_SLOTS = re.compile(r"slots=([0-9]{1,9})")
_SHOWN = 60


@dataclass(frozen=True)
class Host:
    """One host of a job.

    Args:
        name: That ssh and the resolver know.
        slots: Ranks on it, one for each GPU.
    """

    name: str
    slots: int


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Read a hostfile.

    Args:
        path: Lines of `NAME slots=N`; `#` begins a comment.

    Returns:
        The hosts in the order of the file; the first one holds rank zero.

    Raises:
        MissingInputError: When there is no such file.
        ConfigError: With one line for each fault.
    """
    if not path.is_file():
        raise MissingInputError(f"hostfile: file must exist, but {path} does not; check the path")
    if path.stat().st_size > _MOST_BYTES:
        raise ConfigError(f"{path}: hostfile must have at most {_MOST_BYTES} bytes, but has more; is it a hostfile?")
    return parse_hostfile(path.read_text(encoding="utf-8", errors="surrogateescape"), name=str(path))


def parse_hostfile(text: str, *, name: str) -> tuple[Host, ...]:
    """Read the text of a hostfile.

    Args:
        text: Of the file.
        name: Of the file, for the messages.

    Returns:
        The hosts in the order of the file.

    Raises:
        ConfigError: With one line for each fault: place, rule, what stands there, what to do.
    """
    hosts: dict[str, Host] = {}
    places: dict[str, int] = {}
    faults: list[ConfigError] = []
    for number, words in _lines(text):
        fault = _fault(words)
        key = words[0].lower()
        if fault is None and key in hosts:
            fault = f"a host must stand there once, but {words[0]} stands in line {places[key]} too; join their slots"
        if fault is None:
            hosts[key] = Host(words[0], _slots(words[1]))
            places[key] = number
        else:
            faults.append(ConfigError(f"{name}:{number}: {fault}"))
    if not hosts and not faults:
        faults.append(ConfigError(f"{name}: hostfile must name a host, but names none; add `NAME slots=N` lines"))
    raise_together(faults)
    return tuple(hosts.values())


def is_host_name(word: str) -> bool:
    """Tell whether a word is a plain host name or an IPv4 address.

    Args:
        word: Any text.

    Returns:
        False for all that a shell, ssh or pdsh could take for something else.
    """
    return len(word) <= _MOST_LETTERS and _NAME.fullmatch(word) is not None


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Give number and words of every line that says something."""
    # Not splitlines(): it also cuts at characters that launchers take for part of a word.
    for number, line in enumerate(text.split("\n"), start=1):
        # Blanks and tabs only, for the same reason.
        words = re.findall(r"[^ \t]+", line.partition("#")[0].removesuffix("\r"))
        if words:
            yield number, words


def _fault(words: list[str]) -> str | None:
    if not is_host_name(words[0]):
        return (
            f"a host must be a name of letters, digits, dots, - and _, but is {_shown(words[0])}; write user and port "
            "into ~/.ssh/config"
        )
    if len(words) != len(("name", "slots")) or _SLOTS.fullmatch(words[1]) is None:
        return f"a line must be `NAME slots=N`, but is {_shown(' '.join(words))}; leave the rest out"
    if not 1 <= _slots(words[1]) <= MOST_SLOTS:
        return f"slots must be from 1 to {MOST_SLOTS}, but is {_slots(words[1])}; give the number of GPUs"
    return None


def _slots(word: str) -> int:
    return int(word.removeprefix("slots="))


def _shown(text: str) -> str:
    quoted = visible(repr(text))
    return quoted if len(quoted) <= _SHOWN else f"{quoted[:_SHOWN]}..."
