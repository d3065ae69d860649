"""What of transformers' Trainer concerns checkpoints, done by our own protocol instead."""

import logging
from abc import abstractmethod
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer

from ds_sft.config.arguments import TrainingArguments
from ds_sft.errors import ModelError, NumericsError
from ds_sft.save.export import Finished
from ds_sft.save.staging import Written, newest_whole, verify
from ds_sft.save.state import read_state
from ds_sft.training.callbacks import BeginCallback
from ds_sft.training.checkpoints import Checkpoints, Parts, Plain, own_part, read_shared
from ds_sft.training.engine_state import engine_state, set_engine_state
from ds_sft.training.loaders import Batches
from ds_sft.training.numerics import Numerics, Spikes, StepGuard
from ds_sft.training.random_state import set_random_state
from ds_sft.training.throughput import Throughput
from ds_sft.zero.state import is_replicated

log = logging.getLogger(__name__)


class ResumingTrainer(Trainer):
    """Saves checkpoints that hold all that training depends on, and goes on from them with equal numbers.

    Args:
        args: Training arguments.
        checkpoints: Where and how checkpoints are saved; None for a trainer that saves none.
        throughput: What it counts is part of a checkpoint.
        **others: As Trainer takes them.
    """

    _batches: Batches

    def __init__(
        self, *, args: TrainingArguments, checkpoints: Checkpoints | None, throughput: Throughput, **others: Any
    ) -> None:
        self._checkpoints = checkpoints
        self._throughput = throughput
        self._numerics = Numerics(args.nan_policy, args.device)
        self._spikes = Spikes()
        self._guard: StepGuard | None = None
        self._own: Plain | None = None
        self._shared: Plain | None = None
        self._owes_evaluation = False
        self.is_stopped = False
        self._output_dir = Path(str(args.output_dir))
        super().__init__(args=args, **others)
        self.add_callback(BeginCallback(self._begin))

    @abstractmethod
    def _export(self, into: Path, finished: Finished | None = None) -> Written:
        """Write the model for inference into a folder, with all ranks."""

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

    def _begin(self) -> None:
        # Loading is no part of the throughput.
        self._throughput.begin(self.state.global_step)
        self._put_totals_back()

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
