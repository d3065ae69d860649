"""The ways to train a workload: ours as users run it, FastChat's loop, and transformers' trainers grouped by length."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    PreTrainedTokenizerFast,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from benchmarks.fastchat_loop import FastChatYuan2
from benchmarks.workloads import Samples, Workload
from ds_sft.config.arguments import TrainingArguments
from ds_sft.contracts import IGNORE_INDEX, Family
from ds_sft.data.packing import count_micro_batches
from ds_sft.families.flan_t5.family import FAMILY as FLAN_T5
from ds_sft.families.flan_t5.modeling import FlanT5
from ds_sft.families.yuan2.family import FAMILY as YUAN2
from ds_sft.families.yuan2.native.configuration import Yuan2Config
from ds_sft.families.yuan2.native.model import Yuan2ForCausalLM
from ds_sft.training.step import lengths_of
from ds_sft.training.trainer import SftTrainer

CARDS: Mapping[str, Family] = {"yuan2": YUAN2, "flan_t5": FLAN_T5}
_PAD = 0


@dataclass(frozen=True)
class Run:
    """What a trainer is made for.

    Args:
        workload: Its model and batches.
        samples: What it trains on.
        folder: Where it may write.
        on_cpu: Whether it leaves a GPU alone.
        precision: `fp32` or `bf16`.
    """

    workload: Workload
    samples: Samples
    folder: Path
    on_cpu: bool
    precision: str = "fp32"


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Args:
        name: In the results.
        told: In the tables.
        trainer: Makes the trainer of an epoch, with a model that is new.
    """

    name: str
    told: str
    trainer: Callable[[Run], Trainer]


def ours(run: Run, *, has_same_steps: bool = False, shares_prefixes: bool = False) -> Trainer:
    """Train by the package, with flat batches.

    Args:
        run: What for.
        has_same_steps: Whether a step takes as many samples as a padded one; else as many tokens as that has places,
            which is the default of the flags and makes fewer steps.
        shares_prefixes: Whether samples of a conversation are computed as trees.

    Returns:
        The trainer.
    """
    family = CARDS[run.workload.family]
    model = our_model(run)
    budgets: tuple[int | None, ...] = (None, None)
    if has_same_steps:
        budgets = _budgets_of_same_steps(run, is_encoder_decoder=family.is_encoder_decoder)
    args = TrainingArguments(
        **common_arguments(run),
        model_max_length=run.workload.max_length,
        tokens_per_batch=budgets[0],
        target_tokens_per_batch=budgets[-1],
        share_prefixes=shares_prefixes,
    )
    return SftTrainer(model=model, args=args, family=family, tokenizer=tokenizer(), train_dataset=run.samples)


def fastchat_yuan2(run: Run) -> Trainer:
    """Train as FastChat's Yuan2 trainer does: every sample padded to the longest that may be.

    Args:
        run: What for.

    Returns:
        The trainer.
    """
    collate = partial(padded, width=run.workload.max_length)
    return _peer(Trainer, FastChatYuan2(_config(run.workload)), run, collate)


def fastchat_t5(run: Run) -> Trainer:
    """Train as FastChat's T5 trainer does: padded to the longest of a batch, in random order, with eager attention.

    Args:
        run: What for.

    Returns:
        The trainer.
    """
    model = T5ForConditionalGeneration(_config(run.workload))
    model.set_attn_implementation("eager")
    return _peer(Trainer, model, run, padded)


def hf_grouped(run: Run) -> Trainer:
    """Train by transformers alone, with batches of samples of similar lengths and torch's fused attention.

    Args:
        run: What for.

    Returns:
        Seq2SeqTrainer with transformers' T5, or Trainer with Yuan2, padded and with the logits of every token.
    """
    config = _config(run.workload)
    if isinstance(config, T5Config):
        return _peer(GroupedSeq2SeqTrainer, T5ForConditionalGeneration(config), run, padded)
    return _peer(GroupedTrainer, Yuan2ForCausalLM(config), run, padded)


