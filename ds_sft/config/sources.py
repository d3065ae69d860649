"""The flags that say which model and which conversations; they can be read without torch."""

from dataclasses import dataclass, field
from typing import Literal

from ds_sft.contracts import LayoutOptions, LossMode

CACHE_DIR_HELP = "Where models from the hub are kept."
MODEL_MAX_LENGTH = 2048
MODEL_MAX_LENGTH_HELP = "Most tokens of one sequence; source and target have this limit each."


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
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "Attention of transformers, for example sdpa, eager or flash_attention_2."}
    )


@dataclass
class DataArguments:
    """What it is trained on."""

    data_path: str = field(
        metadata={
            "help": "ShareGPT conversations: a JSON array or one JSON object a line. "
            "Messages and Alpaca records too; .gz and .zst too."
        }
    )
    eval_data_path: str | None = field(default=None, metadata={"help": "Conversations to evaluate on, same format."})
    lazy_preprocess: bool = field(default=False, metadata={"help": "Tokenise each sample when it is asked for."})
    num_data: int = field(default=-1, metadata={"help": "Train on the first so many conversations only; -1 for all."})
    preprocessed_path: str | None = field(
        default=None, metadata={"help": "File or folder for the tokenised samples, instead of the shared cache."}
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
