"""What lies beside the log of a run: settings, counters, files with their hashes; no secret, no home of a user."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_sft.save.manifest import MANIFEST, Manifest, read_manifest
from ds_sft.tools.run_report.record import Run, read_object

_COUNTERS = "data_counters.json"
_TEXTS = ("ds_sft.resolved.yaml", "ds_sft.resolved.deepspeed.json")
_MOST_CHARACTERS = 60_000
_MOST_FILES = 400
_SECRET = re.compile(
    r"""^(\s*["']?\w*(?:token|secret|password|api_key)["']?\s*:\s*)\S.*$""", re.MULTILINE | re.IGNORECASE
)


@dataclass(frozen=True)
class File:
    """A file of the export or of a checkpoint.

    Args:
        name: In its folder.
        size: In bytes.
        sha256: In hexadecimal digits.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Surroundings:
    """What is known beside the log.

    Args:
        counters: Role of a data file -> what became of it, as `data_counters.json` has it.
        texts: File name -> settings as text.
        files: Those that a manifest names.
        files_of: The folder of that manifest, in words.
        facts: Of that manifest, as dotted names.
    """

    counters: Mapping[str, Mapping[str, Any]]
    texts: Mapping[str, str]
    files: Sequence[File]
    files_of: str
    facts: Mapping[str, str]


def read_surroundings(run: Run) -> Surroundings:
    """Read what lies beside the log.

    Args:
        run: As read.

    Returns:
        What is there; nothing is required.
    """
    folders = [run.folder, *([run.checkpoint] if run.checkpoint else [])]
    found = next(((folder, manifest) for folder in folders if (manifest := _manifest_of(folder))), None)
    texts = {name: _text_of(run.folder / name) for name in _TEXTS if (run.folder / name).is_file()}
    counters = {role: told for role, told in read_object(run.folder / _COUNTERS).items() if isinstance(told, dict)}
    if found is None:
        return Surroundings(counters, texts, [], f"There is no {MANIFEST} that can be read.", {})
    folder, manifest = found
    files = [File(name, fact.size, fact.sha256) for name, fact in sorted(manifest.files.items())]
    words = "the export" if folder == run.folder else folder.name
    told = f"{min(len(files), _MOST_FILES)} of {len(files)} files of {words}, as its {MANIFEST} names them."
    return Surroundings(counters, texts, files[:_MOST_FILES], told, dict(_flat(manifest.facts)))


def without_home(text: str) -> str:
    """Hide where a user's files lie.

    Args:
        text: With paths.

    Returns:
        The same with `~` for the home folder.
    """
    home = str(Path.home())
    return re.sub(rf"{re.escape(home)}(?=[/\s\"':,]|$)", "~", text) if len(home) > 1 else text


def _manifest_of(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except (OSError, ValueError, RecursionError):
        return None


def _text_of(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")
    shown = without_home(_SECRET.sub(r"\1***", text[:_MOST_CHARACTERS]))
    return shown if len(text) <= _MOST_CHARACTERS else f"{shown}\n... cut after {_MOST_CHARACTERS} characters"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in sorted(facts.items()):
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", without_home(str(value))
