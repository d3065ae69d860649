"""Reads the pages: their fenced blocks, commands, tables and links."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

FOLDERS = ("benchmarks", "ds_configs", "ds_sft", "launchers", "tests")
PAGES = sorted(
    str(file.relative_to(ROOT))
    for file in [*ROOT.glob("*.md"), *(file for name in FOLDERS for file in (ROOT / name).rglob("*.md"))]
)
TRAIN = "ds_sft/train.py"


def text_of(page: str) -> str:
    """Give the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """Give what stands below a heading of the second level."""
    return text_of(page).split(f"\n## {heading}\n")[1].split("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    """Give the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Give the words of every command line of a shell text, continued lines joined."""
    lines = re.sub(r"\\+\n", " ", text).splitlines()
    return [shlex.split(line) for line in lines if line.strip() and not line.lstrip().startswith("#")]


def page_commands() -> Iterator[tuple[str, list[str]]]:
    """Give every command of a bash block, with its page."""
    for page in PAGES:
        for block in blocks(text_of(page), "bash"):
            for words in commands(block):
                yield page, words


def table_rows(text: str) -> list[list[str]]:
    """Give the cells of every row of every table, without headings and rules."""
    lines = text.splitlines()
    rows = [
        line
        for line, below in zip(lines, [*lines[1:], ""], strict=True)
        if line.startswith("|") and not line.startswith("|---") and not below.startswith("|---")
    ]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in rows]


def links(page: str) -> list[Path]:
    """Give the files that a page links to."""
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text_of(page))
    return [(ROOT / page).parent / target for target in targets if "://" not in target]
