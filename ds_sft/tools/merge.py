"""`ds-sft merge`: an adapter and its model become a model of their own, written weight by weight."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ds_sft.contracts import Family
from ds_sft.errors import ConfigError, ModelError
from ds_sft.families import family_of
from ds_sft.model.adapter_files import adapter_tensors, read_adapter_config
from ds_sft.model.folder import ModelFolder, digest_of_model, find_model_folder, read_json
from ds_sft.model.load import empty_model
from ds_sft.model.merging import Change
from ds_sft.model.weights import stored_shapes, stored_weight
from ds_sft.save.adapter import MODEL_CONFIG
from ds_sft.save.card import model_card
from ds_sft.save.export import INDEX, Finished, finish, write_index, write_json, write_text, write_tokenizer
from ds_sft.save.manifest import faults_of, read_manifest
from ds_sft.save.shards import Plan, plan_shards, shard_writer
from ds_sft.zero.gather import stored_tensors

log = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_PERCENT = 100.0


@dataclass(frozen=True)
class Request:
    """What is asked of a merge.

    Args:
        adapter: Its folder.
        output_dir: Where the model goes.
        model: Folder or hub name of the model; None for the one that the adapter names.
        save_dtype: Number format of the weights; None for the one that they are stored in.
        max_shard_size: Largest file.
        cache_dir: Where hub files are kept.
        is_json: Whether the answer is JSON.
    """

    adapter: Path
    output_dir: Path
    model: str | None = None
    save_dtype: str | None = None
    max_shard_size: str = "5GB"
    cache_dir: str | None = None
    is_json: bool = False


@dataclass
class Rounding:
    """How much of what the adapter changes is lost by writing fewer bits: sums of squares over all weights."""

    change: float = 0.0
    lost: float = 0.0
    names: list[str] = field(default_factory=list)

    def note(self, name: str, before: torch.Tensor, exact: torch.Tensor, *, dtype: torch.dtype) -> None:
        """Count one weight.

        Args:
            name: Of the weight.
            before: As it was stored; fewer rows than `exact` where a table grew.
            exact: As it must be.
            dtype: That it is written in.
        """
        self.names.append(name)
        self.change += float((exact[: len(before)] - before.float()).square().sum())
        self.lost += float((exact.to(dtype).float() - exact.float()).square().sum())

    @property
    def share(self) -> float:
        """Length of what is lost, divided by the length of the change."""
        return float((self.lost / self.change) ** 0.5) if self.change else 0.0


def merge(request: Request) -> Iterator[str]:
    """Write the merged model.

    Args:
        request: What is asked.

    Yields:
        Lines for the user, or one JSON object.

    Raises:
        ConfigError: When the adapter belongs to another model, or the folder is not empty.
        ModelError: When a file is broken or something of the adapter was not used.
    """
    facts = _facts_of(request.adapter)
    config = read_adapter_config(request.adapter)
    name = request.model or str(config.get("base_model_name_or_path"))
    folder = find_model_folder(name, cache_dir=request.cache_dir)
    _refuse_another_model(request, folder, facts["model"])
    _refuse_full_folder(request.output_dir)
    family = family_of(folder.config, folder=folder.path)
    asked = facts.get("adapters") or {}
    dtype = (torch.bfloat16 if facts.get("bf16") else torch.float32) if asked.get("q_lora") else None
    change = Change(config, adapter_tensors(request.adapter), dtype, family)
    rounding = _write(request, folder, change)
    told = {
        "output_dir": str(request.output_dir),
        "model": str(folder.path),
        "changed_weights": len(rounding.names),
        "lost_by_rounding": rounding.share,
        "is_dequantised": dtype is not None,
    }
    yield json.dumps(told, indent=2) if request.is_json else _sentence(told)


def _facts_of(adapter: Path) -> Mapping[str, Any]:
    """Give the fingerprint of the run that trained an adapter; without one, nothing tells which model it belongs to."""
    if not adapter.is_dir():
        raise ConfigError(f"{adapter}: must be the folder of an adapter, but is none; check the path")
    faults = faults_of(adapter)
    if faults:
        raise ModelError(f"{adapter}: must be whole, but {faults[0]}; only an adapter of ds_sft can be merged")
    facts: Mapping[str, Any] = read_manifest(adapter).facts.get("fingerprint", {})
    if "model" not in facts:
        raise ModelError(f"{adapter}: MANIFEST.json must tell the model, but does not; export the adapter anew")
    return facts


def _refuse_another_model(request: Request, folder: ModelFolder, trained_on: str) -> None:
    found = digest_of_model(folder)
    if found != trained_on:
        raise ConfigError(
            f"{request.adapter}: must be merged into the model it was trained on (fingerprint {trained_on[:12]}...), "
            f"but {folder.path} is another one ({found[:12]}...); give --model_name_or_path"
        )


def _refuse_full_folder(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output_dir: must be empty or absent, but {output} is not; name another folder")


def _write(request: Request, folder: ModelFolder, change: Change) -> Rounding:
    config = read_json(request.adapter / MODEL_CONFIG)
    # Positions are scaled already in this config, so no length asks for more.
    before = empty_model(folder, family=change.family, max_tokens=1)
    after = _empty(type(before), config)
    stored = _stored_names(before, folder)
    plan = _planned(request, after, folder, stored)
    linear = {f"{path}.weight" for path, module in before.named_modules() if isinstance(module, nn.Linear)}
    head = before.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    linear -= {f"{path}.weight" for path, module in before.named_modules() if module is head}
    rounding = Rounding()
    request.output_dir.mkdir(parents=True, exist_ok=True)
    with shard_writer(plan, request.output_dir) as writer:
        for file, weights in plan.files.items():
            for name, planned in weights.items():
                weight = stored_weight(folder.path, stored[name])
                merged = change.of(name, weight, is_linear=name in linear)
                if merged is not weight:
                    rounding.note(name, weight, merged, dtype=planned.dtype)
                writer.write(name, merged)
            log.info("%s: %d weights", file, len(weights))
    write_index(plan, request.output_dir)
    _write_rest(request, plan, writer.facts, family=change.family, folder=folder)
    return rounding


def _empty(kind: type[PreTrainedModel], config: Mapping[str, Any]) -> PreTrainedModel:
    """Make the model that the adapter belongs to, without storage."""
    config_class: Any = kind.config_class
    made: PreTrainedConfig = config_class.from_dict(dict(config))
    with torch.device("meta"):
        return kind(made)


def _stored_names(model: PreTrainedModel, folder: ModelFolder) -> dict[str, str]:
    """Give the name under which each weight is stored: its own, or that of another weight that is tied to it."""
    shapes = stored_shapes(folder.path)
    aliases = {source: alias for alias, source in model.all_tied_weights_keys.items() if alias in shapes}
    return {name: name if name in shapes else aliases[name] for name in stored_tensors(model)}


def _planned(request: Request, model: PreTrainedModel, folder: ModelFolder, stored: Mapping[str, str]) -> Plan:
    asked = DTYPES.get(str(request.save_dtype))
    weights = {}
    for name, tensor in stored_tensors(model).items():
        kept = stored_weight(folder.path, stored[name]).dtype
        dtype = asked if asked is not None and kept.is_floating_point else kept
        weights[name] = torch.empty(tensor.shape, dtype=dtype, device="meta")
    return plan_shards(weights, max_shard_size=request.max_shard_size)


def _write_rest(  # the parts of a checkpoint
    request: Request,
    plan: Plan,
    weights: Mapping[str, Any],
    *,
    family: Family,
    folder: ModelFolder,
) -> None:
    into = request.output_dir
    dtype = next(iter(next(iter(plan.files.values())).values())).dtype
    write_json(into / "config.json", read_json(request.adapter / MODEL_CONFIG) | {"dtype": str(dtype).split(".")[-1]})
    generation = folder.path / "generation_config.json"
    if generation.is_file():
        write_json(into / generation.name, read_json(generation))
    names = write_tokenizer(family.load_tokenizer(request.adapter), into)
    write_text(into / "README.md", model_card(family=family, num_parameters=plan.num_parameters))
    small = [INDEX, "config.json", generation.name, *names, "README.md"]
    manifest = read_manifest(request.adapter)
    finish(into, weights=weights, small=small, finished=Finished(manifest.step, {**manifest.facts, "is_merged": True}))


def _sentence(told: Mapping[str, Any]) -> str:
    lost = f"{_PERCENT * told['lost_by_rounding']:.2g} % of the change is lost by rounding"
    base = " The weights are the 4-bit ones that the adapter was trained on." if told["is_dequantised"] else ""
    return f"{told['output_dir']}: {told['changed_weights']} weights of {told['model']} changed; {lost}.{base}"
