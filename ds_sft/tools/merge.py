"""`ds-sft merge`: an adapter and its model become a model of their own, written weight by weight."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ds_sft.contracts import Family
from ds_sft.errors import ConfigError, ModelError, raise_together
from ds_sft.families import family_of
from ds_sft.model.adapter_config import TrainedOn, read_adapter_config, trained_on
from ds_sft.model.adapter_files import adapter_tensors
from ds_sft.model.folder import ModelFolder, digest_of_model, find_model_folder, read_json
from ds_sft.model.load import empty_model
from ds_sft.model.merging import Change
from ds_sft.model.quantisation import missing_package
from ds_sft.model.weights import stored_dtypes, stored_shapes, stored_weight
from ds_sft.save.card import OF_MERGE, model_card
from ds_sft.save.export import INDEX, Finished, finish, write_index, write_json, write_text, write_tokenizer
from ds_sft.save.files import sync_folder
from ds_sft.save.manifest import faults_of, read_manifest
from ds_sft.save.shards import UNFINISHED, Plan, plan_shards, shard_size_faults, shard_writer
from ds_sft.save.tensors import DTYPES
from ds_sft.tools.merge_checks import merged_config, merged_model, refuse_other_adapter
from ds_sft.zero.gather import stored_tensors

log = logging.getLogger(__name__)

DtypeName = Literal["bf16", "fp16", "fp32"]
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
    save_dtype: DtypeName | None = None
    max_shard_size: str = "5GB"
    cache_dir: str | None = None
    is_json: bool = False


@dataclass
class Rounding:
    """How much of what the adapter changes is lost by writing fewer bits: sums of squares over all that it changes."""

    change: float = 0.0
    lost: float = 0.0
    names: list[str] = field(default_factory=list)
    """Of weights that are not what is stored; those that were held in 4 bits are among them."""

    def note(self, base: torch.Tensor, exact: torch.Tensor, *, dtype: torch.dtype) -> None:
        """Count one weight.

        Args:
            base: As the adapter found it; fewer rows than `exact` where a table grew.
            exact: As it must be.
            dtype: That it is written in.
        """
        self.change += float((exact[: len(base)] - base.float()).square().sum())
        self.change += float(exact[len(base) :].square().sum())
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
        ModelError: When a file is broken, or something of the adapter would not be used.
    """
    raise_together(list(shard_size_faults(request.max_shard_size)))
    run, config = _run_of(request.adapter), read_adapter_config(request.adapter)
    if run.is_quantised:
        raise_together(list(missing_package()))
    model = request.model or config.base_model_name_or_path
    if model is None:
        raise ConfigError(f"model_name_or_path: must be given, because {request.adapter} names no model; add it")
    folder = find_model_folder(model, cache_dir=request.cache_dir)
    _refuse_another_model(request, folder, run.model)
    _refuse_full_folder(request.output_dir)
    family = family_of(folder.config, folder=folder.path)
    dtype = (torch.bfloat16 if run.bf16 else torch.float32) if run.is_quantised else None
    change = Change(config, adapter_tensors(request.adapter), dtype, family)
    with _new_folder(request.output_dir) as into:
        rounding = _write(request, folder, change, into=into)
    told = {
        "output_dir": str(request.output_dir),
        "model": str(folder.path),
        "changed_weights": len(rounding.names),
        "lost_by_rounding": rounding.share,
        "is_dequantised": dtype is not None,
    }
    yield json.dumps(told, indent=2) if request.is_json else _sentence(told)


