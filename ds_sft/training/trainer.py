"""The one subclass of transformers' Trainer; every override says why it is there."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer

from ds_sft.config.arguments import TrainingArguments
from ds_sft.contracts import Family
from ds_sft.data.batching import RankBatches
from ds_sft.data.collate import Batch
from ds_sft.data.fillers import WithFillers
from ds_sft.errors import ModelError, NumericsError, PreemptedError
from ds_sft.model.loss import token_mean_loss
from ds_sft.save.export import Finished, export_model
from ds_sft.save.staging import Written, newest_whole, verify
from ds_sft.save.state import read_state
from ds_sft.training.callbacks import BeginCallback, ProgressCallback, ResolvedConfigCallback, StopCallback
from ds_sft.training.checkpoints import Checkpoints, Parts, Plain, own_part, read_shared, without_nan
from ds_sft.training.collator import collator_for
from ds_sft.training.engine_state import engine_state, set_engine_state
from ds_sft.training.evaluation import evaluation_metrics
from ds_sft.training.numerics import Numerics, Spikes, StepGuard, on_any_rank
from ds_sft.training.order import begin_worker, order_of
from ds_sft.training.random_state import set_random_state
from ds_sft.training.throughput import Throughput
from ds_sft.zero.ranks import together
from ds_sft.zero.state import is_replicated

log = logging.getLogger(__name__)

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class SftTrainer(Trainer):
    """Trains with a loss that is normalised by the supervised tokens of the whole global batch.

    Args:
        model: With its vocabulary grown and its adapters attached.
        args: Training arguments.
        family: Card of the model.
        tokenizer: Saved beside the model.
        train_dataset: Samples with `input_ids` and `labels`.
        eval_dataset: The same, or None.
        padding_side: Side on which inputs are padded.
        checkpoints: Where and how checkpoints are saved; None for a trainer that saves none.
        is_stop_asked: Tells whether this rank has been asked to stop; all ranks then stop after the same step.
    """

    def __init__(  # noqa: PLR0913  # the parts of a run
        self,
        *,
        model: PreTrainedModel,
        args: TrainingArguments,
        family: Family,
        tokenizer: PreTrainedTokenizerBase,
        train_dataset: Dataset[Any],
        eval_dataset: Dataset[Any] | None = None,
        padding_side: Any = "right",
        checkpoints: Checkpoints | None = None,
        is_stop_asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self._checkpoints = checkpoints
        self._is_stop_asked = is_stop_asked
        self._numerics = Numerics(args.nan_policy, args.device)
        self._spikes = Spikes()
        self._guard: StepGuard | None = None
        self._own: Plain | None = None
        self._shared: Plain | None = None
        self._owes_evaluation = False
        self.is_stopped = False
        self._family = family
        self._tokenizer = tokenizer
        self._save_dtype = _DTYPES[args.save_dtype]
        self._max_shard_size = args.max_shard_size
        self._output_dir = Path(str(args.output_dir))
        self._throughput = Throughput(args.device, counts_targets=family.is_encoder_decoder)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            data_collator=collator_for(family, model, tokenizer, padding_side, on_gpu=args.device.type == "cuda"),
            compute_loss_func=partial(token_mean_loss, label_smoothing=args.label_smoothing_factor),
            callbacks=[
                ProgressCallback(),
                StopCallback(lambda: self.is_stopped),
                BeginCallback(self._put_totals_back),
            ],
        )
        # The loss is ours alone: the model is not asked for one, and labels are already aligned with the logits.
        self.model_accepts_loss_kwargs = False
        self._loss_shifts_labels = False
        self.remove_callback(PrinterCallback)
        if self.is_deepspeed_enabled:
            plugin = self.accelerator.state.deepspeed_plugin
            self.add_callback(ResolvedConfigCallback(plugin.hf_ds_config.config, self._output_dir))

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Count tokens and look at the loss on the way, without waiting for the device.

        Args:
            model: The engine.
            inputs: One micro-batch.
            num_items_in_batch: Supervised tokens of the global batch.

        Returns:
            The loss, a scalar.
        """
        self._throughput.count(inputs)
        return self._numerics.add(super().training_step(model, inputs, num_items_in_batch))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Deal out the samples ourselves, so that every one counts once an epoch on any number of ranks.

        accelerate repeats samples where the last batch does not fill all ranks, and transformers' grouping by length
        gives rank zero the longer part of every batch.

        Returns:
            The micro-batches of this rank.
        """
        samples: Any = self.train_dataset
        args = self.args
        self._batches = RankBatches(
            order=order_of(samples, args),
            num_samples=len(samples),
            batch_size=args.train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            rank=args.process_index,
            world_size=args.world_size,
            drop_last=args.dataloader_drop_last,
        )
        return DataLoader(
            WithFillers(samples),
            batch_sampler=self._batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            worker_init_fn=partial(begin_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        """Copy the batches of a step to the device without waiting for it; transformers would wait at each of them.

        Args:
            epoch_iterator: Over the loader.
            num_batches: Micro-steps of the step.
            device: Of the model.

        Returns:
            The batches, and their number of supervised tokens on all ranks.
        """
        on_device = (
            {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()} for batch in epoch_iterator
        )
        return super().get_batch_samples(on_device, num_batches, device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add throughput over all ranks; every rank comes here at a logging step, so it may be summed.

        Args:
            logs: What Trainer measured.
            start_time: As in Trainer.
        """
        if "loss" in logs:
            logs |= self._throughput.report(lambda counts: self.accelerator.reduce(counts, reduction="sum"))
            logs |= self._numerics.report()
            logs |= self._spikes.note(self.state.global_step, logs["loss"])
        # JSON has no word for NaN, and a zero in its place would be a lie.
        super().log(without_nan(logs), start_time)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Give the mean loss over all supervised tokens; Trainer's is a mean of batch means.

        Args:
            eval_dataset: Instead of the one given at the start.
            ignore_keys: Unused.
            metric_key_prefix: Begins the names of the metrics.

        Returns:
            `loss`, `perplexity` and `num_tokens`, each with the prefix.
        """
        # Neither the time of an evaluation counts, nor does it draw from the random numbers of training.
        random = torch.get_rng_state()
        with self._throughput.paused():
            loader = self.get_eval_dataloader(eval_dataset)
            metrics = evaluation_metrics(
                self,
                self._evaluation_model(),
                loader,
                prefix=metric_key_prefix,
                is_stop_asked=self._is_stop_asked,
            )
        torch.set_rng_state(random)
        if metrics is None:
            self._owes_evaluation = True
            self._save_checkpoint(self.model_wrapped, None)
            raise PreemptedError(f"step {self.state.global_step}: stopped while evaluating; the same command goes on")
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model by our own export: Trainer's would tie T5's head in config.json and pickle the arguments.

        Args:
            output_dir: Instead of the run's folder.
            _internal_call: As in Trainer.
        """
        into = Path(output_dir) if output_dir else self._output_dir
        facts = self._checkpoints.facts if self._checkpoints else {}
        finished = Finished(self.state.global_step, {**facts, "resumable": False})
        with self._throughput.paused():
            together(lambda: self._export(into, finished))

    def _export(self, into: Path, finished: Finished | None = None) -> Written:
        return export_model(
            self.accelerator.unwrap_model(self.model),
            family=self._family,
            tokenizer=self._tokenizer,
            into=into,
            dtype=self._save_dtype,
            max_shard_size=self._max_shard_size,
            is_writer=self.is_world_process_zero(),
            finished=finished,
        )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Look at loss and gradients of every step, before torch's optimizers use them; DeepSpeed looks by itself.

        It is also where all ranks agree on the step after which they stop.
        """
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]  # as transformers has it
        if norm is None and self._guard is not None:
            norm = self._guard.norm
        # fp16 finds its loss scale by overflowing, so gradients tell nothing there.
        loss, value, is_finite = self._numerics.look(None if norm is None or self.args.fp16 else float(norm))
        is_bad, self.is_stopped = on_any_rank([not is_finite, self._is_stop_asked()], device=self.args.device)
        if is_bad and not self.is_deepspeed_enabled:
            model.zero_grad(set_to_none=True)
        step = self.state.global_step + 1
        if self._numerics.judge(step, loss=loss, grad_norm=value, is_finite=not is_bad):
            self._roll_back()
        return norm

    def _roll_back(self) -> None:
        """Put the last checkpoint's weights and optimizer back; the data goes on behind the step that failed."""
        checkpoint = newest_whole(self._checkpoints.disk) if self._checkpoints else None
        if checkpoint is None:
            raise NumericsError(
                "nan_policy: rollback needs a checkpoint, but there is none yet; use skip, or save sooner"
            )
        read_state(checkpoint, model=self._bare_model(), optimizer=self._bare_optimizer())
        log.warning("the weights are those of %s again; the samples since then are not trained", checkpoint)

    def _init_training_state(self, max_steps: int, *others: Any) -> tuple[int, int]:
        """Let the intervals of this start count, not those of the checkpoint."""
        trained = super()._init_training_state(max_steps, *others)
        self.state.compute_steps(self.args, max_steps)  # type: ignore[no-untyped-call]  # as transformers has it
        return trained

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Do nothing: weights come back with the optimizer's state, in its precision."""

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Put back our own checkpoint: DeepSpeed's would be unpickled, and fits its own number of ranks only."""
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)  # type: ignore[no-untyped-call]  # as transformers has it
        if self.is_deepspeed_enabled and is_replicated(self._bare_optimizer()):
            self._guard = StepGuard(self._bare_optimizer())
        if resume_from_checkpoint is not None:
            checkpoint = Path(resume_from_checkpoint)
            read_state(checkpoint, model=self._bare_model(), optimizer=self._bare_optimizer())
            self._shared = read_shared(checkpoint)
            self._own = own_part(
                checkpoint, rank=self.args.process_index, world_size=self.args.world_size, seed=self.args.seed
            )
            set_engine_state(self, self._shared)
        # Loading is no part of the throughput.
        self._throughput.restart()
        return prepared

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train nothing more once the last step is done: transformers would make one more."""
        if self._shared is not None and self._shared["owes_evaluation"]:
            # It was stopped in the middle.
            self._shared["owes_evaluation"] = False
            self._determine_best_metric(metrics=self._evaluate(None, None), trial=None)
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            # Here, because transformers tells a batch sampler of its epoch only where accelerate has wrapped it.
            self._batches.set_epoch(kwargs["epoch"])
            super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]  # as transformers has it

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Put back the random numbers of this rank, at the one moment when transformers is ready for it."""
        if self._own is not None and self._own["random"] is not None:
            set_random_state(self._own["random"])

    def _put_totals_back(self) -> None:
        """Go on with the loss that was not logged yet, and with what was counted."""
        if self._own is None or self._shared is None:
            return
        self._tr_loss.fill_(self._own["loss"])
        self._throughput.restore(self._own["tokens"], tokens_seen=self._shared["tokens_seen"])
        self._total_loss_scalar, self._globalstep_last_logged = self._shared["total_loss"], self._shared["last_logged"]
        self._numerics.num_left_out, self._initial_global_step = self._shared["left_out"], 0
        self._spikes.restore(self._shared["losses"])

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save by our own protocol: transformers' leaves half a checkpoint where it is interrupted."""
        if self._checkpoints is None:
            raise AssertionError("a trainer without checkpoints must not be asked to save one")
        self.store_flos()
        best = self.state.best_model_checkpoint
        self._note_best()
        with self._throughput.paused():
            if not self._checkpoints.save(self._parts()):
                self.state.best_model_checkpoint = best

    def _load_best_model(self) -> None:
        """Put back the weights of the best checkpoint; the optimizer is not needed any more."""
        best = Path(str(self.state.best_model_checkpoint))
        faults = verify(self._checkpoints.disk, best) if self._checkpoints else []
        if faults:
            raise ModelError(
                f"load_best_model_at_end: {best} must be whole, but {faults[0]}; leave the flag out to export the last "
                "weights"
            )
        read_state(best, model=self._bare_model(), optimizer=self._bare_optimizer(), only_weights=True)

    def _finalize_training(self, *args: Any) -> Any:
        """Keep transformers from removing checkpoints, and from loading the best one into a run that goes on later."""
        limit, is_best_wanted = self.args.save_total_limit, self.args.load_best_model_at_end
        self.args.save_total_limit = None
        self.args.load_best_model_at_end = is_best_wanted and not self.is_stopped
        done = super()._finalize_training(*args)  # type: ignore[no-untyped-call]  # as transformers has it
        self.args.save_total_limit, self.args.load_best_model_at_end = limit, is_best_wanted
        return done

    def _note_best(self) -> None:
        if self.state.best_global_step:
            best = self._output_dir / f"checkpoint-{self.state.best_global_step}"
            if best.is_dir() or self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(best)

    def _parts(self) -> Parts:
        return Parts(
            model=self._bare_model(),
            optimizer=self._bare_optimizer(),
            state=self.state,
            shared=engine_state(self)
            | {
                "total_loss": self._total_loss_scalar,
                "last_logged": self._globalstep_last_logged,
                "tokens_seen": self._throughput.tokens_seen,
                "left_out": self._numerics.num_left_out,
                "losses": self._spikes.window,
                "owes_evaluation": self._owes_evaluation,
            },
            own={"loss": float(self._tr_loss), "tokens": self._throughput.counts},
            export=self._export,
            world_size=self.args.world_size,
            is_resumable=not self.args.save_only_model,
        )

    def _bare_model(self) -> nn.Module:
        bare: nn.Module = self.accelerator.unwrap_model(self.model)
        return bare

    def _bare_optimizer(self) -> Any:
        wrapped: Any = self.optimizer
        return wrapped.optimizer

    def _evaluation_model(self) -> nn.Module:
        """Give the engine if training has made one; before that, what can evaluate."""
        if self.model_wrapped is self.model and self.is_deepspeed_enabled:
            raise AssertionError("evaluation under DeepSpeed needs the engine that training makes")
        return self.model_wrapped
