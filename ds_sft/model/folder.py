"""A model folder on disk: finding it, reading its config.json and the names of its weights without loading them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
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

    def stored_shapes(self) -> dict[str, tuple[int, ...]]:
        """Read the names and shapes of the stored weights from the safetensors headers.

        Returns:
            Name -> shape; empty for a folder of pickled weights, which only loading could tell.

        Raises:
            ModelError: When a file is missing, broken, or outside the folder.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for file in self._weight_files():
            try:
                with safe_open(file, framework="np") as weights:
                    shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{file}: must be a whole safetensors file, but: {error}; fetch it again") from error
        return shapes

    def stored_weight(self, name: str) -> torch.Tensor:
        """Read one stored weight.

        Args:
            name: One of `stored_shapes`.

        Returns:
            The tensor, in host memory.

        Raises:
            ModelError: When no file holds it.
        """
        for file in self._weight_files():
            with safe_open(file, framework="pt") as weights:
                if name in weights.keys():  # noqa: SIM118
                    return cast("torch.Tensor", weights.get_tensor(name))
        raise ModelError(f"{self.path}: weight {name} must be stored, but is not; restore the files")

    def _weight_files(self) -> list[Path]:
        """Give the files that transformers would load: one, or those of the index."""
        single, index = self.path / "model.safetensors", self.path / "model.safetensors.index.json"
        if single.is_file() or not index.is_file():
            return [single] if single.is_file() else []
        content = _read_json(index)
        names = content.get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ModelError(
                f"{index}: weight_map must map weights to files, but is {type(names).__name__}; restore it"
            )
        for name in names.values():
            if Path(name).name != name:
                raise ModelError(f"{index}: weight_map must name files of this folder, but names {name!r}; mend it")
        return [self.path / name for name in sorted(set(names.values()))]


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
    return ModelFolder(path, _read_json(file))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: must be JSON, but: {error}; restore the file") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: must be a JSON object, but is a {type(content).__name__}; restore the file")
    return content


def _fetch(name: str, cache_dir: str | None) -> Path:
    try:
        return Path(snapshot_download(name, cache_dir=cache_dir, allow_patterns=_WANTED_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MissingInputError(
            f"model_name_or_path: must be a folder or a name on the hub, but {name!r} is no folder and the hub said: "
            f"{str(error).splitlines()[0]}; check the path"
        ) from error
