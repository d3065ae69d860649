"""A model folder on disk: finding it, reading its config.json and the names of its weights without loading them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from ds_sft.errors import MissingInputError, ModelError

_WANTED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class ModelFolder:
    """A checkpoint as Hugging Face lays it out.

    Args:
        path: The folder.
        config: Content of its config.json.
    """

    path: Path
    config: dict[str, Any]

    def stored_names(self) -> frozenset[str]:
        """Read the names of the stored weights from the safetensors headers.

        Returns:
            The names; empty for a folder of pickled weights, which only loading could tell.

        Raises:
            ModelError: When a safetensors file is broken.
        """
        names: set[str] = set()
        for file in sorted(self.path.glob("*.safetensors")):
            try:
                with safe_open(file, framework="np") as weights:
                    names.update(weights.keys())
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{file}: must be a whole safetensors file, but: {error}; fetch it again") from error
        return frozenset(names)


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
        path = _fetch(name_or_path, cache_dir)
    file = path / "config.json"
    if not file.is_file():
        raise MissingInputError(
            f"model_name_or_path: folder must hold config.json, but {path} does not; name the folder of a checkpoint"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: must be JSON, but: {error}; restore the file") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file}: must be a JSON object, but is a {type(config).__name__}; restore the file")
    return ModelFolder(path, config)


def _fetch(name: str, cache_dir: str | None) -> Path:
    try:
        return Path(snapshot_download(name, cache_dir=cache_dir, allow_patterns=_WANTED_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MissingInputError(
            f"model_name_or_path: must be a folder or a name on the hub, but {name!r} is no folder and the hub said: "
            f"{str(error).splitlines()[0]}; check the path"
        ) from error
