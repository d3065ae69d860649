"""A run is read from whatever it left, and nothing is counted twice or taken for a number that is none."""

from pathlib import Path
from typing import Any

import pytest

from ds_sft.errors import MissingInputError
from ds_sft.tools.run_report.record import Mark, read_run
from tests.tools.run_report.folders import row, rows, write_events, write_state

NAN = float("nan")


def losses(folder: Path) -> dict[int, float | None]:
    return {one["step"]: one["loss"] for one in read_run(folder).rows}


def marks(folder: Path, kind: str) -> list[Mark]:
    return [mark for mark in read_run(folder).marks if mark.kind == kind]


def test_a_folder_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as raised:
        read_run(tmp_path / "none")
    assert str(raised.value) == f"folder: must exist, but {tmp_path / 'none'} does not; check the path"


def test_an_empty_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as raised:
        read_run(tmp_path)
    assert str(raised.value) == (
        f"folder: must hold trainer_state.json, a checkpoint with one, or events.jsonl, but {tmp_path} holds none; "
        "name the output_dir of a run"
    )


def test_a_plain_run_of_transformers_is_read(tmp_path: Path) -> None:
    history = [row(1, 3.0), row(2, NAN), {"step": 2, "eval_loss": 2.5}, {"step": 2, "train_runtime": 9.0}]
    run = read_run(write_state(tmp_path, history))
    assert losses(tmp_path) == {1: 3.0, 2: None}
    assert [(one["step"], one["eval_loss"]) for one in run.evaluations] == [(2, 2.5)]
    assert run.outcome == "not known: events.jsonl is missing; step 2 of 100"
    assert [(mark.step, mark.kind) for mark in run.marks] == [(2, "not finite")]


def test_a_crashed_run_is_read_from_its_newest_checkpoint_and_the_events_behind_it(tmp_path: Path) -> None:
    write_state(tmp_path / "checkpoint-4", rows(4))
    write_state(tmp_path / "checkpoint-10", rows(10))
    (tmp_path / "checkpoint-12").mkdir()
    (tmp_path / "checkpoint-12" / "trainer_state.json").write_text("{")
    events = [("start", {"step": 0}), *(("log", row(step, 9.0)) for step in range(1, 14))]
    run = read_run(write_events(tmp_path, *events))
    assert losses(tmp_path) == {step: 5.0 - step / 10 if step <= 10 else 9.0 for step in range(1, 14)}
    assert run.outcome == "cut off, or still running: its record has no end"
    assert [mark.step for mark in marks(tmp_path, "save")] == [4, 10, 12]


def test_what_a_resume_began_again_counts_once(tmp_path: Path) -> None:
    write_events(
        tmp_path,
        ("start", {"step": 0}),
        *(("log", row(step, 1.0)) for step in (1, 2, 3)),
        ("save", {"step": 3, "checkpoint": "checkpoint-3"}),
        ("log", row(4, 99.0)),
        ("log", row(5, 99.0)),
        ("resume", {"step": 3, "model": "M"}),
        ("log", row(4, 2.0)),
        ("end", {"outcome": "finished"}),
    )
    run = read_run(tmp_path)
    assert losses(tmp_path) == {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0}
    assert (run.outcome, run.num_resumes, run.figures["model"]) == ("finished", 1, "M")
    assert marks(tmp_path, "resume") == [Mark(3, "resume", "went on from step 3")]


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        ({"outcome": "stopped", "reason": "stopped after step 3; go on"}, "stopped after step 3; go on"),
        ({"outcome": "failed", "reason": "ConfigError: x"}, "failed: ConfigError: x"),
    ],
)
def test_a_run_that_did_not_finish_says_why(end: dict[str, Any], outcome: str, tmp_path: Path) -> None:
    write_events(tmp_path, ("start", {"step": 0}), ("log", row(3, 1.0)), ("end", end))
    assert read_run(tmp_path).outcome == outcome
    assert marks(tmp_path, "stop") == [Mark(3, "stop", end["reason"])]


def test_steps_that_were_left_out_and_spikes_are_marked(tmp_path: Path) -> None:
    write_state(tmp_path, [row(1, None, left_out_steps=2), row(2, 9.0, loss_spike=12.5)])
    assert [(mark.step, mark.kind) for mark in read_run(tmp_path).marks] == [
        (1, "not finite"),
        (1, "left out"),
        (2, "spike"),
    ]


@pytest.mark.parametrize("loss", ["5.0", True, [1], float("inf"), {"a": 1}, 10**400])
def test_what_is_no_finite_number_is_never_one(loss: Any, tmp_path: Path) -> None:
    write_state(tmp_path, [row(1, loss), {"step": "2", "loss": 1.0}, {"loss": 1.0}], step=1)
    assert losses(tmp_path) == {1: None}


def test_warnings_are_kept_as_they_were_told(tmp_path: Path) -> None:
    write_events(tmp_path, ("start", {}), ("warning", {"message": "step 2: left out"}))
    assert read_run(tmp_path).warnings == ["step 2: left out"]
