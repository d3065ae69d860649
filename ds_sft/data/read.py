"""Opens data files: a sequence of conversations that decodes one record when it is asked for."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

from ds_sft.contracts import Conversation
from ds_sft.data.boundaries import Boundaries, find_boundaries
from ds_sft.data.content import Content
from ds_sft.data.faults import UNREADABLE, record_fault
from ds_sft.data.forms import decode, identity_of, turns_of


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
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> "RecordFile": ...
    def __getitem__(self, index: int | slice) -> "Conversation | RecordFile":
        spans, numbers = self.boundaries.spans, self.boundaries.numbers
        if isinstance(index, slice):
            return replace(self, boundaries=replace(self.boundaries, spans=spans[index], numbers=numbers[index]))
        start, end = spans[index].tolist()
        place = f"{self.path}:{self.boundaries.unit} {numbers[index]}"
        try:
            record = decode(self.content.part(start, end))
        except UNREADABLE as error:
            # It was sound when the file was opened: somebody has written to it since.
            raise record_fault(self.content, error, record=int(numbers[index]), start=start, end=end) from error
        return Conversation(turns=turns_of(record), place=place, identity=identity_of(record))


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
