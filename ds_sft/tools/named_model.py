"""What a verb is asked to let answer: a model folder, or an adapter and its model; no weight is read here."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ds_sft.config.sources import MODEL_MAX_LENGTH
from ds_sft.contracts import Family, LayoutName, LayoutOptions
from ds_sft.errors import ConfigError, MissingInputError, ModelError, raise_together
from ds_sft.families import family_of
from ds_sft.model.folder import ModelFolder, digest_of_model, find_model_folder
from ds_sft.save.files import fact_of
from ds_sft.save.manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class _Run(msgspec.Struct, frozen=True):
    """What a manifest tells of how a model was trained; all of it is absent in folders of other programs."""

    layout: str | None = None


class _Facts(msgspec.Struct, frozen=True):
    fingerprint: _Run = _Run()


@dataclass(frozen=True)
class NamedModel:
    """A model that can be loaded, or an adapter with its model.

    Args:
        folder: Of the model; with an adapter, of the model that it belongs to.
        adapter: Folder of the adapter, if there is one.
        family: Card of the model.
        tokenizer: That it was trained with.
        trained: Length and layout that it was trained with; None where nothing tells.
    """

    folder: ModelFolder
    adapter: Path | None
    family: Family
    tokenizer: "PreTrainedTokenizerBase"
    trained: LayoutOptions | None

    @property
    def max_tokens(self) -> int:
        """Most tokens of one sequence in training, or training's own default."""
        return self.trained.max_tokens if self.trained else MODEL_MAX_LENGTH

    @property
    def layout(self) -> LayoutName:
        """The layout that it was trained with."""
        return self.trained.name if self.trained else "native"

    def digests(self) -> dict[str, str]:
        """Tell the weights apart from all others.

        Returns:
            Digest of the model, and of the adapter where there is one.
        """
        found = {"model": digest_of_model(self.folder)}
        if self.adapter is not None:
            found["adapter"] = " ".join(fact_of(self.adapter / name).sha256 for name in _ADAPTER_FILES)
        return found


def find_named_model(name: str, *, base: str | None = None, cache_dir: str | None = None) -> NamedModel:
    """Find what a name means.

    Args:
        name: A model folder, the folder of an adapter, or a name on the hub.
        base: The adapter's model, where it has moved.
        cache_dir: Where hub files are kept.

    Returns:
        The model.

    Raises:
        ConfigError: When a model is named for what is no adapter, or none for an adapter that tells none.
        MissingInputError: When there is no such folder.
        ModelError: When it is no model of a family, or its manifest is broken.
    """
    path = Path(name).expanduser()
    adapter = path if (path / _ADAPTER_FILES[0]).is_file() and not (path / "config.json").is_file() else None
    if adapter is None and base is not None:
        raise ConfigError(f"model_name_or_path: goes with an adapter, but {name} is none; leave it out")
    folder = find_model_folder(name if adapter is None else _base_of(adapter, base), cache_dir=cache_dir)
    family = family_of(folder.config, folder=folder.path)
    faults = family.config_faults(folder.config)
    raise_together([ModelError(f"{folder.path / 'config.json'}: {line}") for line in faults])
    home = folder.path if adapter is None else adapter
    has_tokenizer = (home / "tokenizer_config.json").is_file()
    tokenizer = family.load_tokenizer(home if has_tokenizer else folder.path)
    return NamedModel(folder, adapter, family, tokenizer, _trained_with(home))


def _base_of(adapter: Path, base: str | None) -> str:
    """Name the model of an adapter; one that was trained on another model must not be loaded onto this one."""
    # They load torch, which a model without adapters does later.
    from ds_sft.model.adapter_config import read_adapter_config  # noqa: PLC0415

    named = base or read_adapter_config(adapter).base_model_name_or_path
    if named is None:
        raise ConfigError(f"model_name_or_path: must be given, because {adapter} names no model; add it")
    if base is None and not Path(named).expanduser().is_dir() and Path(named).is_absolute():
        raise MissingInputError(
            f"{adapter}: its model must exist, but {named} does not; name where it is now with --model_name_or_path"
        )
    return named


def _trained_with(home: Path) -> LayoutOptions | None:
    if not (home / MANIFEST).is_file():
        return None
    try:
        told = msgspec.convert(read_manifest(home).facts, _Facts).fingerprint.layout
        return None if told is None else msgspec.json.decode(told, type=LayoutOptions)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{home / MANIFEST}: must tell how it was trained, but: {error}; copy the folder anew"
        ) from error
