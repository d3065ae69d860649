"""What ranks do in tests of stops: the main job, which is asked to stop while it makes a step or evaluates."""

from typing import Any

from ds_sft import train as main_job
from ds_sft.errors import PreemptedError
from ds_sft.training.trainer import SftTrainer


def train_until(flags: list[str], step: int, is_evaluating: bool = False) -> str:
    """Run the main job, ask rank zero to stop in a step, or in the evaluation behind it; give what it says."""
    original = SftTrainer.evaluate if is_evaluating else SftTrainer.compute_loss

    def asked(self: SftTrainer, *given: Any, **named: Any) -> Any:
        now = self.state.global_step if is_evaluating else self.state.global_step + 1
        if now == step and self.args.process_index == 0:
            main_job.STOP._reason = "a test"
        return original(self, *given, **named)

    setattr(SftTrainer, original.__name__, asked)
    try:
        main_job.train(flags)
    except PreemptedError as error:
        return str(error)
    raise AssertionError("it was not stopped")
