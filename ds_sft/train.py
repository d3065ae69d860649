"""The whole job in one function, in the order in which it happens; `deepspeed ds_sft/train.py` runs this file."""

from ds_sft.preemption import StopRequest, end_children

STOP = StopRequest()
if __name__ == "__main__":
    # Before the imports below: they take seconds, and a signal must be heard from the first one on.
    STOP.install()

import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

from ds_sft.config.parse import build_training_arguments, parse
from ds_sft.config.resolved import show_settings, write_settings
from ds_sft.data.account import write_counters
from ds_sft.errors import PreemptedError
from ds_sft.families import family_of
from ds_sft.model.folder import find_model_folder
from ds_sft.reporting import rank, run, set_up_logging
from ds_sft.save.lock import output_lock
from ds_sft.training.assembly import model_of, samples_of
from ds_sft.training.checkpoints import Checkpoints
from ds_sft.training.device import on_this_device
from ds_sft.training.elastic import fitted_to_checkpoint
from ds_sft.training.events import EventsCallback, recorded
from ds_sft.training.header import Given, run_figures
from ds_sft.training.predictions import questions_to_predict
from ds_sft.training.preflight import check
from ds_sft.training.resume import where_to_begin
from ds_sft.training.sharing import with_sharing_settled
from ds_sft.training.space import refuse_small_disk
from ds_sft.training.trainer import SftTrainer
from ds_sft.zero import distributed
from ds_sft.zero.extensions import watch_build_locks

# By name: as a program this module is called __main__.
log = logging.getLogger("ds_sft.train")


def train(arguments: Sequence[str]) -> SftTrainer | None:
    """Fine-tune a checkpoint on conversations and export it; go on where the same command stopped before.

    Args:
        arguments: An optional YAML recipe, then flags.

    Returns:
        The trainer after training, or None when the run was finished before; the model is in its output folder.

    Raises:
        PreemptedError: When it was asked to stop.
    """
    set_up_logging()
    asked = parse(arguments)
    settings = fitted_to_checkpoint(on_this_device(asked), world_size=distributed.world_size())
    folder = find_model_folder(settings.model.model_name_or_path, cache_dir=settings.training["cache_dir"])
    family = family_of(folder.config, folder=folder.path)
    check(settings, family=family, folder=folder, world_size=distributed.world_size())
    settings = with_sharing_settled(settings, family=family)
    show_settings(settings)

    with (
        output_lock(settings.output_dir) if rank() == 0 else nullcontext(),
        watch_build_locks(),
        recorded(settings.output_dir, is_writer=rank() == 0) as record,
    ):
        # Data before the model: a file that teaches nothing must not cost a model load.
        tokenizer = family.load_tokenizer(folder.path)
        train_dataset, eval_dataset = samples_of(settings, family=family, tokenizer=tokenizer)
        predicting = questions_to_predict(settings, family=family, tokenizer=tokenizer)

        if settings.training["deepspeed"]:
            distributed.start(on_cpu=settings.training["use_cpu"])
        args = build_training_arguments(settings)
        begin = where_to_begin(settings, asked=asked, folder=folder, data=train_dataset.account.parts)
        if begin.is_finished:
            log.info("%s: this run is finished, there is nothing left to do", settings.output_dir)
            return None
        model, adapters = model_of(
            settings, args=args, folder=folder, family=family, tokenizer=tokenizer, samples=train_dataset
        )
        refuse_small_disk(model, args=args, into=settings.output_dir, is_adapted=adapters is not None)

        trainer = SftTrainer(
            model=model,
            adapters=adapters,
            args=args,
            family=family,
            tokenizer=tokenizer,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            predicting=predicting,
            padding_side=settings.model.padding_side,
            checkpoints=Checkpoints(
                begin.disk, begin.facts, keep=args.save_total_limit, stops_at_once=args.on_save_error == "stop"
            ),
            is_stop_asked=lambda: STOP.reason is not None,
        )
        given = Given(settings.model.model_name_or_path, family, train_dataset.account, begin.facts["versions"])
        trainer.add_callback(EventsCallback(record, partial(run_figures, given)))
        if args.should_save:
            # As asked, not as fitted to this machine: the same recipe uses a GPU where there is one.
            write_settings(asked, into=settings.output_dir)
            evaluated = eval_dataset.account if eval_dataset else None
            write_counters(train_dataset.account, evaluated, into=settings.output_dir)
        STOP.defer()
        result = trainer.train(resume_from_checkpoint=begin.checkpoint)
        _finish(trainer, result.metrics)
        return trainer


def _finish(trainer: SftTrainer, metrics: dict[str, float]) -> None:
    """Write what a whole run leaves, or say that this one was stopped."""
    if not trainer.is_stopped:
        trainer.save_metrics("train", metrics)
        trainer.save_state()
        trainer.save_model()
    if trainer.is_stopped or STOP.reason:
        raise PreemptedError(f"stopped after step {trainer.state.global_step}; the same command goes on")


def main() -> None:
    """Train with the command line's arguments and leave with a documented exit code."""
    run(lambda: train(sys.argv[1:]))
    distributed.leave()
    end_children()
    STOP.uninstall()


if __name__ == "__main__":
    main()
