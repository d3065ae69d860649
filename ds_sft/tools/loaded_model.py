"""Loads what a verb lets answer: no code or pickle of a folder runs, and an adapter goes onto its own model only."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from ds_sft.errors import ConfigError, raise_together
from ds_sft.model.adapter_config import TrainedOn, read_adapter_config
from ds_sft.model.adapter_files import load_adapter
from ds_sft.model.decoding import Choose, Ends, by_chance, ends_of, greedy, write
from ds_sft.model.folder import digest_of_model
from ds_sft.model.load import Held, empty_model, read_weights
from ds_sft.model.lora import Base, attach_adapters
from ds_sft.model.quantisation import missing_package
from ds_sft.model.vocab import new_token_ids, smart_tokenizer_and_embedding_resize
from ds_sft.save.tensors import DTYPES
from ds_sft.tools.asking import Asking, DtypeName
from ds_sft.tools.named_model import NamedModel
from ds_sft.training.lora_rules import run_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model that can be asked.

    Args:
        network: In evaluation mode.
        device: That it is on.
        ends: Tokens at which it begins and ends to write.
    """

    network: nn.Module
    device: torch.device
    ends: Ends

    def write(
        self, prompts: Sequence[Sequence[int]], asking: Asking, *, numbers: Sequence[int]
    ) -> Iterator[list[int | None]]:
        """Answer prompts side by side.

        Args:
            prompts: Ids of each.
            asking: Limit and chance.
            numbers: Of each prompt; what is drawn depends on it and on the seed alone.

        Returns:
            The new token of each, step by step; None for one that has ended.
        """
        choose: Choose = greedy
        if asking.temperature:
            seeds = [f"{asking.seed} {number}" for number in numbers]
            choose = by_chance(temperature=asking.temperature, top_p=asking.top_p, seeds=seeds)
        return write(
            self.network,
            prompts,
            ends=self.ends,
            max_new_tokens=asking.max_new_tokens,
            device=self.device,
            choose=choose,
        )


def where_and_how(named: NamedModel, asking: Asking) -> tuple[torch.device, DtypeName]:
    """Choose device and number format.

    Args:
        named: The model.
        asking: What the user says; 4 bits go with the format that they were made from alone.

    Returns:
        Both.

    Raises:
        ConfigError: When there is no such device, or the family or the adapter does not go with that format.
    """
    device, dtype, has_gpu = asking.device, asking.dtype, torch.cuda.is_available()
    try:
        chosen = torch.device(device or ("cuda" if has_gpu else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"device: must be cpu, cuda or cuda:N, but is {device!r}; give one of those") from error
    if chosen.type not in ("cpu", "cuda") or (chosen.type == "cuda" and not _has_gpu(chosen)):
        raise ConfigError(f"device: must be here, but {device!r} is not ({torch.cuda.device_count()} GPUs); use cpu")
    run = _run_of(named)
    due: DtypeName = "bf16" if chosen.type == "cuda" else "fp32"
    if run is not None and run.is_quantised:
        raise_together(list(missing_package()))
        due = "bf16" if run.bf16 else "fp32"
        if dtype not in (None, due):
            raise ConfigError(
                f"dtype: must be {due}, which the adapter's 4 bits were made from, but is {dtype}; drop it"
            )
    asked = dtype or due
    if asked in named.family.refused_precisions:
        reason = named.family.refused_precisions[asked]
        raise ConfigError(f"dtype: {named.family.name} must not be used in {asked}: {reason}; use bf16 or fp32")
    return chosen, asked


def load_named_model(named: NamedModel, *, device: torch.device, dtype: DtypeName) -> LoadedModel:
    """Load a model, with its adapter where it has one.

    Args:
        named: The model.
        device: From `where_and_how`.
        dtype: From `where_and_how`.

    Returns:
        The model.

    Raises:
        ConfigError: When the adapter was trained on another model.
        ModelError: When files are broken or do not fit each other.
    """
    folder, family, run = named.folder, named.family, _run_of(named)
    if run is not None and run.model != digest_of_model(folder):
        raise ConfigError(
            f"{named.adapter}: must go onto the model it was trained on (fingerprint {run.model[:12]}...), but "
            f"{folder.path} is another one; give --model_name_or_path"
        )
    how = Held(DTYPES[dtype], "sdpa", is_quantised=run is not None and run.is_quantised)
    # Positions as in training, whatever length is asked for now.
    empty = empty_model(folder, family=family, max_tokens=named.max_tokens)
    model = read_weights(empty, folder, family=family, how=how)
    added = smart_tokenizer_and_embedding_resize(family.special_tokens, family.other_tokens, named.tokenizer, model)
    ends = ends_of(model, named.tokenizer, is_encoder_decoder=family.is_encoder_decoder)
    network: nn.Module = model
    if named.adapter is not None:
        network = _adapted(model, added, named, named.adapter, holds_16_bits=not how.is_quantised)
    network.to(device)
    network.eval()
    log.info("%s: loaded in %s on %s", named.adapter or folder.path, dtype, device)
    return LoadedModel(network, device, ends)


def _adapted(
    model: PreTrainedModel, num_added: int, named: NamedModel, adapter: Path, *, holds_16_bits: bool
) -> nn.Module:
    family, config = named.family, read_adapter_config(adapter)
    rows = new_token_ids(family.special_tokens, family.other_tokens, named.tokenizer, model, num_added=num_added)
    base = Base(str(named.folder.path), rows, is_as_stored=True)
    adapters = attach_adapters(
        model, config.in_words_of_peft(), family=family, base=base, seed=0, holds_16_bits=holds_16_bits
    )
    load_adapter(adapters, adapter, config=config)
    return adapters.model


def _run_of(named: NamedModel) -> TrainedOn | None:
    return None if named.adapter is None else run_of(named.adapter)


def _has_gpu(device: torch.device) -> bool:
    return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
