"""Picks the order or packing of the samples, by seed and epoch only, and begins the workers that read them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import TrainingArguments
from transformers.trainer_utils import seed_worker

from ds_sft.data.batching import Order, group_by_length_order, shuffled_order
from ds_sft.data.packing import Budgets, Lengths, Packing, equally_full, in_order
from ds_sft.preemption import stay_for_parent


def order_of(samples: Any, args: TrainingArguments) -> Callable[[int], Order]:
    """Give the order of a run.

    Args:
        samples: The dataset, with `lengths`.
        args: Strategy, seed and batch.

    Returns:
        Gives the order of an epoch, counted from 0.
    """
    seed = _seed(args)
    if args.train_sampling_strategy == "group_by_length":
        # Of a whole step, so that the order does not depend on how a step is split.
        size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        lengths = samples.lengths()
        return lambda epoch: group_by_length_order(lengths, batch_size=size, seed=seed, epoch=epoch)
    if args.train_sampling_strategy == "sequential":
        return lambda _epoch: np.arange(len(samples))
    return lambda epoch: shuffled_order(len(samples), seed=seed, epoch=epoch)


def packing_of(lengths: Lengths, budgets: Budgets, args: TrainingArguments) -> Packing:
    """Give the packing of a run.

    Args:
        lengths: Of the samples.
        budgets: Of a micro-batch.
        args: Strategy, seed, accumulation and ranks; only the product of the last two counts.

    Returns:
        In file order where that is asked for, else equally full and shuffled.
    """
    if args.train_sampling_strategy == "sequential":
        return in_order(lengths, budgets)
    micro_steps = args.gradient_accumulation_steps * args.world_size
    return equally_full(lengths, budgets, multiple_of=micro_steps, seed=_seed(args))


def begin_worker(worker: int, *, num_workers: int, rank: int) -> None:
    """Seed a worker of a DataLoader, and let it stay until its parent has saved.

    Args:
        worker: Its number.
        num_workers: How many this rank has.
        rank: Of its parent.
    """
    seed_worker(worker, num_workers=num_workers, rank=rank)
    stay_for_parent(worker)


def _seed(args: TrainingArguments) -> int:
    return args.seed if args.data_seed is None else args.data_seed
