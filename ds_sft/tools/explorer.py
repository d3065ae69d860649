"""Writes the mask explorer: one page that needs no network and runs nothing but its own script."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_sft.errors import SaveError
from ds_sft.save.files import replace_file
from ds_sft.tools.policy import hash_of
from ds_sft.tools.render import heading, shown
from ds_sft.tools.samples import Sample

_TEMPLATE = Path(__file__).with_name("explorer.html")
_MARKUP = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}
"""What could end the element that holds the data."""


def write_explorer(file: Path, samples: Sequence[Sample], *, counters: Counter[str], name: str) -> None:
    """Write the page; the same samples give the same bytes.

    Args:
        file: Replaced when it exists.
        samples: What it shows.
        counters: What became of the data.
        name: Of the data file.

    Raises:
        SaveError: When the file cannot be written.
    """
    page = explorer_page(samples, counters=counters, name=name)
    try:
        replace_file(file, page.encode())
    except OSError as error:
        raise SaveError(f"html: must be writable, but {file}: {error.strerror}; name another file") from error


def explorer_page(samples: Sequence[Sample], *, counters: Counter[str], name: str) -> str:
    """Make the page.

    Args:
        samples: What it shows.
        counters: What became of the data.
        name: Of the data file.

    Returns:
        HTML whose policy allows its own style and script, by their hashes, and nothing else.
    """
    template = _TEMPLATE.read_text(encoding="utf-8")
    told = {"name": name, "counters": dict(+counters), "samples": [_told(sample) for sample in samples]}
    data = json.dumps(told).translate(_MARKUP)
    for element in ("style", "script"):
        template = template.replace(f"%{element}-hash%", hash_of(template, element))
    return template.replace("%data%", data)


def _told(sample: Sample) -> dict[str, Any]:
    """Give what the page shows, with control characters made visible as in the terminal."""
    return {
        "heading": heading(sample),
        "cut": sample.num_cut,
        "sides": [
            {
                "name": side if len(sample.sides) > 1 else "",
                "tokens": sum(piece.num_tokens for piece in pieces),
                "pieces": [[piece.kind != "text", piece.loss, shown(piece)] for piece in pieces],
            }
            for side, pieces in sample.sides.items()
        ],
    }
