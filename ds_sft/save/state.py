"""Training state on disk: each rank's stretches of every parameter, readable by any number of ranks.

A rank writes two files. `rank-3-of-8.safetensors` holds one flat tensor for each stretch and array: `weight/NAME`, then
what the optimizer keeps, such as `exp_avg/NAME`. `rank-3-of-8.json` says where in the parameter each stretch begins,
what the optimizer counted, and what else only this rank knows. Nothing is pickled, so nothing can be executed.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import msgspec
import torch
from safetensors import safe_open
from torch import nn

from ds_sft.errors import ModelError
from ds_sft.save.files import FileFact, NewFile, write_new_json
from ds_sft.save.tensors import as_bytes, head, pieces, refuse_non_finite
from ds_sft.zero.state import WEIGHT, Block, Span, blocks, rewritten

FOLDER = "state"


class RankFile(msgspec.Struct, frozen=True):
    """The content of a rank's JSON file.

    Args:
        starts: Parameter -> first number of the rank's stretch.
        numbers: Parameter -> what the optimizer counted for it.
        own: What else only this rank knows.
    """

    starts: dict[str, int]
    numbers: dict[str, dict[str, int | float]]
    own: dict[str, Any]


def write_state(
    into: Path,
    *,
    model: nn.Module,
    optimizer: Any,
    own: Mapping[str, Any],
    rank: int,
    world_size: int,
    has_weights: bool,
) -> dict[str, FileFact]:
    """Write what this rank owns.

    Args:
        into: The checkpoint.
        model: Without the engine around it.
        optimizer: torch's, or DeepSpeed's around it.
        own: What else only this rank knows; plain data.
        rank: Of this process.
        world_size: Number of ranks.
        has_weights: False where another rank writes the same stretches.

    Returns:
        Path below the checkpoint -> what the file is.

    Raises:
        NumericsError: When a number is not finite.
        OSError: When the disk is full or fails.
    """
    folder = into / FOLDER
    folder.mkdir(exist_ok=True)
    name = f"rank-{rank}-of-{world_size}"
    written = {}
    starts: dict[str, int] = {}
    numbers: dict[str, dict[str, int | float]] = {}
    if has_weights:
        for block in blocks(model, optimizer):
            starts |= {span.name: span.start for span in block.spans}
            numbers |= {span.name: block.numbers() for span in block.spans}
        written[f"{FOLDER}/{name}.safetensors"] = _write_arrays(folder / f"{name}.safetensors", model, optimizer)
    content = msgspec.to_builtins(RankFile(starts, numbers, dict(own)))
    written[f"{FOLDER}/{name}.json"] = write_new_json(folder / f"{name}.json", content)
    return written


def read_state(checkpoint: Path, *, model: nn.Module, optimizer: Any, only_weights: bool = False) -> None:
    """Give the optimizer and the model the state of a checkpoint; every rank must call this.

    Args:
        checkpoint: Whole, as its manifest says.
        model: Without the engine around it.
        optimizer: torch's, or DeepSpeed's around it; split over any number of ranks.
        only_weights: Whether the optimizer's own state stays as it is.

    Raises:
        ModelError: When a number of a parameter is in none of the files.
    """
    with _StoredState(checkpoint) as stored, rewritten(optimizer):
        for block in blocks(model, optimizer):
            _fill(block, stored, only_weights=only_weights)


def read_own(checkpoint: Path) -> list[dict[str, Any]]:
    """Read what each rank alone knew.

    Args:
        checkpoint: Whole, as its manifest says.

    Returns:
        One entry for each rank whose file is on this disk, in their order.
    """
    found = {_number(file): _rank_file(file).own for file in (checkpoint / FOLDER).glob("rank-*.json")}
    return [found[number] for number in sorted(found)]


def own_of(checkpoint: Path, *, rank: int, world_size: int) -> dict[str, Any] | None:
    """Read what this rank alone knew, if as many ranks wrote the checkpoint.

    Args:
        checkpoint: Whole, as its manifest says.
        rank: Of this process.
        world_size: Number of ranks.

    Returns:
        Plain data, or None.
    """
    file = checkpoint / FOLDER / f"rank-{rank}-of-{world_size}.json"
    return _rank_file(file).own if file.is_file() else None


class _StoredState:
    """The stretches of all ranks, opened when they are asked for."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._opened = ExitStack()
        self._stretches: dict[str, dict[str, list[tuple[Any, int]]]] = defaultdict(lambda: defaultdict(list))
        self._numbers: dict[str, dict[str, int | float]] = {}

    def __enter__(self) -> Self:
        for file in sorted((self._checkpoint / FOLDER).glob("rank-*.safetensors"), key=_number):
            known = _rank_file(file.with_suffix(".json"))
            opened = self._opened.enter_context(safe_open(file, framework="pt"))
            for key in opened.keys():  # noqa: SIM118  # a file, not a dict
                array, name = key.split("/", 1)
                self._stretches[name][array].append((opened.get_slice(key), known.starts[name]))
            self._numbers |= known.numbers
        return self

    def __exit__(self, *fault: object) -> None:
        self._opened.close()

    def arrays(self, name: str) -> dict[str, torch.dtype]:
        """Give the arrays that are stored for a parameter, and their dtypes."""
        stretches = self._stretches.get(name, {})
        return {array: found[0][0][:1].dtype for array, found in stretches.items()}

    def counted(self, names: Sequence[str]) -> dict[str, int | float]:
        """Give what the optimizer counted for parameters that one block holds together: the most of them."""
        found: dict[str, int | float] = {}
        for name in names:
            for key, value in self._numbers.get(name, {}).items():
                found[key] = max(value, found.get(key, value))
        return found

    def copy(self, array: str, span: Span, into: torch.Tensor) -> None:
        """Copy one stretch of one array, wherever its numbers lie; a parameter without a gradient has no averages."""
        stretches = self._stretches.get(span.name, {})
        if array != WEIGHT and array not in stretches:
            return
        end, missing = span.start + span.numel, span.numel
        for stored, start in stretches.get(array, ()):
            first, last = max(span.start, start), min(end, start + stored.get_shape()[0])
            if first < last:
                into[first - span.start : last - span.start].copy_(stored[first - start : last - start])
                missing -= last - first
        if missing:
            raise ModelError(
                f"{self._checkpoint}: must hold {array} of {span.name}, but {missing} of {span.numel} numbers are in "
                "no file of this disk; resume on the ranks that wrote it, or bring all files into one folder"
            )


