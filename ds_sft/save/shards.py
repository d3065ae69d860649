"""Weights on disk as safetensors, written while they come: headers from the shapes first, then one tensor at a time."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from ds_sft.errors import ConfigError, SaveError
from ds_sft.save.files import FileFact, NewFile, sync_folder
from ds_sft.save.tensors import as_bytes, head, num_bytes, pieces, refuse_non_finite

_SIZE = re.compile(r"\d+(\.\d+)?\s*[KMGT]B", re.IGNORECASE)
UNFINISHED = ".writing-"
"""Begins the name of the folder that weights are written to before they get their own names."""


@dataclass(frozen=True)
class Plan:
    """Which weight goes into which file, known before any of them is read.

    Args:
        files: File -> its weights without storage, in the order of the file.
        index: Content of the index; None for a single file.
    """

    files: Mapping[str, Mapping[str, torch.Tensor]]
    index: dict[str, Any] | None

    @property
    def num_bytes(self) -> int:
        """Size of all weights."""
        return sum(num_bytes(weight) for weights in self.files.values() for weight in weights.values())

    @property
    def num_parameters(self) -> int:
        """Numbers in all weights."""
        return sum(weight.numel() for weights in self.files.values() for weight in weights.values())


def shard_size_faults(size: str) -> Iterator[ConfigError]:
    """Hold the largest size of a file against what sizes look like.

    Args:
        size: As the user wrote it.

    Yields:
        One error when it is none.
    """
    if not _SIZE.fullmatch(size) or float(size.strip()[:-2]) == 0:
        yield ConfigError(f"max_shard_size: must be a size such as 5GB or 500MB, but is {size!r}; give one")


def plan_shards(weights: Mapping[str, torch.Tensor], *, max_shard_size: str) -> Plan:
    """Spread weights over files, with the names that the hub gives them.

    Args:
        weights: Name -> tensor of the meta device with the shape and the dtype that are to be written.
        max_shard_size: Largest file, for example `5GB`; a weight that is larger gets one of its own.

    Returns:
        The plan.
    """
    split = split_state_dict_into_shards_factory(
        dict(weights),
        get_storage_size=num_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    files = {file: {name: weights[name] for name in names} for file, names in split.filename_to_tensors.items()}
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename} if split.is_sharded else None
    return Plan(files, index)


class ShardWriter:
    """Takes weights in the order of the model and puts each where its file's header says it is.

    Args:
        plan: Where each weight goes.
        opened: File -> the open file, its head written.
    """

    def __init__(self, plan: Plan, opened: Mapping[str, NewFile]) -> None:
        self.facts: dict[str, FileFact] = {}
        """What each file is, as soon as all of them are there."""
        self._places = {name: opened[file] for file, weights in plan.files.items() for name in weights}
        self._planned = {name: weight for weights in plan.files.values() for name, weight in weights.items()}

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one weight, converted to the planned dtype piece by piece.

        Args:
            name: Of the plan; the weights of one file come in the plan's order.
            tensor: Its values, on any device.

        Raises:
            AssertionError: When the tensor has another shape than was planned.
            NumericsError: When it holds a number that is not finite.
        """
        planned = self._planned.pop(name)
        if tensor.shape != planned.shape:
            raise AssertionError(f"{name} was planned with shape {list(planned.shape)}, but has {list(tensor.shape)}")
        for piece in pieces(tensor, dtype=planned.dtype):
            refuse_non_finite(name, piece)
            self._places[name].write(as_bytes(piece))

    def refuse_gaps(self) -> None:
        """Make sure that every planned weight was written.

        Raises:
            AssertionError: When one is missing.
        """
        if self._planned:
            raise AssertionError(
                f"{len(self._planned)} planned weights were not written, the first is {min(self._planned)}"
            )


@contextmanager
def shard_writer(plan: Plan, into: Path) -> Iterator[ShardWriter]:
    """Write the files of a plan under other names; they get their own when all of them are whole and on the disk.

    Args:
        plan: Where each weight goes.
        into: The folder; files of the same names are replaced.

    Yields:
        The writer.

    Raises:
        SaveError: When the disk is full or fails.
    """
    with _told_faults(into, plan):
        _refuse_full_disk(plan, into)
        with tempfile.TemporaryDirectory(dir=into, prefix=UNFINISHED) as folder, ExitStack() as files:
            opened = {file: NewFile(Path(folder) / file) for file in plan.files}
            for file, stream in opened.items():
                files.callback(stream.abandon)
                stream.write(head(plan.files[file]))
            writer = ShardWriter(plan, opened)
            yield writer
            writer.refuse_gaps()
            writer.facts.update({file: stream.finish() for file, stream in opened.items()})
            for file in plan.files:
                (Path(folder) / file).replace(into / file)
            sync_folder(into)


def _refuse_full_disk(plan: Plan, into: Path) -> None:
    free = shutil.disk_usage(into).free
    if free < plan.num_bytes:
        raise SaveError(
            f"{into}: weights need {plan.num_bytes} bytes, but only {free} are free; free some space and resume"
        )


@contextmanager
def _told_faults(into: Path, plan: Plan) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"{into}: {plan.num_bytes} bytes of weights must be written there, but: {error.strerror or error}; free "
            "some space and resume"
        ) from error