class GroupedTrainer(Trainer):
    """transformers' trainer with `group_by_length` as it is with much data.

    It sorts 50 batches at a time by length, but next to none of a few: a small measurement would wrong it.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = train_dataset or self.train_dataset
        lengths = [len(rows[index]["input_ids"]) for index in range(len(rows))]
        generator = torch.Generator().manual_seed(self.args.seed)
        group: Any = get_length_grouped_indices
        return group(lengths, self.args.train_batch_size, _SORTED_BATCHES, generator)


class GroupedSeq2SeqTrainer(GroupedTrainer, Seq2SeqTrainer):
    """The same for encoder-decoders."""


_SORTED_BATCHES = 50
_OURS = (
    Variant("ours_same_steps", "ds_sft, as many optimizer steps", partial(ours, has_same_steps=True)),
    Variant("ours", "ds_sft, its default budget of tokens", ours),
)
_GROUPED_YUAN2 = Variant("hf_grouped", "Trainer, grouped by length", hf_grouped)
_SPLIT = (
    _GROUPED_YUAN2,
    Variant("flat_split", "ds_sft, nothing shared", ours),
    Variant("ours", "ds_sft, shared beginnings", partial(ours, shares_prefixes=True)),
)
VARIANTS: Mapping[str, tuple[Variant, ...]] = {
    "yuan2": (Variant("fastchat", "FastChat's loop", fastchat_yuan2), _GROUPED_YUAN2, *_OURS),
    "flan_t5": (
        Variant("fastchat", "FastChat's loop", fastchat_t5),
        Variant("hf_grouped", "Seq2SeqTrainer, grouped by length", hf_grouped),
        *_OURS,
    ),
}


def variants_of(workload: Workload) -> tuple[Variant, ...]:
    """Give the ways to train a workload.

    Args:
        workload: Its family, and whether its samples share something.

    Returns:
        The one whose gradients the others must give comes first.
    """
    return _SPLIT if workload.turns else VARIANTS[workload.family]


def padded(rows: Sequence[Mapping[str, Any]], *, width: int = 0) -> dict[str, torch.Tensor]:
    """Pad samples to the longest of them.

    Args:
        rows: Samples with `input_ids` and `labels`.
        width: Pad to at least so many tokens.

    Returns:
        `input_ids`, `attention_mask` and `labels`, each [B, T] with a T of its own.
    """
    inputs, labels = (
        [torch.as_tensor(row[name], dtype=torch.long) for row in rows] for name in ("input_ids", "labels")
    )
    mask = [torch.ones_like(ids) for ids in inputs]
    filled = {"input_ids": (inputs, _PAD), "attention_mask": (mask, 0), "labels": (labels, IGNORE_INDEX)}
    laid = {name: pad_sequence(given, batch_first=True, padding_value=fill) for name, (given, fill) in filled.items()}
    return {
        name: torch.nn.functional.pad(ids, (0, max(0, width - ids.shape[1])), value=filled[name][1])
        for name, ids in laid.items()
    }


def our_model(run: Run) -> Any:
    """Make the model that ours trains.

    Args:
        run: What for.

    Returns:
        With the weights that all variants begin with.
    """
    config = _config(run.workload)
    if not isinstance(config, T5Config):
        return Yuan2ForCausalLM(config)
    model = FlanT5(config)
    # It draws its tied table at another moment than transformers' class does, and all must begin alike.
    torch.manual_seed(torch.initial_seed())
    model.load_state_dict(T5ForConditionalGeneration(config).state_dict())
    return model


def _config(workload: Workload) -> Any:
    return T5Config(**workload.shape) if "d_model" in workload.shape else Yuan2Config(**workload.shape)


def common_arguments(run: Run) -> dict[str, Any]:
    """Give what all variants have in common.

    Args:
        run: What for.

    Returns:
        Names and values of transformers' arguments.
    """
    return {
        "output_dir": str(run.folder),
        "num_train_epochs": 1,
        "per_device_train_batch_size": run.workload.batch_size,
        "learning_rate": 1e-4,
        "optim": "adamw_torch_fused",
        "bf16": run.precision == "bf16",
        "use_cpu": run.on_cpu,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 1,
    }


def _peer(trainer: Any, model: Any, run: Run, collate: Callable[..., Any]) -> Trainer:
    kind = Seq2SeqTrainingArguments if issubclass(trainer, Seq2SeqTrainer) else transformers.TrainingArguments
    args = kind(**common_arguments(run), remove_unused_columns=False)
    made: Trainer = trainer(model=model, args=args, train_dataset=run.samples, data_collator=collate)
    made.remove_callback(PrinterCallback)
    return made


def tokenizer() -> Any:
    """Make a tokenizer that is never asked for more than its special tokens.

    Returns:
        The tokenizer.
    """
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = {word: number for number, word in enumerate(tokens.values())}
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=Tokenizer(WordLevel(words, unk_token=tokens["unk_token"])), **tokens)


def _budgets_of_same_steps(run: Run, *, is_encoder_decoder: bool) -> tuple[int, ...]:
    """Find the smallest budgets that need no more micro-batches than padded batches are."""
    samples: Any = run.samples
    lengths = lengths_of(samples, is_encoder_decoder=is_encoder_decoder)
    num_steps = -(-len(run.samples) // run.workload.batch_size)
    longest, total = lengths.max(axis=1), lengths.sum(axis=1)
    spare = 1.0
    while True:
        budgets = tuple(int(max(most, spare * all_ / num_steps + 1)) for most, all_ in zip(longest, total, strict=True))
        if count_micro_batches(lengths, budgets, multiple_of=1) <= num_steps:
            return budgets
        spare += 0.01
