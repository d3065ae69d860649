"""A model folder on disk: finding or fetching it, and reading its config.json; no torch."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ds_sft.errors import MissingInputError, ModelError

_WANTED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_PICKLED_WEIGHTS = "pytorch_model*.bin"
_SAMPLED_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelFolder:
    """A checkpoint as Hugging Face lays it out.

    Args:
        path: The folder.
        config: Content of its config.json.
    """

    path: Path
    config: dict[str, Any]


def find_model_folder(name_or_path: str, *, cache_dir: str | None) -> ModelFolder:
    """Find a checkpoint on disk, or fetch it from the hub.

    Args:
        name_or_path: A folder, or `owner/name` on the hub.
        cache_dir: Where hub files are kept; None for the usual place.

    Returns:
        The folder with its config.

    Raises:
        MissingInputError: When there is neither such a folder nor such a name.
        ModelError: When config.json is not JSON.
    """
    path = Path(name_or_path).expanduser()
    if not path.is_dir():
        if path.exists() or name_or_path.startswith((".", "/", "~")):
            raise MissingInputError(f"model_name_or_path: folder must exist, but {path} does not; check the path")
        path = _fetch(name_or_path, cache_dir)
    file = path / "config.json"
    if not file.is_file():
        raise MissingInputError(
            f"model_name_or_path: folder must hold config.json, but {path} does not; name the folder of a checkpoint"
        )
    refuse_links_out(path)
    return ModelFolder(path, read_json(file))


def read_config(name_or_path: str, *, cache_dir: str | None) -> dict[str, Any]:
    """Read the config.json of a checkpoint, and fetch no more than that from the hub.

    Args:
        name_or_path: A folder, or `owner/name` on the hub.
        cache_dir: Where hub files are kept; None for the usual place.

    Returns:
        Its content.
    """
    if Path(name_or_path).expanduser().exists() or name_or_path.startswith((".", "/", "~")):
        return find_model_folder(name_or_path, cache_dir=cache_dir).config
    with _told_as_missing(name_or_path):
        file = hf_hub_download(name_or_path, "config.json", cache_dir=cache_dir)
    return read_json(Path(file))


def refuse_links_out(folder: Path) -> None:
    """Refuse links that lead out of a model folder; the hub's own cache links snapshots to blobs beside them.

    Args:
        folder: Of a checkpoint.

    Raises:
        ModelError: At the first such link.
    """
    home = folder.resolve()
    allowed = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    for file in sorted(folder.iterdir()):
        if file.is_symlink() and not any(file.resolve().is_relative_to(place) for place in allowed):
            raise ModelError(f"{file}: must lie in its folder, but is a link to {file.resolve()}; copy the file there")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of a model folder.

    Args:
        file: For example config.json.

    Returns:
        Its content.

    Raises:
        ModelError: When it is not a JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: must be JSON, but: {error}; restore the file") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: must be a JSON object, but is a {type(content).__name__}; restore the file")
    return content


def digest_of_model(folder: ModelFolder) -> str:
    """Digest config.json, and the size, beginning and end of each weight file: whole ones would take minutes.

    Args:
        folder: Of the checkpoint.

    Returns:
        64 hexadecimal digits.
    """
    found = hashlib.sha256((folder.path / "config.json").read_bytes())
    for file in sorted([*folder.path.glob("*.safetensors"), *folder.path.glob("*.bin")]):
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            found.update(f"{file.name} {size}".encode())
            for place in (0, max(0, size - _SAMPLED_BYTES)):
                stream.seek(place)
                found.update(stream.read(_SAMPLED_BYTES))
    return found.hexdigest()


def _fetch(name: str, cache_dir: str | None) -> Path:
    with _told_as_missing(name):
        folder = Path(snapshot_download(name, cache_dir=cache_dir, allow_patterns=_WANTED_FILES))
        if not any(folder.glob("*.safetensors")):
            # Old checkpoints have pickles only; those of newer ones would be fetched for nothing.
            snapshot_download(name, cache_dir=cache_dir, allow_patterns=[_PICKLED_WEIGHTS])
    return folder


@contextmanager
def _told_as_missing(name: str) -> Iterator[None]:
    """Say that a name is neither a folder nor on the hub."""
    try:
        yield
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MissingInputError(
            f"model_name_or_path: must be a folder or a name on the hub, but {name!r} is no folder and the hub said: "
            f"{str(error).splitlines()[0]}; check the path"
        ) from error