def _run_of(adapter: Path) -> TrainedOn:
    """Give the run that trained an adapter; without it, nothing tells which model it belongs to."""
    if not adapter.is_dir():
        raise ConfigError(f"{adapter}: must be the folder of an adapter, but is none; check the path")
    faults = faults_of(adapter)
    if faults:
        raise ModelError(f"{adapter}: must be whole, but {faults[0]}; only an adapter of ds_sft can be merged")
    return trained_on(read_manifest(adapter).facts, where=adapter)


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


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Give a folder that gets its name when all is written, so that a try that fails leaves nothing in the way."""
    output = output.expanduser().resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}{UNFINISHED}") as folder:
        into = Path(folder) / output.name
        into.mkdir()
        yield into
        into.rename(output)
        sync_folder(output.parent)


def _write(request: Request, folder: ModelFolder, change: Change, *, into: Path) -> Rounding:
    content = merged_config(request.adapter, family=change.family)
    # Positions are scaled already in this config, so no length asks for more.
    before = empty_model(folder, family=change.family, max_tokens=1)
    after = merged_model(before, content, change.config, adapter=request.adapter)
    stored = _stored_names(before, folder)
    plan = _planned(request, after, folder, stored)
    linear = _linear_weights(before)
    refuse_other_adapter(after, change.config, change.tensors, family=change.family, adapter=request.adapter)
    tokenizer = change.family.load_tokenizer(request.adapter)
    rounding = Rounding()
    with shard_writer(plan, into) as writer:
        for file, weights in plan.files.items():
            for name, planned in weights.items():
                weight = stored_weight(folder.path, stored[name])
                base = change.base_of(name, weight, is_linear=name in linear)
                merged = change.of(name, base)
                if merged is not weight:
                    rounding.names.append(name)
                if merged is not base:
                    rounding.note(base, merged, dtype=planned.dtype)
                writer.write(name, merged)
            log.info("%s: %d weights", file, len(weights))
    write_index(plan, into)
    write_json(into / "config.json", content | {"dtype": _name_of(plan)})
    _write_rest(request, plan, writer.facts, tokenizer=tokenizer, family=change.family, folder=folder, into=into)
    return rounding


def _linear_weights(model: PreTrainedModel) -> set[str]:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    return {
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def _stored_names(model: PreTrainedModel, folder: ModelFolder) -> dict[str, str]:
    """Give the name under which each weight is stored: its own, or that of another weight that is tied to it."""
    shapes = stored_shapes(folder.path)
    aliases = {source: alias for alias, source in model.all_tied_weights_keys.items() if alias in shapes}
    return {name: name if name in shapes else aliases[name] for name in stored_tensors(model)}


def _planned(request: Request, model: PreTrainedModel, folder: ModelFolder, stored: Mapping[str, str]) -> Plan:
    asked, kept = DTYPES.get(str(request.save_dtype)), stored_dtypes(folder.path)
    weights = {}
    for name, tensor in stored_tensors(model).items():
        own = kept[stored[name]]
        dtype = asked if asked is not None and own.is_floating_point else own
        weights[name] = torch.empty(tensor.shape, dtype=dtype, device="meta")
    return plan_shards(weights, max_shard_size=request.max_shard_size)


def _name_of(plan: Plan) -> str:
    """Give the dtype of the first weight, as config.json has it."""
    return str(next(iter(next(iter(plan.files.values())).values())).dtype).removeprefix("torch.")


def _write_rest(  # the parts of a checkpoint
    request: Request,
    plan: Plan,
    weights: Mapping[str, Any],
    *,
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
    folder: ModelFolder,
    into: Path,
) -> None:
    generation = folder.path / "generation_config.json"
    if generation.is_file():
        write_json(into / generation.name, read_json(generation))
    names = write_tokenizer(tokenizer, into)
    write_text(into / "README.md", model_card(family=family, num_parameters=plan.num_parameters, record=OF_MERGE))
    small = [INDEX, "config.json", generation.name, *names, "README.md"]
    manifest = read_manifest(request.adapter)
    finish(into, weights=weights, small=small, finished=Finished(manifest.step, {**manifest.facts, "is_merged": True}))


def _sentence(told: Mapping[str, Any]) -> str:
    lost = f"{_PERCENT * told['lost_by_rounding']:.2g} % of the change is lost by rounding"
    base = " The weights are the 4-bit ones that the adapter was trained on." if told["is_dequantised"] else ""
    return f"{told['output_dir']}: {told['changed_weights']} weights of {told['model']} changed; {lost}.{base}"
