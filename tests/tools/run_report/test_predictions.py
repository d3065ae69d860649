"""Answers of the newest step are shown, whole where they are short, and no line of the file can stop the report."""

from pathlib import Path
from typing import Any

import pytest

from ds_sft.tools.run_report.predictions import Predictions, read_predictions
from tests.tools.run_report.folders import write_predictions


def answer(step: Any, place: object = 0, **more: Any) -> dict[str, Any]:
    return {"step": step, "place": place, "question": "q", "expected": "e", "prediction": "p", **more}


def test_a_run_without_answers_has_nothing_to_tell(tmp_path: Path) -> None:
    assert read_predictions(tmp_path) == Predictions([], "")


def test_the_answers_of_the_newest_step_are_shown(tmp_path: Path) -> None:
    write_predictions(tmp_path, answer(5, 1), answer(10, 1, prediction="new"), answer(10, 2), answer(5, 2))
    told = read_predictions(tmp_path)
    assert told.rows == [("1", "q", "e", "new"), ("2", "q", "e", "p")]
    assert told.note == "2 of 2 answers at step 10, the newest in predictions.jsonl."


def test_fifty_are_shown_and_the_note_says_of_how_many(tmp_path: Path) -> None:
    write_predictions(tmp_path, *(answer(1, place) for place in range(70)))
    told = read_predictions(tmp_path)
    assert [cells[0] for cells in told.rows] == [str(place) for place in range(50)]
    assert told.note.startswith("50 of 70 answers")


def test_a_long_text_is_cut_and_says_so(tmp_path: Path) -> None:
    write_predictions(tmp_path, answer(1, prediction="x" * 1000, question="y" * 1007))
    ((_, question, _, prediction),) = read_predictions(tmp_path).rows
    assert (question, prediction) == ("y" * 1000 + " ... 7 characters more", "x" * 1000)


@pytest.mark.parametrize("line", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"step": "x"}', b'{"step": NaN}', b"7"])
def test_a_line_that_is_no_answer_costs_no_other_one(line: bytes, tmp_path: Path) -> None:
    write_predictions(tmp_path, answer(1))
    with (tmp_path / "predictions.jsonl").open("ab") as file:
        file.write(line)
    assert read_predictions(tmp_path).rows == [("0", "q", "e", "p")]


def test_a_file_of_no_answers_is_told(tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_text("")
    assert read_predictions(tmp_path) == Predictions([], "predictions.jsonl holds none that can be read.")


def test_what_is_missing_is_empty(tmp_path: Path) -> None:
    assert read_predictions(write_predictions(tmp_path, {"step": 2, "prediction": 5})).rows == [("", "", "", "5")]
