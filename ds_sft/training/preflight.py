"""Holds the settings against each other, the family and the machine, and tells every fault at once."""

import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import get_available_reporting_integrations

from ds_sft.config.losses import loss_faults, say_which_loss
from ds_sft.config.parse import Settings
from ds_sft.contracts import Family
from ds_sft.errors import (
    ConfigError,
    DsSftError,
    MissingInputError,
    ModelError,
    PermissionRefusedError,
    SaveError,
    raise_together,
)
from ds_sft.model.folder import ModelFolder
from ds_sft.save.shards import shard_size_faults
from ds_sft.training.lora_rules import lora_faults
from ds_sft.training.predictions import predicting_faults
from ds_sft.training.resume import resume_faults
from ds_sft.training.step import packing_faults, say_what_packing_changes
from ds_sft.zero.settings import deepspeed_faults, read_deepspeed_config

log = logging.getLogger(__name__)

_AT_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "model_max_length": 2,
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "warmup_steps": 0,
    "label_smoothing_factor": 0,
    "adam_beta1": 0,
    "adam_beta2": 0,
    "adam_epsilon": 0,
    "seed": 0,
    "dataloader_num_workers": 0,
}
_AT_MOST = {"label_smoothing_factor": 1, "adam_beta1": 0.999999, "adam_beta2": 0.999999, "seed": 2**32 - 1}
_FINITE = ("num_train_epochs", "logging_steps", "save_steps")
_REFUSED = {
    "push_to_hub": "upload the output folder yourself, for example with `hf upload`",
    "ignore_data_skip": "a run that goes on would train other samples",
    "auto_find_batch_size": "a run that goes on must have the batch it began with",
    "fsdp": "weights are partitioned by DeepSpeed here; use --deepspeed",
    "neftune_noise_alpha": "its hook sits on a layer that no family calls; leave it out",
    "use_liger_kernel": "the loss is ours here; leave it out",
}
_UNEVEN_OPTIMIZERS = ("adafactor", "8bit", "4bit", "galore", "lomo", "apollo")
"""They keep less or other than one number a weight, which cannot be cut to fit another number of ranks."""
_ON_CPU = ("sdpa", "eager")
_ORDERS = ("random", "sequential", "group_by_length")
_BEST_METRICS = ("loss", "eval_loss")


def check(settings: Settings, *, family: Family, folder: ModelFolder, world_size: int) -> dict[str, Any] | None:
    """Find every fault in the settings before anything is loaded.

    Args:
        settings: As parsed.
        family: Of the checkpoint.
        folder: The checkpoint.
        world_size: Number of ranks.

    Returns:
        Content of the DeepSpeed file, or None without one.

    Raises:
        DsSftError: With one line for each fault; the first one decides the exit code.
    """
    faults = [
        *_file_faults(settings),
        *resume_faults(settings),
        *_number_faults(settings),
        *_data_faults(settings, family),
        *_model_faults(settings, family, folder),
        *_precision_faults(settings, family),
        *_trainer_faults(settings),
        *_order_faults(settings),
        *packing_faults(settings),
        *predicting_faults(settings),
        *_output_faults(settings),
    ]
    config = None
    file = settings.training["deepspeed"]
    if file:
        try:
            config = read_deepspeed_config(Path(file).expanduser())
            faults += deepspeed_faults(config, path=Path(file), training=settings.training, world_size=world_size)
        except DsSftError as error:
            faults.append(error)
    faults += lora_faults(settings, folder=folder, deepspeed=config)
    raise_together(faults)
    _say_what_has_no_effect(settings, family)
    return config


def _file_faults(settings: Settings) -> Iterator[DsSftError]:
    files = {"data_path": settings.data.data_path, "eval_data_path": settings.data.eval_data_path}
    for name, path in files.items():
        if path and not Path(path).expanduser().exists():
            yield MissingInputError(f"{name}: file must exist, but {path} does not; check the path")


def _number_faults(settings: Settings) -> Iterator[DsSftError]:
    for name in dict.fromkeys([*_AT_LEAST, *_AT_MOST, *_FINITE]):
        value, least, most = settings.training[name], _AT_LEAST.get(name), _AT_MOST.get(name)
        if not math.isfinite(value):
            yield ConfigError(f"{name}: must be finite, but is {value}; give another value")
        elif least is not None and value < least:
            yield ConfigError(f"{name}: must be at least {least}, but is {value}; give another value")
        elif most is not None and value > most:
            yield ConfigError(f"{name}: must be at most {most}, but is {value}; give another value")
    if settings.training["num_train_epochs"] <= 0 and settings.training["max_steps"] <= 0:
        epochs = settings.training["num_train_epochs"]
        yield ConfigError(f"num_train_epochs: must be above 0, but is {epochs}; or give --max_steps")
    if settings.data.num_data == 0 or settings.data.num_data < -1:
        yield ConfigError(
            f"num_data: must be -1 (all) or at least 1, but is {settings.data.num_data}; give one of those"
        )


def _data_faults(settings: Settings, family: Family) -> Iterator[DsSftError]:
    yield from loss_faults(settings.data, family=family)
    strategy = str(settings.training["eval_strategy"])
    if strategy != "no" and not settings.data.eval_data_path:
        yield ConfigError(f"eval_strategy: {strategy!r} needs data, but eval_data_path is not given; add it or use no")


