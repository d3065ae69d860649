"""Our trainer: transformers' own with the loss, the batches and the numbers of this package."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from ds_sft.config.arguments import TrainingArguments, save_dtype
from ds_sft.contracts import Family
from ds_sft.data.collate import Batch
from ds_sft.errors import PreemptedError
from ds_sft.model.lora import Adapters
from ds_sft.model.loss import token_mean_loss
from ds_sft.save.adapter import export_adapter
from ds_sft.save.export import Finished, export_model, published_config, write_json
from ds_sft.save.staging import Written
from ds_sft.save.tensors import DTYPES
from ds_sft.training.callbacks import ProgressCallback, ResolvedConfigCallback, StopCallback
from ds_sft.training.checkpoints import Checkpoints, without_nan
from ds_sft.training.collator import collator_for
from ds_sft.training.compute import compute_of
from ds_sft.training.evaluation import evaluation_metrics
from ds_sft.training.inputs import inputs_of
from ds_sft.training.loaders import evaluation_batches, loader_of, training_batches
from ds_sft.training.numerics import on_any_rank
from ds_sft.training.predictions import Predicting
from ds_sft.training.resuming import ResumingTrainer
from ds_sft.training.sharing import evaluation_units, training_units
from ds_sft.training.throughput import Throughput
from ds_sft.zero.ranks import together
from ds_sft.zero.state import at_rest


class SftTrainer(ResumingTrainer):
    """Trains with a loss that is normalised by the supervised tokens of the whole global batch.

    Args:
        model: With its vocabulary grown.
        adapters: What trains instead of the model; None for the whole model.
        args: Training arguments.
        family: Card of the model.
        tokenizer: Saved beside the model.
        train_dataset: Samples with `input_ids` and `labels`.
        eval_dataset: The same, or None.
        predicting: Questions that evaluations answer; None for none.
        padding_side: Side on which inputs are padded.
        checkpoints: Where and how checkpoints are saved; None for a trainer that saves none.
        is_stop_asked: Tells whether this rank has been asked to stop; all ranks then stop after the same step.
    """

    def __init__(  # noqa: PLR0913  # the parts of a run
        self,
        *,
        model: PreTrainedModel,
        adapters: Adapters | None = None,
        args: TrainingArguments,
        family: Family,
        tokenizer: PreTrainedTokenizerBase,
        train_dataset: Dataset[Any],
        eval_dataset: Dataset[Any] | None = None,
        predicting: Predicting | None = None,
        padding_side: Any = "right",
        checkpoints: Checkpoints | None = None,
        is_stop_asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_stop_asked, self._predicting = is_stop_asked, predicting
        self._family = family
        self._tokenizer = tokenizer
        self._adapters = adapters
        self._save_dtype = DTYPES[save_dtype(args, is_adapted=adapters is not None)]
        self._max_shard_size = args.max_shard_size
        compute = compute_of(family, model.config.to_dict(), args, is_frozen=adapters is not None)
        super().__init__(
            model=adapters.model if adapters else model,
            args=args,
            checkpoints=checkpoints,
            throughput=Throughput(args.device, counts_targets=family.is_encoder_decoder, compute=compute),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            data_collator=collator_for(
                *(family, model, tokenizer, padding_side),
                is_flat=args.packing,
                on_gpu=args.device.type == "cuda",
                shares_prefixes=bool(args.share_prefixes),
            ),
            compute_loss_func=token_mean_loss,
            callbacks=[ProgressCallback(), StopCallback(lambda: self.is_stopped)],
        )
        # The loss is ours alone: the model gives a sum over labels that are already aligned with its positions.
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
        args: Any = self.args
        samples: Any = training_units(self.train_dataset, args)
        self._batches = training_batches(samples, args, is_encoder_decoder=self._family.is_encoder_decoder)
        keeps_workers = args.dataloader_persistent_workers
        return loader_of(samples, self._batches, args, self.data_collator, keeps_workers=keeps_workers)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Deal out the samples ourselves here too: accelerate repeats some, and a flat batch cannot drop them again.

        Args:
            eval_dataset: Instead of the one given at the start.

        Returns:
            The micro-batches of this rank.
        """
        args: Any = self.args
        samples: Any = evaluation_units(self.eval_dataset if eval_dataset is None else eval_dataset, args)
        batches = evaluation_batches(samples, args, is_encoder_decoder=self._family.is_encoder_decoder)
        return loader_of(samples, batches, args, self.data_collator)

    def get_total_train_batch_size(self, args: Any) -> int:
        """Give the mean samples of a step: with packing they differ, and batch size and ranks do not tell it.

        Args:
            args: As given at the start.

        Returns:
            At least 1; only the samples per second of the whole run come from it.
        """
        samples: Any = self.train_dataset
        num_steps = math.ceil(len(self._batches) / int(args.gradient_accumulation_steps))
        return max(1, round(len(samples) / num_steps))

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
        smoothing = self.args.label_smoothing_factor
        batches = self._throughput.taken(epoch_iterator)
        on_device = (inputs_of(batch, device=device, label_smoothing=smoothing) for batch in batches)
        return super().get_batch_samples(on_device, num_batches, device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add throughput over all ranks; every rank comes here at a logging step, so it may be gathered.

        Args:
            logs: What Trainer measured.
            start_time: As in Trainer.
        """
        if "loss" in logs:
            logs |= self._throughput.report(self.accelerator.gather)
            logs["seconds_left"] = self._throughput.seconds_left(self.state.global_step, last_step=self.state.max_steps)
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
            `loss`, `perplexity`, `num_tokens` and the scores of answers, each with the prefix.
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
                predicting=self._predicting,
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

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Write what was measured at once: transformers reads its own file first, which a killed run leaves empty.

        Args:
            split: Begins the name of the file.
            metrics: What was measured.
            combined: As in Trainer.
        """
        if self.is_world_process_zero():
            for name in (split, *(["all"] if combined else [])):
                write_json(self._output_dir / f"{name}_results.json", without_nan(metrics))

    def save_state(self) -> None:
        """Write the record of the run, whole or not at all."""
        if self.is_world_process_zero():
            write_json(self._output_dir / "trainer_state.json", without_nan(asdict(self.state)))

    def _export(self, into: Path, finished: Finished | None = None) -> Written:
        bare: Any = self.accelerator.unwrap_model(self.model)
        to: dict[str, Any] = {
            "family": self._family,
            "tokenizer": self._tokenizer,
            "into": into,
            "dtype": self._save_dtype,
            "is_writer": self.is_world_process_zero(),
            "finished": finished,
        }
        with at_rest(self._bare_optimizer()):
            if self._adapters is None:
                return export_model(bare, max_shard_size=self._max_shard_size, **to)
            return export_adapter(
                self._adapters.tensors(),
                self._adapters.config(),
                published_config(bare.get_base_model(), family=self._family, dtype=torch.bfloat16),
                fits_plain_peft=self._adapters.base.is_as_stored,
                **to,
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

    def _evaluation_model(self) -> nn.Module:
        """Give the engine if training has made one; before that, what can evaluate."""
        if self.model_wrapped is self.model and self.is_deepspeed_enabled:
            raise AssertionError("evaluation under DeepSpeed needs the engine that training makes")
        return self.model_wrapped
