"""The four groups of flags: model, data, LoRA and training."""

from dataclasses import dataclass, field
from typing import Literal

import transformers

from ds_sft.contracts import LayoutOptions, LossMode


@dataclass
class ModelArguments:
    """Which model is trained."""

    model_name_or_path: str = field(metadata={"help": "Folder of the checkpoint, or its name on the hub."})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Accepted for old command lines; code from a model folder is never executed."},
    )
    padding_side: Literal["right", "left"] = field(
        default="right", metadata={"help": "Side on which inputs are padded; targets are always padded on the right."}
    )
    attn_implementation: Literal["sdpa", "eager"] = field(
        default="sdpa", metadata={"help": "Attention kernel of transformers."}
    )


@dataclass
class DataArguments:
    """What it is trained on."""

    data_path: str = field(metadata={"help": "ShareGPT conversations: a JSON array or one JSON object a line."})
    eval_data_path: str | None = field(default=None, metadata={"help": "Conversations to evaluate on, same format."})
    lazy_preprocess: bool = field(default=False, metadata={"help": "Tokenise each sample when it is asked for."})
    num_data: int = field(default=-1, metadata={"help": "Train on the first so many conversations only; -1 for all."})
    preprocessed_path: str | None = field(
        default=None, metadata={"help": "File for the tokenised samples: read where it exists, else written."}
    )
    strict_data: bool = field(default=False, metadata={"help": "Stop at the first rejected conversation."})
    last_response_loss: bool = field(default=False, metadata={"help": "Loss on the last answer only."})
    split_example_loss: bool = field(default=False, metadata={"help": "One sample for each answer."})
    efficient_loss: bool = field(default=False, metadata={"help": "One sample, loss on every answer."})
    layout: Literal["native", "fastchat"] = field(
        default="native", metadata={"help": "fastchat gives FastChat's token layout, for --efficient_loss only."}
    )

    def loss_modes(self) -> tuple[LossMode, ...]:
        """Give the loss modes that were asked for; more than one is a fault.

        Returns:
            Their names, in the order of the flags.
        """
        asked: dict[LossMode, bool] = {
            "last_response": self.last_response_loss,
            "split_example": self.split_example_loss,
            "efficient": self.efficient_loss,
        }
        return tuple(mode for mode, is_on in asked.items() if is_on)

    def layout_options(self, *, max_tokens: int) -> LayoutOptions:
        """Give what a family needs to lay out a dialogue.

        Args:
            max_tokens: Most tokens of one sequence.

        Returns:
            The options; `efficient` where no loss mode was asked for.
        """
        asked = self.loss_modes()
        mode: LossMode = asked[0] if asked else "efficient"
        return LayoutOptions(max_tokens=max_tokens, loss_mode=mode, name=self.layout)


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

    cache_dir: str | None = field(default=None, metadata={"help": "Where models from the hub are kept."})
    model_max_length: int = field(
        default=2048, metadata={"help": "Most tokens of one sequence; source and target have this limit each."}
    )
    save_dtype: Literal["bf16", "fp16", "fp32"] = field(
        default="bf16", metadata={"help": "Number format of the exported weights."}
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
