"""What the verbs read from a terminal or a pipe, and show there."""

import sys
from collections.abc import Iterable, Iterator
from io import TextIOWrapper

from rich.console import Console
from rich.text import Text


def is_coloured() -> bool:
    """Tell whether stdout shows colours.

    Returns:
        Never for a file, a pipe or with NO_COLOR.
    """
    console = Console()
    return console.color_system is not None and not console.no_color


def typed() -> Iterator[str]:
    """Read what is typed, with a prompt and a line editor on a terminal.

    Yields:
        The lines of stdin without their ends.
    """
    if isinstance(sys.stdin, TextIOWrapper):
        # What is no UTF-8 is told with the line that it stands in.
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if not is_terminal:
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    import readline  # noqa: F401, PLC0415  # input() edits lines with it; not everywhere to be had

    try:
        while True:
            yield input("> ")
    except EOFError:
        show_at_once("\n")


def show_at_once(text: str) -> None:
    """Show a part of a line.

    Args:
        text: The part.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stdout.write(text)
    sys.stdout.flush()


def show(lines: Iterable[str | Text]) -> None:
    """Show lines on stdout.

    Args:
        lines: As they come.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal that lacks a character shows its escape instead of ending the program.
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for line in lines:
        if isinstance(line, str):
            sys.stdout.write(f"{line}\n")
        else:
            console.print(line)
