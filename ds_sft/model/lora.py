"""Low-rank adapters (Hu 2021, "LoRA") on a frozen model; the rows of new tokens train with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from ds_sft.config.arguments import LoraArguments
from ds_sft.contracts import Family
from ds_sft.model.lora_targets import ALL_LINEAR
from ds_sft.model.new_rows import ROWS, new_rows_of, table_of, train_new_rows

PREFIX = "base_model.model."
"""Stands before every name in an adapter file, as peft has it."""
STORED_ROWS = "token_adapter.trainable_tokens_delta"
"""Ends the name of new rows there."""
ADAPTER = "default"
"""The name of the adapter among those of a living model."""
_CHANGES_BASE = ("pissa", "olora")
_SIDES = ("lora_A", "lora_B")


@dataclass(frozen=True)
class Base:
    """The model that adapters belong to.

    Args:
        name: Its folder, or its name on the hub.
        new_tokens: Tokens that are new to it, ascending; their rows train.
        is_as_stored: Whether neither its table was grown nor its positions were scaled.
    """

    name: str
    new_tokens: Sequence[int]
    is_as_stored: bool


@dataclass(frozen=True)
class Adapters:
    """A model with adapters.

    Args:
        model: The frozen model with trainable parts.
        base: The frozen model.
        task_type: peft's word for the kind of model.
        initial: Name -> first value of each `lora_A` and `lora_B` that was taken out of the frozen weights.
    """

    model: PeftModel
    base: Base
    task_type: str
    initial: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Give what an adapter file holds.

        Returns:
            Name in peft's words -> tensor as this rank holds it.
        """
        trained = {_stored_name(name): weight for name, weight in self._trained().items()}
        return trained | self._stored_rows() | self._on_original_base(trained)

    def row_names(self) -> list[str]:
        """Give the names of new rows in an adapter file.

        Returns:
            Names in peft's words.
        """
        return list(self._stored_rows())

    def config(self) -> dict[str, Any]:
        """Give the content of adapter_config.json.

        Returns:
            What plain peft needs to load the adapter on the original model.
        """
        content = self.model.peft_config[ADAPTER].to_dict()
        content |= {"base_model_name_or_path": self.base.name, "inference_mode": True, "task_type": self.task_type}
        content |= {"trainable_token_indices": self._stored_indices() or None, "init_lora_weights": True}
        if isinstance(content["target_modules"], set):
            content["target_modules"] = sorted(content["target_modules"])
        if self.initial:
            # Twice the rank at the same scale: alpha / r, or alpha / sqrt(r) for rank-stabilised adapters.
            factor = 2**0.5 if content["use_rslora"] else 2
            content |= {"r": 2 * content["r"], "lora_alpha": factor * content["lora_alpha"]}
        return dict(content)

    def _trained(self) -> dict[str, nn.Parameter]:
        return {
            name: weight
            for name, weight in self.model.named_parameters()
            if weight.requires_grad and name.rpartition(".")[-1] != ROWS
        }

    def _stored_rows(self) -> dict[str, torch.Tensor]:
        """Give the new rows under all names that peft looks for."""
        found = dict(self.model.named_modules(remove_duplicate=False))
        return {f"{PREFIX}{path}.{STORED_ROWS}": found[PREFIX + path].rows for path in self._stored_indices()}

    def _stored_indices(self) -> dict[str, list[int]]:
        """Give the token ids for each module that peft shall wrap.

        Where input and head share a table, peft finds the others that share it by itself. Where they do not, every one
        is named, and the head's ids stand the other way round: peft 0.21.2 takes modules with equal lists for tied ones
        whenever config.json ties them, and transformers 5 says that of every T5.
        """
        if not self.base.new_tokens:
            return {}
        paths = {path.removeprefix(PREFIX): module for path, module in new_rows_of(self.model)}
        first, head = next(iter(paths)), self.model.get_output_embeddings()
        is_tied = head.rows is paths[first].rows
        return {path: list(module.ids) for path, module in paths.items() if path == first or not is_tied}

    def _on_original_base(self, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Put the adapters together with what was taken out of the frozen weights: B A - B0 A0, of twice the rank."""
        return {
            name: torch.cat([trained[name].detach(), -first if "lora_B" in name else first], dim=int("lora_B" in name))
            for name, first in self.initial.items()
        }


def attach_adapters(  # the parts of a run
    model: PreTrainedModel,
    config: LoraConfig,
    *,
    family: Family,
    base: Base,
    seed: int,
    holds_16_bits: bool,
) -> Adapters:
    """Freeze a model and put adapters beside its linear layers.

    Args:
        model: With its vocabulary grown; partitioned by ZeRO-3 or not. Changed in place.
        config: Of peft.
        family: Its card.
        base: What the adapters belong to.
        seed: Of the first values of the adapters; they depend on nothing else.
        holds_16_bits: Whether what trains has the dtype of the model, because DeepSpeed keeps fp32 copies; else it is
            held in fp32.

    Returns:
        The model with its adapters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config, autocast_adapter_dtype=not holds_16_bits)
    if not isinstance(adapted, PeftModel):
        raise TypeError(f"peft must give a PeftModel, but gave {type(adapted).__name__}")
    if not holds_16_bits:
        # peft does so for its own parameters; biases that train are the model's.
        for weight in adapted.parameters():
            weight.data = weight.data.float() if weight.requires_grad else weight.data
    if base.new_tokens:
        dtype = table_of(model.get_input_embeddings()).dtype if holds_16_bits else torch.float32
        train_new_rows(model, base.new_tokens, dtype=dtype)
    changes_base = config.init_lora_weights in _CHANGES_BASE
    initial = {
        _stored_name(name): weight.detach().clone()
        for name, weight in adapted.named_parameters()
        if changes_base and weight.requires_grad and any(side in name for side in _SIDES)
    }
    task_type = "SEQ_2_SEQ_LM" if family.is_encoder_decoder else "CAUSAL_LM"
    return Adapters(adapted, base, task_type, initial)


def lora_config(lora: LoraArguments, *, family: Family) -> LoraConfig:
    """Put the flags in peft's words.

    Args:
        lora: With a rank.
        family: Names the modules that get an adapter unless the user does.

    Returns:
        The config.
    """
    return LoraConfig(
        r=lora.lora_r or 0,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=targets_of(lora, family=family),
        bias=lora.lora_bias,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=lora.lora_init if lora.lora_init in _CHANGES_BASE else True,
    )


def targets_of(lora: LoraArguments, *, family: Family) -> list[str] | str:
    """Give the modules that get an adapter.

    Args:
        lora: The flags.
        family: Its card.

    Returns:
        Ends of module names, or `all-linear`.
    """
    asked = lora.lora_target_modules or list(family.lora_targets)
    return ALL_LINEAR if asked == [ALL_LINEAR] else asked


def _stored_name(name: str) -> str:
    """Put a parameter's name in the words of peft's files: without the adapter's name, and DoRA's vector as itself."""
    stored = name.replace(f".{ADAPTER}", "")
    return stored.removesuffix(".weight") if stored.endswith("lora_magnitude_vector.weight") else stored
