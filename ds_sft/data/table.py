"""The rows of a table, mapped from its file: numbers, and lists of numbers."""

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ds_sft.data.table_file import BrokenTableError, Note, read_note

Integers = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different lengths, one behind the other.

    Args:
        offsets: Where each row begins, and where the last one ends, shape [rows + 1].
        values: Of all rows.
    """

    offsets: Integers
    values: Integers

    def __getitem__(self, row: int) -> Integers:
        return self.values[self.offsets[row] : self.offsets[row + 1]]


Column = Integers | Ragged


class Table:
    """The rows of a table file, mapped: shared by all processes of a machine, and reclaimable by it.

    Args:
        file: As written by `write_table`.
        is_checked: Whether the checksum was compared before.

    Raises:
        OSError: When the file cannot be read.
        BrokenTableError: When it is not whole.
    """

    def __init__(self, file: Path, *, is_checked: bool = False) -> None:
        self.file = file
        with file.open("rb") as opened:
            self.note = read_note(opened, file, is_checked=is_checked)
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        self.num_bytes = len(mapped)
        self._batches = [_columns(batch) for batch in pa.ipc.open_stream(pa.py_buffer(mapped))]
        self._starts = np.cumsum([0, *(_num_rows(batch) for batch in self._batches)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row(self, index: int) -> dict[str, Any]:
        """Give one row.

        Args:
            index: From 0; below 0 from the end.

        Returns:
            Column -> number, or array that is a view of the file.

        Raises:
            IndexError: When there is no such row.
        """
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"row must be below {len(self)}, but is {index}")
        batch = int(np.searchsorted(self._starts, place, side="right")) - 1
        within = place - int(self._starts[batch])
        return {name: column[within] for name, column in self._batches[batch].items()}

    def lengths(self, name: str) -> npt.NDArray[np.int32]:
        """Give the number of values of each row of a ragged column.

        Args:
            name: The column.

        Returns:
            The lengths, shape [rows].
        """
        columns = [batch[name] for batch in self._batches]
        parts = [np.diff(column.offsets).astype(np.int32) for column in columns if isinstance(column, Ragged)]
        return np.concatenate([np.zeros(0, np.int32), *parts])

    def column(self, name: str) -> Integers:
        """Give a column of numbers.

        Args:
            name: The column.

        Returns:
            A copy of the numbers, shape [rows].
        """
        return np.concatenate([np.zeros(0, np.int32), *(np.asarray(batch[name]) for batch in self._batches)])

    def __reduce__(self) -> tuple[Callable[[Path, Note], "Table"], tuple[Path, Note]]:
        return _reopen, (self.file, self.note)


def ragged(offsets: Integers, values: Integers) -> pa.Array:
    """Make an Arrow column of rows of different lengths.

    Args:
        offsets: As in `Ragged`.
        values: As in `Ragged`.

    Returns:
        The column.
    """
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def pack(schema: pa.Schema, columns: Mapping[str, pa.Array]) -> bytes:
    """Make one batch of a table.

    Args:
        schema: Of the table.
        columns: Name -> values.

    Returns:
        The batch as it stands in the file.
    """
    packed: bytes = pa.record_batch(dict(columns), schema=schema).serialize().to_pybytes()
    return packed


def _columns(batch: pa.RecordBatch) -> dict[str, Column]:
    return {name: _column(batch.column(name)) for name in batch.schema.names}


def _column(values: pa.Array) -> Column:
    if pa.types.is_list(values.type):
        return Ragged(values.offsets.to_numpy(), values.values.to_numpy())
    numbers: Integers = values.to_numpy()
    return numbers


def _num_rows(batch: Mapping[str, Column]) -> int:
    column = next(iter(batch.values()))
    return len(column.offsets) - 1 if isinstance(column, Ragged) else len(column)


def _reopen(file: Path, note: Note) -> Table:
    table = Table(file, is_checked=True)
    if table.note != note:
        raise BrokenTableError(file, "another run has replaced it")
    return table