def _fill(block: Block, stored: _StoredState, *, only_weights: bool) -> None:
    if not block.spans:
        return
    names = [span.name for span in block.spans]
    arrays = {WEIGHT: torch.float32}
    if not only_weights:
        for name in names:
            arrays |= stored.arrays(name)
        block.allocate(arrays, stored.counted(names))
    for array in arrays:
        living = block.arrays()[array]
        for span in block.spans:
            stored.copy(array, span, living[span.offset : span.offset + span.numel])


def _write_arrays(path: Path, model: nn.Module, optimizer: Any) -> FileFact:
    """Write one flat tensor for each stretch and array, in the order of the blocks."""
    planned = {name: torch.empty_like(part, device="meta") for name, part in _stretches(model, optimizer)}
    with NewFile(path) as file:
        file.write(head(planned))
        for name, part in _stretches(model, optimizer):
            for piece in pieces(part, dtype=part.dtype):
                refuse_non_finite(name, piece)
                file.write(as_bytes(piece))
        return file.finish()


def _stretches(model: nn.Module, optimizer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for block in blocks(model, optimizer):
        for array, numbers in block.arrays().items():
            for span in block.spans:
                yield f"{array}/{span.name}", numbers[span.offset : span.offset + span.numel]


def _rank_file(file: Path) -> RankFile:
    return msgspec.json.decode(file.read_bytes(), type=RankFile)


def _number(file: Path) -> int:
    return int(file.name.split("-")[1])
