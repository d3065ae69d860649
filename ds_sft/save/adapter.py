"""Writes adapters so that plain peft loads them: their tensors alone, settings, tokenizer, card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils.constants import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from transformers import PreTrainedTokenizerBase

from ds_sft.contracts import Family
from ds_sft.save.card import adapter_card
from ds_sft.save.export import Finished, as_written, finish, write_json, write_tensors, write_text, write_tokenizer
from ds_sft.save.files import FileFact
from ds_sft.save.shards import Plan
from ds_sft.zero.gather import full_shape

MODEL_CONFIG = "model_config.json"


def export_adapter(  # noqa: PLR0913  # the parts of an adapter
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    model_config: Mapping[str, Any],
    *,
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    fits_plain_peft: bool,
    into: Path,
    dtype: torch.dtype,
    is_writer: bool,
    finished: Finished | None = None,
) -> dict[str, FileFact]:
    """Write an adapter; every rank must call this, one writes, and nothing of the frozen model is gathered.

    Args:
        tensors: Name in peft's words -> tensor, partitioned by ZeRO-3 or not.
        config: Content of adapter_config.json.
        model_config: Content of the config.json that a merged model needs.
        family: Card of the model.
        tokenizer: Saved beside it; its new tokens have rows in the adapter.
        fits_plain_peft: Whether the model is as it is stored, neither its table grown nor its positions scaled.
        into: The folder; files of the same names are replaced.
        dtype: Of the tensors.
        is_writer: Whether this rank writes.
        finished: For the manifest of the whole, written last; None for an export inside a checkpoint.

    Returns:
        File -> what it is, on the rank that writes.
    """
    # Rows that several modules share stand in the file under each of their names.
    num_parameters = sum(
        full_shape(tensor).numel() for tensor in {id(each): each for each in tensors.values()}.values()
    )
    # One file, because peft reads no other.
    plan = Plan({SAFETENSORS_WEIGHTS_NAME: as_written(tensors, dtype)}, index=None)
    weights = write_tensors(tensors, plan, into=into, is_writer=is_writer)
    if not is_writer:
        return {}
    write_json(into / CONFIG_NAME, dict(config))
    write_json(into / MODEL_CONFIG, dict(model_config))
    names = write_tokenizer(tokenizer, into)
    base = str(config["base_model_name_or_path"])
    card = adapter_card(family=family, base=base, num_parameters=num_parameters, fits_plain_peft=fits_plain_peft)
    write_text(into / "README.md", card)
    return finish(into, weights=weights, small=[CONFIG_NAME, MODEL_CONFIG, *names, "README.md"], finished=finished)
