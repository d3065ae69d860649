"""Writes a trained model so that plain transformers loads it: weights, config, tokenizer, model card."""

import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ds_sft.contracts import Family
from ds_sft.save.card import model_card
from ds_sft.save.files import FileFact, replace_file, settled
from ds_sft.save.manifest import FORMAT, MANIFEST, Manifest, write_manifest
from ds_sft.save.shards import UNFINISHED, Plan, plan_shards, shard_writer
from ds_sft.zero.distributed import world_size
from ds_sft.zero.gather import full_shape, stored_tensors, streamed

log = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
_EXPORTED = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


@dataclass(frozen=True)
class Finished:
    """What the manifest of a finished run says.

    Args:
        step: The last one.
        facts: What the run was.
    """

    step: int
    facts: dict[str, Any]


def export_model(
    model: PreTrainedModel,
    *,
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    into: Path,
    dtype: torch.dtype,
    max_shard_size: str,
    is_writer: bool,
    finished: Finished | None = None,
) -> dict[str, FileFact]:
    """Write the model; every rank must call this, one writes, and holds one whole weight at a time.

    Args:
        model: Partitioned by ZeRO-3 or not.
        family: Its card.
        tokenizer: Saved beside it.
        into: The folder; files of the same names are replaced.
        dtype: Floating-point weights are converted to it.
        max_shard_size: Largest weight file, for example `5GB`.
        is_writer: Whether this rank writes.
        finished: For the manifest of the whole, written last; None for an export inside a checkpoint.

    Returns:
        File -> what it is, on the rank that writes.
    """
    plan, written = write_weights(model, into=into, dtype=dtype, max_shard_size=max_shard_size, is_writer=is_writer)
    if not is_writer:
        return {}
    _write_config(model, family=family, into=into, dtype=dtype)
    small = [INDEX, "config.json", "generation_config.json", *write_tokenizer(tokenizer, into), "README.md"]
    write_text(into / "README.md", model_card(family=family, num_parameters=plan.num_parameters))
    return finish(into, weights=written, small=small, finished=finished)


def write_weights(
    model: nn.Module, *, into: Path, dtype: torch.dtype, max_shard_size: str, is_writer: bool
) -> tuple[Plan, dict[str, FileFact]]:
    """Write the weights alone; every rank must call this, one writes, and holds one whole weight at a time.

    Args:
        model: Partitioned by ZeRO-3 or not.
        into: The folder; made when absent.
        dtype: Floating-point weights are converted to it.
        max_shard_size: Largest file, for example `5GB`.
        is_writer: Whether this rank writes.

    Returns:
        What went where, and what each file is, on the rank that writes.
    """
    tensors = stored_tensors(model)
    plan = plan_shards(as_written(tensors, dtype), max_shard_size=max_shard_size)
    facts = write_tensors(tensors, plan, into=into, is_writer=is_writer)
    if is_writer:
        write_index(plan, into)
    return plan, facts


def write_tensors(
    tensors: Mapping[str, torch.Tensor], plan: Plan, *, into: Path, is_writer: bool
) -> dict[str, FileFact]:
    """Write tensors where a plan puts them; every rank must call this, one writes, and holds one whole one at a time.

    Args:
        tensors: Partitioned by ZeRO-3 or not.
        plan: Of the same names.
        into: The folder; made when absent.
        is_writer: Whether this rank writes.

    Returns:
        What each file is, on the rank that writes.
    """
    with streamed(tensors) as whole:
        if not is_writer:
            return {}
        into.mkdir(parents=True, exist_ok=True)
        if world_size() > 1:
            log.info("%s: one rank writes %.2f GB of weights, the others wait for it", into, plan.num_bytes / 1e9)
        # From here on the folder is not what an earlier manifest says.
        (into / MANIFEST).unlink(missing_ok=True)
        with shard_writer(plan, into) as writer:
            for name, tensor in whole:
                writer.write(name, tensor)
    return writer.facts


def finish(
    into: Path, *, weights: Mapping[str, FileFact], small: Sequence[str], finished: Finished | None
) -> dict[str, FileFact]:
    """Bring the small files of an export to the disk, and write the manifest of the whole.

    Args:
        into: The folder.
        weights: What the weight files are.
        small: Names of other files; those that are not there are left out.
        finished: For the manifest; None for an export inside a checkpoint.

    Returns:
        File -> what it is.
    """
    files = {**weights, **{name: settled(into / name) for name in small if (into / name).is_file()}}
    if finished is not None:
        write_manifest(into, Manifest(FORMAT, finished.step, 1, files, finished.facts))
    return files


def published_config(model: Any, *, family: Family, dtype: torch.dtype) -> dict[str, Any]:
    """Give the content of config.json for an exported model.

    Args:
        model: The model.
        family: Its card.
        dtype: Of the exported weights.

    Returns:
        Plain data, without what only this run needs.
    """
    content = json.loads(model.config.to_json_string(use_diff=True))
    # The path of the original and the trainer's cache switch are facts of this run, not of the checkpoint; in which
    # bits a frozen model was held is one too.
    content |= {"dtype": str(dtype).removeprefix("torch."), "use_cache": True, "_name_or_path": None}
    content |= {"quantization_config": None}
    return {key: value for key, value in family.published_config(model, content).items() if value is not None}


def _write_config(model: PreTrainedModel, *, family: Family, into: Path, dtype: torch.dtype) -> None:
    write_json(into / "config.json", published_config(model, family=family, dtype=dtype))
    if model.generation_config is not None:
        # Not by save_pretrained: it refuses a checkpoint whose own file has, say, a temperature without sampling.
        write_json(into / "generation_config.json", json.loads(model.generation_config.to_json_string()))


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, into: Path) -> list[str]:
    """Save the tokenizer under the class name that transformers 4 knows too.

    Args:
        tokenizer: Of the model.
        into: The folder.

    Returns:
        The names of its files.
    """
    # transformers writes into what is there: a link of such a name may lead out of the folder.
    with tempfile.TemporaryDirectory(dir=into, prefix=UNFINISHED) as folder:
        names = [Path(file).name for file in tokenizer.save_pretrained(folder)]
        for file in Path(folder).iterdir():
            file.replace(into / file.name)
    file = into / "tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    if content.get("tokenizer_class") == "TokenizersBackend":
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(file, content)
    return names


def as_written(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Give tensors without storage in the shapes and dtypes of an export.

    Args:
        tensors: Partitioned by ZeRO-3 or not.
        dtype: Of floating-point numbers; integers stay what they are.

    Returns:
        Name -> tensor of the meta device.
    """
    return {
        name: torch.empty(
            full_shape(tensor), dtype=dtype if tensor.is_floating_point() else tensor.dtype, device="meta"
        )
        for name, tensor in tensors.items()
    }


def write_index(plan: Plan, into: Path) -> None:
    """Write the index of several files, and take away what an earlier export left.

    Args:
        plan: Of the weights.
        into: The folder.
    """
    if plan.index is not None:
        write_json(into / INDEX, plan.index)
    for found in into.glob("model*.safetensors"):
        # Shards of an earlier export would be read beside ours; a file of any other name is the user's.
        if _EXPORTED.fullmatch(found.name) and found.name not in plan.files:
            found.unlink()
    if plan.index is None:
        (into / INDEX).unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write a text file under another name and rename it.

    Args:
        file: Replaced when it exists.
        text: Its content.
    """
    replace_file(file, text.encode())


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file under another name and rename it.

    Args:
        file: Replaced when it exists.
        content: Anything JSON can hold.
    """
    write_text(file, json.dumps(content, indent=2, sort_keys=True, default=str, ensure_ascii=False) + "\n")
