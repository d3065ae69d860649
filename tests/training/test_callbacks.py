"""One line for each logging step, with the figures a user looks for, from rank zero only."""

import re

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from ds_sft.training.callbacks import ProgressCallback, training_line


def line(logs: dict[str, float], state: TrainerState, *, seconds_left: float = 0.0) -> str:
    """Give the line without the memory of the machine."""
    return re.sub(r"memory [\d./]+ GiB", "memory", training_line(logs, state, seconds_left=seconds_left))


def test_a_line_holds_every_figure_with_its_unit() -> None:
    logs = {"loss": 1.48196, "learning_rate": 3e-4, "grad_norm": 0.8154, "tokens_per_second": 12345.6}
    state = TrainerState(global_step=120, max_steps=3000, epoch=0.1234)
    assert line(logs, state, seconds_left=3725.4) == (
        "step 120/3000  4.0%  epoch 0.12  loss 1.4820  lr 3.00e-04  grad norm 0.815  12,346 tokens/s  memory  eta 1h02m"
    )


def test_figures_that_are_not_known_yet_do_not_stop_the_line() -> None:
    assert line({"loss": 2.0}, TrainerState()) == (
        "step 0/0  0.0%  epoch 0.00  loss 2.0000  lr 0.00e+00  grad norm nan  0 tokens/s  memory  eta 0m00s"
    )


def test_a_loss_that_is_not_a_number_is_shown_as_such() -> None:
    assert "loss nan" in line({"loss": float("nan")}, TrainerState(global_step=1, max_steps=2, epoch=0.5))


@pytest.mark.parametrize(
    ("seconds", "told_as"),
    [(0.4, "0m00s"), (59.6, "1m00s"), (61, "1m01s"), (3599, "59m59s"), (3600, "1h00m"), (90061, "25h01m")],
)
def test_the_time_left_is_in_minutes_and_seconds_or_hours_and_minutes(seconds: float, told_as: str) -> None:
    assert line({"loss": 1.0}, TrainerState(), seconds_left=seconds).endswith(f"eta {told_as}")


def test_the_memory_is_a_positive_number_of_gib() -> None:
    found = re.search(r"memory ([\d.]+)(/\d+)? GiB", training_line({"loss": 1.0}, TrainerState(), seconds_left=0))
    assert found is not None
    assert 0 < float(found[1]) < 1000


def log_once(logs: dict[str, float] | None, *, is_rank_zero: bool) -> None:
    args, control = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none"), TrainerControl()
    state = TrainerState(global_step=5, max_steps=10, epoch=0.5, is_world_process_zero=is_rank_zero)
    callback = ProgressCallback()
    callback.on_train_begin(args, state, control)
    callback.on_log(args, state, control, logs=logs)


def test_rank_zero_tells_a_training_step(told: pytest.LogCaptureFixture) -> None:
    log_once({"loss": 1.0}, is_rank_zero=True)
    (message,) = told.messages
    assert message.startswith("step 5/10  50.0%  epoch 0.50  loss 1.0000  ")


def test_rank_zero_tells_an_evaluation(told: pytest.LogCaptureFixture) -> None:
    log_once({"eval_loss": 0.5, "eval_perplexity": 1.64872, "eval_num_tokens": 77.0}, is_rank_zero=True)
    assert told.messages == ["eval at step 5  loss 0.5000  perplexity 1.649  over 77 tokens"]


@pytest.mark.parametrize(
    ("logs", "is_rank_zero"), [({"loss": 1.0}, False), (None, True), ({"train_runtime": 1.0}, True)]
)
def test_nothing_is_told_by_other_ranks_or_without_a_loss(
    told: pytest.LogCaptureFixture, logs: dict[str, float] | None, is_rank_zero: bool
) -> None:
    log_once(logs, is_rank_zero=is_rank_zero)
    assert told.messages == []
