"""Runs the main program as a user does, but in a fork that has already imported it, and tells how it ended."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.ranks import CONTEXT

_TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Args:
        code: Its exit code.
        said: All it wrote to stderr.
    """

    code: int | None
    said: str

    @property
    def errors(self) -> list[str]:
        """The lines that tell a fault."""
        return [line.removeprefix("error: ") for line in self.said.splitlines() if line.startswith("error: ")]


def run_main(arguments: list[str], folder: Path, before: Callable[[], object] | None = None) -> Ended:
    """Run `train.py ARGUMENTS` in one process.

    Args:
        arguments: Of the command line.
        folder: Where its stderr is kept.
        before: What happens in that process first; a function of a module.

    Returns:
        How it ended.
    """
    file = folder / "stderr.txt"
    process = CONTEXT.Process(target=_main, args=(arguments, file, before))
    process.start()
    process.join(_TIMEOUT_SECONDS)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"train.py {' '.join(arguments)} did not end within {_TIMEOUT_SECONDS} s")
    return Ended(process.exitcode, file.read_text(encoding="utf-8", errors="replace"))


def _main(arguments: list[str], file: Path, before: Callable[[], object] | None) -> None:
    from ds_sft.train import main

    if before is not None:
        before()
    with file.open("wb") as stderr:
        os.dup2(stderr.fileno(), sys.stderr.fileno())
    sys.argv = ["train.py", *arguments]
    main()
