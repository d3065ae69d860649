"""The one subclass of transformers' Trainer; every override says why it is there."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer

from ds_sft.config.arguments import TrainingArguments
from ds_sft.contracts import IGNORE_INDEX, Family
from ds_sft.data.batching import EpochOrder, group_by_length_order
from ds_sft.data.collate import Batch, DataCollatorForCausalDataset, DataCollatorForSupervisedDataset
from ds_sft.errors import ModelError
from ds_sft.model.loss import token_losses, token_mean_loss
from ds_sft.save.export import export_model
from ds_sft.training.callbacks import ProgressCallback, ResolvedConfigCallback

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_TENSOR_CORE_MULTIPLE = 8


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
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        args: TrainingArguments,
        family: Family,
        tokenizer: PreTrainedTokenizerBase,
        train_dataset: Dataset[Any],
        eval_dataset: Dataset[Any] | None = None,
        padding_side: Any = "right",
    ) -> None:
        self._family = family
        self._tokenizer = tokenizer
        self._save_dtype = _DTYPES[args.save_dtype]
        self._max_shard_size = args.max_shard_size
        self._output_dir = Path(str(args.output_dir))
        self._token_counts = torch.zeros(2, dtype=torch.long, device=args.device)
        self._tokens_seen = 0
        self._last_log = time.perf_counter()
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            data_collator=_collator(family, model, tokenizer, padding_side, on_gpu=args.device.type == "cuda"),
            compute_loss_func=partial(token_mean_loss, label_smoothing=args.label_smoothing_factor),
            callbacks=[ProgressCallback()],
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
        """Count tokens on the way, without waiting for the device.

        Args:
            model: The engine.
            inputs: One micro-batch.
            num_items_in_batch: Supervised tokens of the global batch.

        Returns:
            The loss, a scalar.
        """
        supervised = inputs["labels"].ne(IGNORE_INDEX).sum()
        tokens = inputs["attention_mask"].sum()
        if self._family.is_encoder_decoder:
            # The targets are tokens of their own, and all of them are supervised.
            tokens = tokens + supervised
        self._token_counts += torch.stack([tokens, supervised]).to(self._token_counts.device)
        return super().training_step(model, inputs, num_items_in_batch)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Group by length so that no rank always gets the longest samples, from lengths that are known.

        transformers' own sampler sorts each group downwards, so that rank zero gets the longer part of every batch,
        draws from torch's global generator, and reads every sample to learn its length.
        """
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        samples: Any = train_dataset or self.train_dataset
        lengths = samples.lengths()
        size = self.args.train_batch_size * self.args.world_size
        order = partial(group_by_length_order, lengths, batch_size=size, seed=self.args.seed)
        # A whole number at the beginning of an epoch, and above it where a resumed one goes on.
        return EpochOrder(lambda: order(epoch=int((self.state.epoch or 0.0) + 1e-6)), num_samples=len(lengths))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add throughput over all ranks; every rank comes here at a logging step, so it may be summed.

        Args:
            logs: What Trainer measured.
            start_time: As in Trainer.
        """
        if "loss" in logs:
            tokens, supervised = self.accelerator.reduce(self._token_counts, reduction="sum").tolist()
            now = time.perf_counter()
            seconds = now - self._last_log
            self._tokens_seen += tokens
            self._token_counts.zero_()
            self._last_log = now
            logs["tokens_per_second"] = round(tokens / seconds, 1)
            logs["supervised_tokens_per_second"] = round(supervised / seconds, 1)
            logs["num_input_tokens_seen"] = self._tokens_seen
        super().log(logs, start_time)

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
        # Throughput is that of training: the time of an evaluation or a save does not count.
        started = time.perf_counter()
        loader = self.get_eval_dataloader(eval_dataset)
        model = self._evaluation_model()
        was_training = model.training
        model.eval()
        sums = torch.zeros(2, dtype=torch.double, device=self.args.device)
        for batch in loader:
            inputs = self._prepare_inputs(batch)
            labels = inputs.pop("labels")
            with torch.no_grad(), self.compute_loss_context_manager():
                losses = token_losses(model(**inputs, use_cache=False)["logits"], labels)
            rows = torch.stack([losses.double().sum(dim=1), labels.ne(IGNORE_INDEX).sum(dim=1).double()], dim=1)
            # Row by row, because the last batch is filled up with repeated samples, which gathering drops again.
            sums += self.accelerator.gather_for_metrics(rows).sum(dim=0)
        model.train(was_training)
        total, num_tokens = sums.tolist()
        loss = total / max(num_tokens, 1.0)
        metrics = {
            f"{metric_key_prefix}_loss": loss,
            f"{metric_key_prefix}_perplexity": math.exp(min(loss, 700.0)),
            f"{metric_key_prefix}_num_tokens": num_tokens,
        }
        self._last_log += time.perf_counter() - started
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model by our own export: Trainer's would tie T5's head in config.json and pickle the arguments.

        Args:
            output_dir: Instead of the run's folder.
            _internal_call: As in Trainer.
        """
        started = time.perf_counter()
        # Without DeepSpeed a checkpoint has no other copy of the weights, and resuming must not round them.
        is_only_copy = _internal_call and not self.is_deepspeed_enabled
        dtype = torch.float32 if is_only_copy else self._save_dtype
        export_model(
            self.accelerator.unwrap_model(self.model),
            family=self._family,
            tokenizer=self._tokenizer,
            into=Path(output_dir) if output_dir else self._output_dir,
            dtype=dtype,
            max_shard_size=self._max_shard_size,
            is_writer=self.args.should_save,
        )
        self._last_log += time.perf_counter() - started

    def _evaluation_model(self) -> nn.Module:
        """Give the engine if training has made one; before that, what can evaluate."""
        if self.model_wrapped is self.model and self.is_deepspeed_enabled:
            raise AssertionError("evaluation under DeepSpeed needs the engine that training makes")
        return self.model_wrapped


def _collator(
    family: Family, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, padding_side: Any, *, on_gpu: bool
) -> DataCollatorForCausalDataset | DataCollatorForSupervisedDataset:
    """Make the collator with the ids that the tokenizer and the model's config name."""
    multiple_of = _TENSOR_CORE_MULTIPLE if on_gpu else 1
    if not family.is_encoder_decoder:
        return DataCollatorForCausalDataset(tokenizer.pad_token_id, padding_side, multiple_of)
    pad, start = model.config.pad_token_id, model.config.decoder_start_token_id
    if pad is None:
        raise ModelError(f"config.json: pad_token_id must be a number, but is {pad}; T5's own is 0")
    if start is None:
        # What training starts from, generation must start from as well.
        start = model.config.decoder_start_token_id = pad
        if model.generation_config is not None:
            model.generation_config.decoder_start_token_id = pad
    return DataCollatorForSupervisedDataset(
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=start,
        decoder_pad_token_id=pad,
        padding_side=padding_side,
        multiple_of=multiple_of,
    )
