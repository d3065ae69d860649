"""`ds-sft generate`: a model answers the last question of every conversation of a data file."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_sft.data.content import digest
from ds_sft.data.draft import Encoder
from ds_sft.data.questions import Asked, answer_text, questions_of
from ds_sft.data.read import RecordFile
from ds_sft.errors import MissingInputError, raise_together
from ds_sft.tools.asking import Asking, encoder_of
from ds_sft.tools.inputs import first_records, num_data_faults
from ds_sft.tools.named_model import NamedModel, find_named_model
from ds_sft.tools.results import open_results

if TYPE_CHECKING:
    from ds_sft.tools.loaded_model import LoadedModel

log = logging.getLogger(__name__)

_BATCHES_OF_A_WINDOW = 8
"""Prompts of like length are answered together among so many batches; so much is done again after a kill."""

_SECONDS_BETWEEN_LINES = 5.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What is asked of a generation.

    Args:
        model: A model folder, the folder of an adapter, or a name on the hub.
        data_path: The conversations.
        output: File of the answers.
        asking: How they are written.
        batch_size: Questions that are answered side by side; it changes no answer.
        num_data: The first so many conversations only; -1 for all.
    """

    model: str
    data_path: Path
    output: Path
    asking: Asking
    batch_size: int = 8
    num_data: int = -1


def generate(request: Request) -> Iterator[str]:
    """Write one answer a line, in the order of the data file; an interrupted command goes on.

    Args:
        request: What is asked.

    Yields:
        What was done, for the user.

    Raises:
        ConfigError: When the file belongs to another model, other data or other settings.
        DataError: When there is no question.
    """
    records = _records(request)
    named = find_named_model(request.model, base=request.asking.base)
    encoder = encoder_of(named, request.asking)
    # Only now: whoever has a wrong flag or path is told at once.
    from ds_sft.tools.loaded_model import load_named_model, where_and_how  # noqa: PLC0415

    device, dtype = where_and_how(named, request.asking)
    with open_results(request.output, _settings(request, named, encoder, dtype)) as results:
        windows = _windows(islice(enumerate(questions_of(records, encoder)), results.num_done, None), request)
        first = next(windows, None)
        if first is None:
            yield f"{request.output}: already finished, nothing to do: {results.num_done} answers"
            return
        loaded = load_named_model(named, device=device, dtype=dtype)
        progress = Progress(results.num_done, len(records))
        for window in chain([first], windows):
            rows = _answered(window, request, loaded, encoder)
            results.append(rows)
            progress.tell(rows)
    yield f"{request.output}: {progress.told()}"


def _records(request: Request) -> RecordFile:
    path = request.data_path.expanduser()
    if not path.exists():
        raise MissingInputError(f"data_path: file must exist, but {path} does not; check the path")
    raise_together(num_data_faults(request.num_data))
    return first_records(path, request.num_data)


def _settings(request: Request, named: NamedModel, encoder: Encoder, dtype: str) -> dict[str, Any]:
    """Give all that decides the answers; more conversations of the same file only add some."""
    asking = request.asking
    return {
        **named.digests(),
        "data": digest(request.data_path.expanduser()),
        "layout": encoder.options.name,
        "model_max_length": asking.max_tokens or named.max_tokens,
        "max_new_tokens": asking.max_new_tokens,
        "temperature": asking.temperature,
        "top_p": asking.top_p,
        "seed": asking.seed,
        "dtype": dtype,
    }


def _windows(questions: Iterator[tuple[int, Asked]], request: Request) -> Iterator[list[tuple[int, Asked]]]:
    while window := list(islice(questions, _BATCHES_OF_A_WINDOW * request.batch_size)):
        yield window


def _answered(
    window: Sequence[tuple[int, Asked]], request: Request, loaded: "LoadedModel", encoder: Encoder
) -> list[Row]:
    """Answer some questions, those of like length side by side, and give the answers in the order of the questions."""
    from ds_sft.model.decoding import write_all  # noqa: PLC0415  # as above

    by_length = sorted(window, key=lambda numbered: len(numbered[1].prompt))
    rows: dict[int, Row] = {}
    for start in range(0, len(by_length), request.batch_size):
        batch = by_length[start : start + request.batch_size]
        prompts, numbers = [asked.prompt for _, asked in batch], [number for number, _ in batch]
        steps = loaded.write(prompts, request.asking, numbers=numbers)
        written = write_all(steps, num_rows=len(batch), end=loaded.ends.end)
        for (number, asked), answer in zip(batch, written, strict=True):
            rows[number] = {
                "place": asked.place,
                "id": asked.identity,
                "question": asked.question,
                "expected": asked.expected,
                "prediction": answer_text(answer.ids, encoder),
                "num_tokens": len(answer.ids),
                "finish_reason": "stop" if answer.is_whole else "length",
            }
    return [rows[number] for number, _ in window]


class Progress:
    """Counts answers and says now and then how far it is.

    Args:
        num_before: Answers of earlier starts.
        num_records: Conversations; some may have no question.
    """

    def __init__(self, num_before: int, num_records: int) -> None:
        self._num_before, self._num_records = num_before, num_records
        self._num_answers = self._num_cut = self._num_tokens = 0
        self._started = self._told_at = time.monotonic()

    def tell(self, rows: Sequence[Row]) -> None:
        """Count answers, and log a line where the last one is some seconds old.

        Args:
            rows: New answers.
        """
        self._num_answers += len(rows)
        self._num_cut += sum(row["finish_reason"] == "length" for row in rows)
        self._num_tokens += sum(row["num_tokens"] for row in rows)
        if time.monotonic() - self._told_at >= _SECONDS_BETWEEN_LINES:
            self._told_at = time.monotonic()
            log.info("%s of %d records", self.told(), self._num_records)

    def told(self) -> str:
        """Put the counts into words.

        Returns:
            One sentence.
        """
        seconds = max(time.monotonic() - self._started, 1e-9)
        before = f" behind {self._num_before} earlier ones" if self._num_before else ""
        return (
            f"{self._num_answers} answers{before}, {self._num_cut} of them cut at the limit, "
            f"{self._num_tokens / seconds:.0f} tokens/s"
        )
