"""The loaders of a run: which samples this rank takes for each micro-batch, in training and in evaluations."""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from ds_sft.config.arguments import TrainingArguments
from ds_sft.config.budgets import budgets_of
from ds_sft.data.batching import PackedRankBatches, RankBatches
from ds_sft.data.datasets import SampleDataset
from ds_sft.data.fillers import WithFillers, filler_of
from ds_sft.data.packing import Budgets, Lengths, Packing, equally_full
from ds_sft.data.sharing import SampleTrees
from ds_sft.training.order import begin_worker, order_of, packing_of
from ds_sft.training.step import evaluation_budgets, lengths_of, told_budgets

log = logging.getLogger(__name__)

Batches = RankBatches | PackedRankBatches


def training_batches(
    samples: SampleDataset | SampleTrees, args: TrainingArguments, *, is_encoder_decoder: bool
) -> Batches:
    """Deal out the samples of training, so that every one counts once an epoch on any number of ranks.

    Args:
        samples: With counted tokens where they are packed; or trees of them.
        args: Strategy, seed, batch and ranks.
        is_encoder_decoder: Whether targets have a budget of their own.

    Returns:
        The micro-batches of this rank.
    """
    accumulation, drop_last = args.gradient_accumulation_steps, args.dataloader_drop_last
    if not args.packing:
        return RankBatches(
            order=order_of(samples, args),
            num_samples=len(samples),
            batch_size=args.train_batch_size,
            accumulation=accumulation,
            rank=args.process_index,
            world_size=args.world_size,
            drop_last=drop_last,
        )
    lengths = lengths_of(samples, is_encoder_decoder=is_encoder_decoder)
    budgets = budgets_of(vars(args), is_encoder_decoder=is_encoder_decoder)
    packing = packing_of(lengths, budgets, args)
    log.info("packing: a micro-batch takes %s", told_budgets(vars(args), is_encoder_decoder=is_encoder_decoder))
    log.info("packing: %s", _told(packing, lengths, budgets, args))
    return _dealt(packing, lengths, args, accumulation=accumulation, drop_last=drop_last)


def evaluation_batches(
    samples: SampleDataset | SampleTrees, args: TrainingArguments, *, is_encoder_decoder: bool
) -> Batches:
    """Deal out the samples of an evaluation, so that every one counts once on any number of ranks.

    Args:
        samples: With counted tokens where they are packed; or trees of them.
        args: Batch and ranks.
        is_encoder_decoder: Whether targets have a budget of their own.

    Returns:
        The micro-batches of this rank.
    """
    if not args.packing:
        return RankBatches(
            order=lambda _epoch: np.arange(len(samples)),
            num_samples=len(samples),
            batch_size=args.eval_batch_size,
            accumulation=1,
            rank=args.process_index,
            world_size=args.world_size,
            drop_last=False,
        )
    lengths = lengths_of(samples, is_encoder_decoder=is_encoder_decoder)
    budgets = evaluation_budgets(vars(args), is_encoder_decoder=is_encoder_decoder)
    packing = equally_full(lengths, budgets, multiple_of=args.world_size, seed=0)
    return _dealt(packing, lengths, args, accumulation=1, drop_last=False)


def loader_of(
    samples: SampleDataset | SampleTrees,
    batches: Batches,
    args: TrainingArguments,
    collate: Callable[[Any], Any],
    *,
    keeps_workers: bool = False,
) -> DataLoader[Any]:
    """Make a loader.

    Args:
        samples: The dataset.
        batches: Which of them make a batch.
        args: Says how many workers read them, and how.
        collate: Makes a batch.
        keeps_workers: Whether workers outlast an epoch.

    Returns:
        The loader.
    """
    return DataLoader(
        WithFillers(samples),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=keeps_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        worker_init_fn=partial(begin_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
    )


def _dealt(
    packing: Packing, lengths: Lengths, args: TrainingArguments, *, accumulation: int, drop_last: bool
) -> PackedRankBatches:
    return PackedRankBatches(
        plan=packing.plan,
        num_micro_batches=packing.num_micro_batches,
        # The shortest one costs least.
        filler=filler_of(int(np.argmin(lengths.sum(axis=0)))),
        accumulation=accumulation,
        rank=args.process_index,
        world_size=args.world_size,
        drop_last=drop_last,
    )


def _told(packing: Packing, lengths: Lengths, budgets: Budgets, args: TrainingArguments) -> str:
    """Put an epoch into words."""
    num, accumulation, world_size = packing.num_micro_batches, args.gradient_accumulation_steps, args.world_size
    fill = max(lengths.sum(axis=1, dtype=np.int64) / np.array(budgets)) / num
    num_steps = math.ceil(num / (accumulation * world_size))
    unit = "trees" if args.share_prefixes else "samples"
    return (
        f"an epoch has {lengths.shape[1]} {unit} in {num} micro-batches, {100 * fill:.1f} % full: {num_steps} steps x "
        f"{accumulation} accumulate x {world_size} ranks"
    )
