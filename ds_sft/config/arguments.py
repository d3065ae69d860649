"""The four groups of flags: model, data, LoRA and training."""

from dataclasses import dataclass, field
from typing import Literal

import transformers

from ds_sft.config.sources import (
    CACHE_DIR_HELP,
    MODEL_MAX_LENGTH,
    MODEL_MAX_LENGTH_HELP,
    DataArguments,
    LoraArguments,
    ModelArguments,
)

__all__ = ["DataArguments", "LoraArguments", "ModelArguments", "TrainingArguments"]


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """How it is trained: all of transformers' arguments, some defaults changed, and a few more."""

    cache_dir: str | None = field(default=None, metadata={"help": CACHE_DIR_HELP})
    model_max_length: int = field(default=MODEL_MAX_LENGTH, metadata={"help": MODEL_MAX_LENGTH_HELP})
    per_device_train_batch_size: int = field(
        default=8,
        metadata={
            "help": "Samples of a micro-batch of one rank; with packing it only sets the default of tokens_per_batch."
        },
    )
    per_device_eval_batch_size: int = field(
        default=8,
        metadata={
            "help": "Samples of a batch of one rank in an evaluation; with packing, times model_max_length, its tokens."
        },
    )
    packing: bool = field(
        default=True,
        metadata={"help": "Lay samples one behind the other, without padding, until a micro-batch is full."},
    )
    tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "With packing: most tokens of a micro-batch, of the source where there is one; if not set, "
            "per_device_train_batch_size x model_max_length."
        },
    )
    target_tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "With packing, for an encoder-decoder: most target tokens of a micro-batch; if not set, "
            "per_device_train_batch_size x model_max_length."
        },
    )
    share_prefixes: bool | None = field(
        default=None,
        metadata={
            "help": "With packing and split_example_loss: compute what samples of a conversation begin with once; if "
            "not set, on where that changes no number."
        },
    )
    predict_with_generate: bool = field(
        default=False, metadata={"help": "Let evaluations answer questions of eval_data_path, and score the answers."}
    )
    num_predict: int = field(
        default=64, metadata={"help": "Most questions that an evaluation answers, taken evenly from the whole file."}
    )
    predict_max_new_tokens: int = field(default=128, metadata={"help": "Most tokens of such an answer."})
    save_dtype: Literal["bf16", "fp16", "fp32"] | None = field(
        default=None,
        metadata={"help": "Number format of the exported weights; if not set bf16, and fp32 for adapters."},
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


def save_dtype(args: TrainingArguments, *, is_adapted: bool) -> str:
    """Give the number format of the export.

    Args:
        args: Of the run.
        is_adapted: Whether adapters are exported; they are small, so nothing is rounded unless the user says so.

    Returns:
        `bf16`, `fp16` or `fp32`.
    """
    return args.save_dtype or ("fp32" if is_adapted else "bf16")
