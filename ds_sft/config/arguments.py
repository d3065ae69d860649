"""The four groups of flags: model, data, LoRA and training."""

from dataclasses import dataclass, field
from typing import Literal

import transformers

from ds_sft.config.sources import (
    CACHE_DIR_HELP,
    MODEL_MAX_LENGTH,
    MODEL_MAX_LENGTH_HELP,
    DataArguments,
    ModelArguments,
)

__all__ = ["DataArguments", "LoraArguments", "ModelArguments", "TrainingArguments"]


@dataclass
class LoraArguments:
    """Adapters; giving `--lora_r` asks for them."""

    lora_r: int | None = field(default=None, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=16, metadata={"help": "Scale of the adapters, before division by the rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout in front of the adapters."})
    lora_target_modules: list[str] | None = field(default=None, metadata={"help": "Modules that get an adapter."})
    lora_weight_path: str | None = field(default=None, metadata={"help": "Adapter to continue."})
    lora_bias: Literal["none", "all", "lora_only"] = field(default="none", metadata={"help": "Biases to train."})
    q_lora: bool = field(default=False, metadata={"help": "Hold the frozen base model in 4 bits."})


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """How it is trained: all of transformers' arguments, some defaults changed, and a few more."""

    cache_dir: str | None = field(default=None, metadata={"help": CACHE_DIR_HELP})
    model_max_length: int = field(default=MODEL_MAX_LENGTH, metadata={"help": MODEL_MAX_LENGTH_HELP})
    save_dtype: Literal["bf16", "fp16", "fp32"] = field(
        default="bf16", metadata={"help": "Number format of the exported weights."}
    )
    max_shard_size: str = field(default="5GB", metadata={"help": "Largest file of exported weights."})
    allow_resume_mismatch: bool = field(
        default=False, metadata={"help": "Go on from a checkpoint of other data, settings or model, with a warning."}
    )
    nan_policy: Literal["skip", "stop", "rollback"] = field(
        default="skip",
        metadata={
            "help": "After a loss or gradient that is not finite: leave the step out, end the run, or leave it out "
            "and put the last checkpoint's weights back. Three in a row end the run."
        },
    )
    on_save_error: Literal["warn", "stop"] = field(
        default="warn",
        metadata={"help": "When a checkpoint cannot be written: go on (three in a row end the run), or end the run."},
    )
    report_to: None | str | list[str] = field(  # noqa: RUF036  # HfArgumentParser reads unions only in this order
        default="tensorboard", metadata={"help": "Trackers, for example tensorboard, wandb, trackio or none."}
    )
    logging_steps: float = field(default=10, metadata={"help": "A line every so many steps; below 1 a share of all."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave off: with it a NaN loss is logged as 0.0."}
    )
    disable_tqdm: bool | None = field(default=True, metadata={"help": "We print plain lines instead of a bar."})
    save_total_limit: int | None = field(default=3, metadata={"help": "Checkpoints to keep."})
    log_level_replica: str = field(
        default="error", metadata={"help": "What transformers may say on other ranks than the first of a host."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Search for parameters without a gradient; our families use all of theirs."}
    )
