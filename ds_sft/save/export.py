"""Writes a trained model so that plain transformers loads it: weights, config, tokenizer, model card."""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ds_sft.contracts import Family
from ds_sft.errors import SaveError
from ds_sft.save.card import model_card
from ds_sft.zero.gather import stream_parameters

_INDEX = "model.safetensors.index.json"
_EXPORTED = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


def export_model(
    model: PreTrainedModel,
    *,
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    into: Path,
    dtype: torch.dtype,
    is_writer: bool,
) -> None:
    """Write the model; every rank must call this, one writes.

    Args:
        model: Partitioned by ZeRO-3 or not.
        family: Its card.
        tokenizer: Saved beside it.
        into: The folder; files of the same names are replaced.
        dtype: Floating-point weights are converted to it.
        is_writer: Whether this rank writes.
    """
    weights = dict(stream_parameters(model, keep=is_writer, dtype=dtype))
    if not is_writer:
        return
    into.mkdir(parents=True, exist_ok=True)
    _write_weights(weights, into)
    content = json.loads(model.config.to_json_string(use_diff=True))
    # The path of the original and the trainer's cache switch are facts of this run, not of the checkpoint.
    content |= {"dtype": str(dtype).removeprefix("torch."), "use_cache": True, "_name_or_path": None}
    published = {key: value for key, value in family.published_config(model, content).items() if value is not None}
    write_json(into / "config.json", published)
    if model.generation_config is not None:
        # Not by save_pretrained: it refuses a checkpoint whose own file has, say, a temperature without sampling.
        write_json(into / "generation_config.json", json.loads(model.generation_config.to_json_string()))
    _write_tokenizer(tokenizer, into)
    _write_text(into / "README.md", model_card(family=family, num_parameters=sum(t.numel() for t in weights.values())))


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, into: Path) -> None:
    """Save the tokenizer under the class name that transformers 4 knows too."""
    tokenizer.save_pretrained(into)
    file = into / "tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    if content.get("tokenizer_class") == "TokenizersBackend":
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(file, content)


def _write_weights(weights: Mapping[str, torch.Tensor], into: Path) -> None:
    """Write one safetensors file, or several with an index when they are many."""
    plan = split_torch_state_dict_into_shards(dict(weights))
    for file, names in plan.filename_to_tensors.items():
        _write_shard({name: weights[name] for name in names}, into / file)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(into / _INDEX, index)
    for found in into.glob("model*.safetensors"):
        # Shards of an earlier export would be read beside ours; a file of any other name is the user's.
        if _EXPORTED.fullmatch(found.name) and found.name not in plan.filename_to_tensors:
            found.unlink()
    if not plan.is_sharded:
        (into / _INDEX).unlink(missing_ok=True)


def _write_shard(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write under another name and rename, so that a reader never sees half a file."""
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".writing-") as folder:
        part = Path(folder) / file.name
        try:
            save_file(tensors, part, metadata={"format": "pt"})
        except SafetensorError as error:
            raise SaveError(f"{file}: weights must be written, but: {error}; free some space and resume") from error
        # safetensors 0.8 writes 0600, which another user could not serve (safetensors issue 782).
        part.chmod(0o666 & ~_umask())
        part.replace(file)


def _write_text(file: Path, text: str) -> None:
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def _umask() -> int:
    """Read the umask; the system offers no way but setting it."""
    current = os.umask(0o022)
    os.umask(current)
    return current


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file under another name and rename it.

    Args:
        file: Replaced when it exists.
        content: Anything JSON can hold.
    """
    _write_text(file, json.dumps(content, indent=2, sort_keys=True, default=str, ensure_ascii=False) + "\n")
