"""Opens data files: a sequence of conversations that decodes one record when it is asked for."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

from ds_sft.contracts import Conversation
from ds_sft.data.boundaries import Boundaries, find_boundaries
from ds_sft.data.content import Content
from ds_sft.data.faults import UNREADABLE
from ds_sft.data.forms import decode, identity_of, turns_of
from ds_sft.errors import DataError

_BLOCK = 1024


@dataclass(frozen=True, eq=False, repr=False)
class RecordFile(Sequence[Conversation]):
    """The conversations of a data file; nothing but their boundaries is kept, so it may be larger than memory.

    It can be pickled: another process maps the file anew, and unpacks it anew when it is compressed.

    Args:
        content: The bytes.
        boundaries: Where the records are.
    """

    content: Content
    boundaries: Boundaries

    @property
    def path(self) -> Path:
        """The data file."""
        return self.content.path

    def __len__(self) -> int:
        return len(self.boundaries.spans)

    def __iter__(self) -> Iterator[Conversation]:
        for first in range(0, len(self), _BLOCK):
            block = slice(first, first + _BLOCK)
            spans = self.boundaries.spans[block]
            view = self.content.part(0, int(spans.max()))
            for (start, end), number in zip(spans.tolist(), self.boundaries.numbers[block], strict=True):
                yield self._conversation(view[start:end], number)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> "RecordFile": ...
    def __getitem__(self, index: int | slice) -> "Conversation | RecordFile":
        spans, numbers = self.boundaries.spans, self.boundaries.numbers
        if isinstance(index, slice):
            return replace(self, boundaries=replace(self.boundaries, spans=spans[index], numbers=numbers[index]))
        start, end = spans[index].tolist()
        return self._conversation(self.content.part(start, end), numbers[index])

    def _conversation(self, text: memoryview, number: int) -> Conversation:
        place = f"{self.content.path}:{self.boundaries.unit} {number}"
        try:
            record = decode(text)
            return Conversation(turns=turns_of(record), place=place, identity=identity_of(record))
        except UNREADABLE as error:
            # It was sound when the file was opened.
            raise DataError(f"{place}: must stay as it was, but has changed: {error}; start the run again") from error


def open_records(path: Path) -> RecordFile:
    """Open a data file and check every record of it.

    Args:
        path: A JSON array, or one JSON object a line; either may be compressed with gzip or zstd. Each record is
            ShareGPT (`conversations`), messages (`messages`) or Alpaca (`instruction` and `output`).

    Returns:
        The conversations in file order, decoded on access.

    Raises:
        DataError: At the first broken record; names file, record, line, byte, field and rule.
    """
    content = Content(path)
    boundaries = find_boundaries(content)
    content.release()
    return RecordFile(content, boundaries)


def read_conversations(path: Path) -> list[Conversation]:
    """Read every conversation of a data file into memory.

    Args:
        path: As for `open_records`.

    Returns:
        The conversations in file order.

    Raises:
        DataError: As `open_records` does.
    """
    return list(open_records(path))


def texts_of(conversations: Iterable[Conversation]) -> list[str]:
    """Give every message of some conversations, for training a tokenizer.

    Args:
        conversations: As read.

    Returns:
        The texts in order.
    """
    return [turn.text for conversation in conversations for turn in conversation.turns if isinstance(turn.text, str)]
