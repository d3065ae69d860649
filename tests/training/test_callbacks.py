"""One line for each logging step, with the figures a user looks for, from rank zero only."""

import re

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from ds_sft.training.callbacks import ProgressCallback, training_line


def test_a_line_holds_every_figure_with_its_unit() -> None:
    logs = {
        "loss": 1.48196,
        "learning_rate": 3e-4,
        "grad_norm": 0.8154,
        "tokens_per_second": 12345.6,
        "supervised_tokens_per_second": 4000.2,
        "tokens_per_second_per_rank": 6172.8,
        "data_wait_share": 0.0123,
        "peak_memory_bytes": 3 * 2**29,
        "mfu": 0.4149,
        "num_input_tokens_seen": 5,
        "seconds_left": 3725.4,
    }
    state = TrainerState(global_step=120, max_steps=3000, epoch=0.1234)
    assert re.sub(r"/\d+ GiB", " GiB", training_line(logs, state)) == (
        "step 120/3000  4.0%  epoch 0.12  loss 1.4820  lr 3.00e-04  grad norm 0.815  "
        "12,346 tokens/s (4,000 supervised, 6,173 a rank)  memory 1.5 GiB  data wait 1.2%  MFU 41.5%  eta 1h02m"
    )


def test_figures_that_are_not_known_are_left_out() -> None:
    assert training_line({"loss": 2.0}, TrainerState()) == (
        "step 0/0  0.0%  epoch 0.00  loss 2.0000  lr 0.00e+00  grad norm nan"
    )


def test_a_loss_that_is_not_a_number_is_shown_as_such() -> None:
    assert "loss nan" in training_line({"loss": float("nan")}, TrainerState(global_step=1, max_steps=2, epoch=0.5))


@pytest.mark.parametrize(
    ("seconds", "told_as"),
    [(0.4, "0m00s"), (59.6, "1m00s"), (61, "1m01s"), (3599, "59m59s"), (3600, "1h00m"), (90061, "25h01m")],
)
def test_the_time_left_is_in_minutes_and_seconds_or_hours_and_minutes(seconds: float, told_as: str) -> None:
    assert training_line({"loss": 1.0, "seconds_left": seconds}, TrainerState()).endswith(f"eta {told_as}")


def log_once(logs: dict[str, float] | None, *, is_rank_zero: bool) -> None:
    args, control = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none"), TrainerControl()
    state = TrainerState(global_step=5, max_steps=10, epoch=0.5, is_world_process_zero=is_rank_zero)
    callback = ProgressCallback()
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
