"""What happened in a run can be read afterwards: what it was, its log, its stops, and how it ended."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch import nn
from transformers import TrainerState

from ds_sft.config.arguments import TrainingArguments
from ds_sft.data.account import Account
from ds_sft.errors import ConfigError, PreemptedError
from ds_sft.families import family_named
from ds_sft.save.events import Event, read_events
from ds_sft.training.events import Record, recorded
from ds_sft.training.header import Given, header_lines, run_figures
from tests.conftest import CONFIGS
from tests.jobs import main_flags, read_json, train_and_log
from tests.nan_jobs import train_with_fault
from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def output(tiny_checkpoint: Path, conversations_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a ZeRO-3 run on two ranks that left out step 2, was stopped after step 3, and went on."""
    folder = tmp_path_factory.mktemp("events")
    flags = main_flags(
        *(tiny_checkpoint, conversations_file, folder),
        max_steps=4,
        num_data=8,
        save_strategy="steps",
        save_steps=2,
        eval_data_path=conversations_file,
        eval_strategy="steps",
        eval_steps=4,
        deepspeed=CONFIGS / "zero3.json",
    )
    run_ranks(_stopped, flags, world_size=2)
    run_ranks(train_and_log, flags, world_size=2)
    return folder


def _stopped(flags: list[str]) -> None:
    from ds_sft.train import STOP
    from ds_sft.training.callbacks import ProgressCallback

    original = ProgressCallback.on_log

    def stop_after(self: Any, args: Any, state: Any, *given: Any, **named: Any) -> None:
        original(self, args, state, *given, **named)
        if state.global_step == 2:
            STOP._reason = "a test"

    setattr(ProgressCallback, "on_log", stop_after)  # noqa: B010  # a method must not be assigned, says mypy
    with pytest.raises(PreemptedError):
        train_with_fault(flags, "loss", [2])


def kinds(events: list[Event]) -> list[str]:
    return [event["event"] for event in events]


def of_kind(folder: Path, kind: str) -> list[Event]:
    return [event for event in read_events(folder / "events.jsonl") if event["event"] == kind]


def test_a_run_that_was_stopped_and_went_on_is_told_in_its_order(output: Path) -> None:
    first = ["start", "log", "warning", "log", "save", "log", "save", "totals", "end"]
    second = ["resume", "log", "evaluation", "save", "totals", "end"]
    assert kinds(read_events(output / "events.jsonl")) == first + second
    assert [event["outcome"] for event in of_kind(output, "end")] == ["stopped", "finished"]
    assert [event["checkpoint"] for event in of_kind(output, "save")] == [
        "checkpoint-2",
        "checkpoint-3",
        "checkpoint-4",
    ]


def test_the_rows_are_those_of_the_log_with_null_for_a_step_that_was_left_out(output: Path) -> None:
    history = read_json(output / "trainer_state.json")["log_history"]
    rows = [
        {name: value for name, value in event.items() if name not in {"event", "time"}}
        for event in of_kind(output, "log")
    ]
    assert rows == [row for row in history if "loss" in row]
    assert [row["loss"] is None for row in rows] == [False, True, False, False]
    assert rows[1]["left_out_steps"] == 1


def test_the_first_event_counts_whole_weights_and_tells_the_batch(output: Path) -> None:
    (start,), (resume,) = of_kind(output, "start"), of_kind(output, "resume")
    with safe_open(output / "model.safetensors", "pt") as weights:
        total = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    assert (start["trained_parameters"], start["parameters"]) == (total, total)
    factors = {"micro": 8, "accumulation": 1, "ranks": 2}
    assert start["batch"] == {"unit": "samples", "size": 16, **factors}
    assert (start["step"], start["steps"], start["zero_stage"], start["precision"]) == (0, 4, 3, "fp32")
    assert (
        start["supervised_tokens"] == read_json(output / "data_counters.json")["train"]["counters"]["tokens_supervised"]
    )
    measured = {"event", "time", "step", "peak_flops"}
    assert {name: value for name, value in resume.items() if name not in measured} == {
        name: value for name, value in start.items() if name not in measured
    }
    assert 1e6 < start["peak_flops"] < 1e15
    assert resume["step"] == 3


FIGURES: dict[str, Any] = {
    "model": "M",
    "family": "f",
    "trained_parameters": 1500,
    "parameters": 3000,
    "precision": "bf16",
    "peak_flops": 61.25e12,
    "device": "D",
    "zero_stage": 2,
    "batch": {"unit": "samples", "size": 64, "micro": 4, "accumulation": 2, "ranks": 8},
    "steps": 120,
    "samples": 48,
    "tokens": 2000,
    "supervised_tokens": 500,
}


def test_the_header_has_four_lines() -> None:
    assert header_lines(FIGURES) == [
        "model: M (f), 1,500 of 3,000 parameters train (50.00 %), bf16, ZeRO-2",
        "batch: 64 samples = 4 micro x 2 accumulate x 8 ranks; 120 steps, 48 samples",
        "tokens: 2,000 an epoch, 500 of them supervised (25.0 %)",
        "peak: 61.2 TFLOP/s measured with matrix products in bf16 on D",
    ]


@pytest.mark.parametrize(("family", "unit"), [("flan_t5", "source tokens at most"), ("yuan2", "tokens at most")])
def test_without_deepspeed_a_packed_step_is_told_in_tokens(family: str, unit: str, tmp_path: Path) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, packing=True, per_device_train_batch_size=3, model_max_length=100
    )
    account = Account(tmp_path / "d", "pairs", tmp_path / "c", {"samples": 5}, (), {})
    figures = run_figures(Given("M", family_named(family), account, {}), nn.Linear(3, 2), args, TrainerState())
    assert figures["batch"] == {"unit": unit, "size": 300, "micro": 300, "accumulation": 1, "ranks": 1}
    assert (figures["zero_stage"], figures["trained_parameters"], figures["tokens"]) == (None, 8, None)


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    unknown = dict.fromkeys(("zero_stage", "tokens", "supervised_tokens", "peak_flops"))
    first, _, last = header_lines({**FIGURES, **unknown})
    assert first.endswith("bf16, without DeepSpeed")
    assert last == "tokens: not counted, because samples are made on access"


def begun(record: Record) -> None:
    record.begin("start", step=0)


def failing(record: Record) -> None:
    begun(record)
    raise ConfigError("first fault", "second fault")


def warned_before(record: Record) -> None:
    logging.getLogger("ds_sft.some").warning("value %d", 3)
    logging.getLogger("ds_sft.some").info("no warning")
    begun(record)


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (begun, [("start", None), ("end", "finished")]),
        (warned_before, [("start", None), ("warning", "value 3"), ("end", "finished")]),
        (failing, [("start", None), ("end", "ConfigError: first fault")]),
    ],
)
def test_warnings_and_the_end_are_recorded(
    act: Callable[[Record], None], expected: list[tuple[str, str | None]], tmp_path: Path
) -> None:
    try:
        with recorded(tmp_path, is_writer=True) as record:
            act(record)
    except ConfigError:
        assert act is failing
    events = read_events(tmp_path / "events.jsonl")
    told = [event.get("message") or event.get("reason") or event.get("outcome") for event in events]
    assert list(zip(kinds(events), told, strict=True)) == expected


def test_a_run_that_never_began_leaves_no_file(tmp_path: Path) -> None:
    with recorded(tmp_path, is_writer=True) as record:
        record.write("log", loss=1.0)
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_leave_no_file(tmp_path: Path) -> None:
    with recorded(tmp_path, is_writer=False) as record:
        begun(record)
    assert list(tmp_path.iterdir()) == []
