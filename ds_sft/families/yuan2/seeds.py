"""The functions that programs written for FastChat's Yuan2 trainer call, with their names and what they give back.

They give the samples of the main job, and leave their arguments as they are.
"""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase, Trainer

from ds_sft.config.sources import DataArguments
from ds_sft.data import module
from ds_sft.data.collate import DataCollatorForCausalDataset
from ds_sft.data.datasets import load_datasets
from ds_sft.data.draft import Encoder
from ds_sft.data.module import Source, limit_of
from ds_sft.families.yuan2.family import FAMILY


def preprocess(
    sources: Sequence[Source], tokenizer: PreTrainedTokenizerBase, data_args: DataArguments
) -> dict[str, list[list[int]]]:
    """Lay out conversations for the loss that is asked for and tokenise them.

    Args:
        sources: Conversations, each a list of messages with `from` and `value`.
        tokenizer: The family's; its `model_max_length` limits a sample, 2048 where it has none.
        data_args: Which loss and layout.

    Returns:
        `input_ids`, `labels` (each token's own, not shifted) and `attention_mask` (ones: nothing is padded) of every
        sample.
    """
    samples = module.preprocess(sources, _encoder(tokenizer, data_args))
    return samples | {"attention_mask": [[1] * len(ids) for ids in samples["input_ids"]]}


def make_supervised_data_module(tokenizer: PreTrainedTokenizerBase, data_args: DataArguments) -> dict[str, Any]:
    """Make what a trainer needs to read data.

    Args:
        tokenizer: As in `preprocess`.
        data_args: Which files, and how.

    Returns:
        `train_dataset`, `eval_dataset` (None without `eval_data_path`) and `data_collator`, which gives each position
        the token after it as its label, as the main job's loss wants it.
    """
    train, evaluation = load_datasets(data_args, encoder=_encoder(tokenizer, data_args))
    collator = DataCollatorForCausalDataset(pad_token_id=int(tokenizer.pad_token_id))
    return {"train_dataset": train, "eval_dataset": evaluation, "data_collator": collator}


def trainer_save_model_safe(trainer: Trainer) -> None:
    """Write the model of the main job's trainer: every rank must call this, rank zero writes, one weight at a time.

    Args:
        trainer: From `train`.
    """
    trainer.save_model()


def _encoder(tokenizer: PreTrainedTokenizerBase, data_args: DataArguments) -> Encoder:
    return Encoder(FAMILY, tokenizer, data_args.layout_options(max_tokens=limit_of(tokenizer)))
