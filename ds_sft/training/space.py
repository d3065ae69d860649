"""How much disk a run needs, told before it trains."""

import math
import shutil
from pathlib import Path

from torch import nn

from ds_sft.config.arguments import TrainingArguments, save_dtype
from ds_sft.errors import SaveError
from ds_sft.model.costs import disk_of, most_checkpoints
from ds_sft.save.staging import checkpoints_of
from ds_sft.zero.gather import full_shape, stored_tensors

_GIGABYTE = 1e9


def refuse_small_disk(model: nn.Module, *, args: TrainingArguments, into: Path, is_adapted: bool) -> None:
    """Make sure that checkpoints and export will fit, as far as that can be foretold.

    Args:
        model: Partitioned or not.
        args: Say whether checkpoints are saved, how many stay, and the number format of the export.
        into: The output folder.
        is_adapted: Whether only what trains is exported.

    Raises:
        SaveError: When they will not.
    """
    trained = sum(math.prod(full_shape(weight)) for weight in model.parameters() if weight.requires_grad)
    whole = sum(math.prod(full_shape(tensor)) for tensor in stored_tensors(model).values())
    is_saving = str(getattr(args.save_strategy, "value", args.save_strategy)) != "no"
    disk = disk_of(
        trained=trained,
        exported=trained if is_adapted else whole,
        dtype=save_dtype(args, is_adapted=is_adapted),
        num_checkpoints=_most_checkpoints(args) if is_saving else 0,
        is_model_only=args.save_only_model,
        has_averages="adam" in args.optim or bool(args.deepspeed),
    )
    there = sum(file.stat().st_size for _, folder in checkpoints_of(into) for file in folder.rglob("*"))
    needed, free = disk.most, shutil.disk_usage(into).free + there
    if needed > free:
        gigabytes = [f"{number / _GIGABYTE:.2f}" for number in (needed, free, disk.checkpoint, disk.exported)]
        raise SaveError(
            f"output_dir: must have room for the run, but {into} needs {gigabytes[0]} GB and has {gigabytes[1]} GB "
            f"free ({disk.num_checkpoints} checkpoints of {gigabytes[2]} GB, export {gigabytes[3]} GB); free some "
            "space, lower --save_total_limit, or name another folder"
        )


def _most_checkpoints(args: TrainingArguments) -> int:
    """Tell how many are there at once."""
    if args.save_total_limit is None:
        return _num_saves(args)
    return most_checkpoints(args.save_total_limit, has_best=args.metric_for_best_model is not None)


def _num_saves(args: TrainingArguments) -> int:
    """Tell how often the run saves; at least two where its steps are not known yet."""
    if args.save_strategy == "epoch" and args.max_steps <= 0:
        return math.ceil(args.num_train_epochs)
    if args.max_steps <= 0:
        return 2
    every = args.save_steps if args.save_steps >= 1 else max(1, math.ceil(args.max_steps * args.save_steps))
    return math.ceil(args.max_steps / every)