def _model_faults(settings: Settings, family: Family, folder: ModelFolder) -> Iterator[DsSftError]:
    for line in family.config_faults(folder.config):
        yield ModelError(f"{folder.path / 'config.json'}: {line}")
    asked = settings.model.attn_implementation
    if asked not in family.attentions:
        known = ", ".join(family.attentions)
        yield ConfigError(f"attn_implementation: {family.name} must have one of {known}, but is {asked!r}; choose one")
    elif asked not in _ON_CPU and settings.training["use_cpu"]:
        yield ConfigError(
            f"attn_implementation: must be {' or '.join(_ON_CPU)} on a CPU, but is {asked!r}, whose backward pass "
            "needs a GPU; choose one"
        )


def _precision_faults(settings: Settings, family: Family) -> Iterator[DsSftError]:
    if settings.training["bf16"] and settings.training["fp16"]:
        yield ConfigError("bf16, fp16: at most one may be True, but both are; keep --bf16 True")
    asked = next((name for name in ("bf16", "fp16") if settings.training[name]), "fp32")
    told = "neither --bf16 nor --fp16 is True" if asked == "fp32" else f"--{asked} is True"
    for precision, reason in family.refused_precisions.items():
        if precision == asked:
            yield ConfigError(
                f"{precision}: {family.name} must not be trained in it, but {told}: {reason}; "
                "use --bf16 True, or neither flag for fp32"
            )


def _trainer_faults(settings: Settings) -> Iterator[DsSftError]:
    """Refuse what transformers would accept and our trainer would not do, or would do wrong."""
    training = settings.training
    for name, reason in _REFUSED.items():
        if training[name]:
            yield ConfigError(f"{name}: must not be given, but is {training[name]!r}: {reason}")
    if not training["average_tokens_across_devices"]:
        yield ConfigError(
            "average_tokens_across_devices: must be True, but is False: the loss would depend on how the batch is "
            "split; leave it out"
        )
    optim = str(getattr(training["optim"], "value", training["optim"]))
    if any(word in optim for word in _UNEVEN_OPTIMIZERS) and not _saves_nothing(training):
        yield ConfigError(
            f"optim: must keep one number for each weight where checkpoints are saved, but {optim} does not; use "
            "adamw_torch, or --save_strategy no"
        )
    metric = training["metric_for_best_model"]
    if metric is not None and metric not in _BEST_METRICS:
        yield ConfigError(
            f"metric_for_best_model: must be {' or '.join(_BEST_METRICS)}, but is {metric!r}; perplexity rises and "
            "falls with the loss"
        )
    if training["load_best_model_at_end"] and training["greater_is_better"]:
        yield ConfigError("greater_is_better: must be False for a loss, but is True; leave it out")
    asked = training["report_to"]
    found = get_available_reporting_integrations()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    known = {"none", "all", *found}
    for tracker in [asked] if isinstance(asked, str) else asked or []:
        if tracker not in known:
            told = ", ".join(sorted(known))
            yield ConfigError(f"report_to: must be installed (found: {told}), but is {tracker!r}; pip install it")


def _order_faults(settings: Settings) -> Iterator[DsSftError]:
    training = settings.training
    if not training["dataloader_in_order"]:
        yield ConfigError("dataloader_in_order: must be True, but is False: samples would come by chance; leave it out")
    strategy = str(getattr(training["train_sampling_strategy"], "value", training["train_sampling_strategy"]))
    if strategy not in _ORDERS:
        yield ConfigError(
            f"train_sampling_strategy: must be one of {', '.join(_ORDERS)}, but is {strategy}; group_by_length "
            "balances ranks too"
        )


def _saves_nothing(training: Mapping[str, Any]) -> bool:
    return str(training["save_strategy"]).rsplit(".", 1)[-1].lower() == "no"


def _output_faults(settings: Settings) -> Iterator[DsSftError]:
    """Try to write into the output folder, as the only way to know whether that will work later."""
    yield from shard_size_faults(settings.training["max_shard_size"])
    folder = settings.output_dir
    model = Path(settings.model.model_name_or_path).expanduser()
    if model.is_dir() and folder.resolve() == model.resolve():
        yield ConfigError(
            f"output_dir: must not be the folder of the model, but both are {folder}: the export would replace what is "
            "there; name another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        owner = folder.stat().st_uid
        if os.geteuid() not in (0, owner):
            yield PermissionRefusedError(
                f"output_dir: must belong to this user ({os.geteuid()}), but {folder} belongs to {owner}, who could "
                "put links or other files there; name another folder"
            )
        with tempfile.TemporaryFile(dir=folder):
            pass
    except PermissionError as error:
        yield PermissionRefusedError(f"output_dir: must be writable, but {folder}: {error.strerror}; check its mode")
    except OSError as error:
        yield SaveError(f"output_dir: must be writable, but {folder}: {error.strerror}; choose another folder")


def _say_what_has_no_effect(settings: Settings, family: Family) -> None:
    """Say every setting that is accepted for old command lines and changes nothing."""
    for note in settings.notes:
        log.warning("%s", note)
    if settings.model.trust_remote_code:
        log.warning("trust_remote_code: ignored, because code from a model folder is never executed here")
    if settings.data.eval_data_path and settings.training["eval_strategy"] == "no":
        log.warning("eval_data_path: not evaluated, because eval_strategy is no; add --eval_strategy epoch")
    say_which_loss(settings.data, family=family)
    say_what_packing_changes(settings, family=family)
