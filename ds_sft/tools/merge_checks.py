"""What must fit before a merge writes anything: the adapter's settings and tensors, and the model that it makes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils.constants import SAFETENSORS_WEIGHTS_NAME
from transformers import PreTrainedModel

from ds_sft.contracts import Family
from ds_sft.errors import MissingInputError, ModelError
from ds_sft.model.adapter_config import AdapterConfig
from ds_sft.model.adapter_files import refuse_other_tensors, refuse_other_tokens
from ds_sft.model.folder import read_json
from ds_sft.model.load import config_of, model_without_storage
from ds_sft.model.lora import Base, attach_adapters
from ds_sft.save.adapter import MODEL_CONFIG
from ds_sft.zero.gather import stored_tensors


def merged_config(adapter: Path, *, family: Family) -> dict[str, Any]:
    """Read the config.json that the merged model gets.

    Args:
        adapter: Folder of the adapter.
        family: Of its model.

    Returns:
        Its content, without names of code to load.

    Raises:
        MissingInputError: When it is not there.
        ModelError: When it is of another kind of model.
    """
    file = adapter / MODEL_CONFIG
    if not file.is_file():
        raise MissingInputError(f"{adapter}: must hold {MODEL_CONFIG}, but does not; export the adapter anew")
    content = read_json(file)
    if content.get("model_type") not in family.model_types:
        known = " or ".join(family.model_types)
        raise ModelError(f"{file}: model_type must be {known}, but is {content.get('model_type')!r}; restore the file")
    return {name: value for name, value in content.items() if name != "auto_map"}


def merged_model(
    before: PreTrainedModel, content: dict[str, Any], config: AdapterConfig, *, adapter: Path
) -> PreTrainedModel:
    """Make the merged model without storage; it differs from the first in the rows of new tokens alone.

    Args:
        before: The model that the adapter belongs to, without storage.
        content: Of its config.json after the merge.
        config: Settings of the adapter.
        adapter: Its folder, for the messages.

    Returns:
        The model.

    Raises:
        ModelError: When it has other weights, or other shapes.
    """
    file = adapter / MODEL_CONFIG
    kind = type(before)
    after = model_without_storage(kind, config_of(kind, content, file=file), file=file)
    old, new = ({name: list(tensor.shape) for name, tensor in stored_tensors(each).items()} for each in (before, after))
    other = sorted(set(old) ^ set(new))
    if other:
        raise ModelError(f"{file}: must describe a model of the same weights, but differs in {other[0]}; restore it")
    tables = {f"{path}.weight" for path in config.trainable_token_indices or {}}
    num_rows = max(config.token_ids, default=-1) + 1
    for name, shape in old.items():
        wanted = [max(shape[0], num_rows), *shape[1:]] if name in tables else shape
        if new[name] != wanted:
            raise ModelError(f"{file}: must give {name} the shape {wanted}, but gives {new[name]}; restore it")
    return after


def refuse_other_adapter(
    model: PreTrainedModel,
    config: AdapterConfig,
    tensors: Mapping[str, torch.Tensor],
    *,
    family: Family,
    adapter: Path,
) -> None:
    """Hold an adapter against the model that it is merged into: nothing may be missing or left over.

    Args:
        model: Without storage; it gets adapters, so it is of no use afterwards.
        config: Settings of the adapter.
        tensors: Of the adapter.
        family: Of the model.
        adapter: Folder, for the messages.

    Raises:
        ModelError: When settings, tensors and model do not fit each other.
    """
    base = Base(str(config.base_model_name_or_path), config.token_ids, is_as_stored=True)
    try:
        expected = attach_adapters(
            model, config.in_words_of_peft(), family=family, base=base, seed=0, holds_16_bits=True
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{adapter}: its settings must fit {type(model).__name__}, but: {reason}") from error
    refuse_other_tokens(expected, config, folder=adapter)
    refuse_other_tensors(expected.tensors(), tensors, where=adapter / SAFETENSORS_WEIGHTS_NAME)
