"""The first samples of a run with what of them was trained, read again from its data."""

import html
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ds_sft.config.aliases import flag_groups
from ds_sft.config.recipe import recipe_arguments
from ds_sft.errors import DsSftError
from ds_sft.tools.flags import WITHOUT_EFFECT, sample_flags
from ds_sft.tools.inputs import read_inputs
from ds_sft.tools.run_report.record import Run
from ds_sft.tools.samples import Sample, take_samples

_SETTINGS = "ds_sft.resolved.yaml"
_MOST_BYTES = 2_500_000
_MODEL = "model_name_or_path"


@dataclass(frozen=True)
class Examples:
    """Samples, or why there are none.

    Args:
        samples: In the order of the data file.
        note: What to know of them.
    """

    samples: Sequence[Sample]
    note: str


def read_examples(run: Run, *, num: int) -> Examples:
    """Make the first samples again from the data file, which may have moved or changed since.

    Args:
        run: As read.
        num: Most samples.

    Returns:
        Samples that fit into the page, or none.
    """
    settings = run.folder / _SETTINGS
    if not settings.is_file():
        return Examples([], f"No samples: {_SETTINGS} is missing.")
    reasons = []
    try:
        arguments = list(_arguments(settings))
        for model in _tokenizer_folders(run, arguments):
            try:
                inputs = read_inputs([*arguments, f"--{_MODEL}", str(model)], verb="report")
                found = list(take_samples(inputs, num=num, counters=Counter()))
            except DsSftError as error:
                reasons.append(error.faults[0])
            else:
                return _fitting(found, inputs.records.path.name)
    except DsSftError as error:
        reasons.append(error.faults[0])
    return Examples([], f"No samples: {reasons[0] if reasons else 'the tokenizer is on no disk of this machine'}.")


def _arguments(settings: Path) -> Iterator[str]:
    wanted = sample_flags() - WITHOUT_EFFECT
    for name, values in flag_groups(recipe_arguments(settings)):
        if name in wanted:
            yield from (f"--{name}", *values)


def _tokenizer_folders(run: Run, arguments: Sequence[str]) -> Iterator[Path]:
    """Give the places where the tokenizer may lie; a name on the hub is not asked for, because nothing is fetched."""
    named = [Path(value) for flag, value in pairwise(arguments) if flag == f"--{_MODEL}"]
    for folder in [run.folder, *([run.checkpoint] if run.checkpoint else []), *named]:
        if (folder / "config.json").is_file():
            yield folder


def _fitting(samples: Sequence[Sample], name: str) -> Examples:
    kept: list[Sample] = []
    num_bytes = 0
    for sample in samples:
        num_bytes += sum(_size(piece.text) for pieces in sample.sides.values() for piece in pieces)
        if num_bytes > _MOST_BYTES:
            return Examples(kept, f"{len(kept)} samples of {name}, read again now; more would make the page too large.")
        kept.append(sample)
    return Examples(kept, f"{len(kept)} samples of {name}, read again now.")


def _size(text: str) -> int:
    return len(html.escape(text).encode("utf-8", errors="replace"))
