"""The weight files of a checkpoint folder: which they are, what they hold, and that reading them is safe."""

import pickle
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from ds_sft.errors import DsSftError, ModelError, raise_together
from ds_sft.model.folder import read_json, refuse_links_out

Shapes = Mapping[str, tuple[int, ...]]
_BROKEN_PICKLE = (
    *(pickle.UnpicklingError, struct.error, OSError, EOFError, RuntimeError, AssertionError),
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
)
"""torch's unpickler raises whatever the bytes of a broken file lead it to."""
_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read the names and shapes of the stored weights, without the weights themselves.

    Args:
        folder: Of a checkpoint.

    Returns:
        Name -> shape; empty when the folder has no weights.

    Raises:
        ModelError: When a file is missing, broken, unsafe or outside the folder.
    """
    return {name: tuple(weight.shape) for name, weight in _without_storage(folder)}


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Read the number formats of the stored weights, without the weights themselves.

    Args:
        folder: Of a checkpoint.

    Returns:
        Name -> dtype.

    Raises:
        ModelError: When a file is missing, broken, unsafe or outside the folder.
    """
    return {name: weight.dtype for name, weight in _without_storage(folder)}


def stored_weight(folder: Path, name: str) -> torch.Tensor:
    """Read one stored weight.

    Args:
        folder: Of a checkpoint.
        name: One of `stored_shapes`.

    Returns:
        The tensor, in host memory.

    Raises:
        ModelError: When no file holds it.
    """
    for file in weight_files(folder):
        if file.suffix == ".bin":
            found = _pickled(file, location="cpu")
            if name in found:
                return found[name]
            continue
        with safe_open(file, framework="pt") as weights:
            if name in weights.keys():  # noqa: SIM118
                tensor: torch.Tensor = weights.get_tensor(name)
                return tensor
    raise ModelError(f"{folder}: weight {name} must be stored, but is not; restore the files")


def weight_files(folder: Path) -> list[Path]:
    """Give the files that transformers would load: safetensors before pickles, one file before an index.

    Args:
        folder: Of a checkpoint.

    Returns:
        The files, all inside the folder.

    Raises:
        ModelError: When an index is broken, or a file lies elsewhere.
    """
    refuse_links_out(folder)
    config = folder / "config.json"
    named = read_json(config).get("transformers_weights") if config.is_file() else None
    if named is not None:
        raise ModelError(
            f"{config}: transformers_weights must not be there, but names {named!r} instead of the usual files; "
            "remove it"
        )
    for name in (_SAFE, _PICKLED):
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file() or index.is_file():
            names = [name] if single.is_file() else _indexed(index)
            return [folder / name for name in names]
    return []


def refuse_loading_faults(found: Mapping[str, Any], *, where: str) -> None:
    """Refuse a model that was loaded with a weight missing (a random row would take its place) or left over.

    Args:
        found: What `from_pretrained(..., output_loading_info=True)` tells.
        where: The checkpoint, for the message.

    Raises:
        ModelError: With one line for each weight.
    """
    raise_together([_fault(where, name, "be stored") for name in sorted(found["missing_keys"])])
    raise_together([_fault(where, name, "belong to the model") for name in sorted(found["unexpected_keys"])])
    raise_together([_fault(where, str(name), "have the model's shape") for name in found["mismatched_keys"]])


def weight_faults(empty: PreTrainedModel, shapes: Shapes, *, where: str) -> list[DsSftError]:
    """Hold stored weights against a model without storage; transformers is silent about some faults under ZeRO-3.

    Args:
        empty: The model, made on the meta device.
        shapes: From `stored_shapes`.
        where: The checkpoint, for the messages.

    Returns:
        One error for each weight that is missing, left over or of another shape.
    """
    if not shapes:
        return [ModelError(f"{where}: folder must hold weights, but has none; fetch it again")]
    expected = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    shared = set(empty.all_tied_weights_keys)
    ignored = [re.compile(pattern) for pattern in empty._keys_to_ignore_on_load_unexpected or ()]  # noqa: SLF001
    faults = [_fault(where, name, "be stored") for name in expected if name not in shapes and name not in shared]
    for name, shape in shapes.items():
        if name not in expected:
            if not any(pattern.search(name) for pattern in ignored):
                faults.append(_fault(where, name, "belong to the model"))
        elif shape != expected[name]:
            faults.append(_fault(where, f"{name} of shape {list(shape)}", f"have shape {list(expected[name])}"))
    return faults


def differing_ties(folder: Path, empty: PreTrainedModel, shapes: Shapes) -> list[tuple[str, str]]:
    """Find weights that a model ties and the checkpoint stores with different values: tied, one would be lost.

    Args:
        folder: Of the checkpoint.
        empty: The model, made on the meta device.
        shapes: From `stored_shapes`.

    Returns:
        Pairs of the tied weight and the one it would be tied to.
    """
    return [
        (alias, source)
        for alias, source in empty.all_tied_weights_keys.items()
        if {alias, source} <= set(shapes)
        and not torch.equal(stored_weight(folder, alias), stored_weight(folder, source))
    ]


def _without_storage(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Give each stored weight on the meta device."""
    for file in weight_files(folder):
        if file.suffix == ".bin":
            yield from _pickled(file, location="meta").items()
            continue
        try:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118
                    part = weights.get_slice(name)
                    # An empty slice tells the dtype in torch's words; a single number has none.
                    dtype = (part[:0] if part.get_shape() else part[...]).dtype
                    yield name, torch.empty(part.get_shape(), dtype=dtype, device="meta")
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: must be a whole safetensors file, but: {error}; fetch it again") from error


def _fault(where: str, weight: str, rule: str) -> DsSftError:
    return ModelError(f"{where}: weight {weight} must {rule}, but does not; restore the files")


def _indexed(index: Path) -> list[str]:
    content = read_json(index)
    names = content.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"{index}: weight_map must map weights to files, but is {type(names).__name__}; restore it")
    if not isinstance(content.get("metadata"), dict):
        kind = type(content.get("metadata")).__name__
        raise ModelError(f"{index}: metadata must be an object, as transformers asks for it, but is {kind}; restore it")
    for name in names.values():
        if Path(name).name != name or name in (".", ".."):
            raise ModelError(f"{index}: weight_map must name files of this folder, but names {name!r}; mend it")
    return sorted(set(names.values()))


def _pickled(file: Path, *, location: str) -> dict[str, torch.Tensor]:
    """Read pickled tensors with torch's restricted unpickler, which runs no code of the file's."""
    try:
        content = torch.load(file, map_location=location, weights_only=True, mmap=_is_zip(file))
    except _BROKEN_PICKLE as error:
        raise ModelError(f"{file}: must hold tensors only, but: {_reason(error)}; fetch it again") from error
    return dict(_tensors(file, content))


def _tensors(file: Path, content: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if not isinstance(content, dict):
        raise ModelError(f"{file}: must map names to tensors, but is a {type(content).__name__}; fetch it again")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ModelError(f"{file}: must map names to tensors, but {name!r} is none; fetch it again")
        yield name, tensor


def _reason(error: Exception) -> str:
    """Give torch's reason without its advice to run the file's code."""
    told = [line.strip() for line in str(error).splitlines() if line.strip() and "weights_only" not in line]
    return told[0].removeprefix("WeightsUnpickler error: ") if told else type(error).__name__


def _is_zip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) == b"PK"
