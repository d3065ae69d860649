"""Answers in the middle of training are the same on any number of ranks and stage, and those of the exported model."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from ds_sft.config.parse import parse
from ds_sft.data.questions import Asked
from ds_sft.tools.asking import Asking
from ds_sft.tools.generate import Request, generate
from ds_sft.training.predictions import PREDICTIONS, Predicting, keep_predictions, predicting_faults
from ds_sft.training.text_scores import text_scores
from tests.conftest import CONFIGS
from tests.jobs import evaluate, main_flags
from tests.ranks import run_ranks

FLAGS: dict[str, Any] = {
    "max_steps": 2,
    "learning_rate": 1e-5,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 3,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "predict_with_generate": True,
    "num_predict": 7,
    "predict_max_new_tokens": 8,
}
FAMILIES = ["tiny_checkpoint", "tiny_yuan2"]
SCORES = ["eval_bleu", "eval_chrf", "eval_rouge1", "eval_rouge2", "eval_rougeL"]


def talkative(checkpoint: Path, into: Path) -> Path:
    """Make a model that answers each question in its own way: with small weights it repeats one token."""
    shutil.copytree(checkpoint, into)
    weights = load_file(into / "model.safetensors")
    for name in weights:
        weights[name] *= 4 if any(part in name for part in ("proj", "conv", "block")) else 1
    save_file(weights, into / "model.safetensors", metadata={"format": "pt"})
    return into


def predicted(model: Path, data: Path, output: Path, world_size: int, **more: Any) -> tuple[dict[str, float], str]:
    flags = main_flags(model, data, output, eval_data_path=data, **{**FLAGS, **more})
    row = run_ranks(evaluate, flags, world_size=world_size)[0]
    return {name: row[name] for name in SCORES}, (output / PREDICTIONS).read_text(encoding="ascii")


@pytest.mark.parametrize("fixture", FAMILIES)
def test_answers_and_scores_are_the_same_in_one_process_and_on_ranks_and_after_the_export(
    fixture: str, request: pytest.FixtureRequest, conversations_file: Path, tmp_path: Path
) -> None:
    model = talkative(request.getfixturevalue(fixture), tmp_path / "model")
    alone = predicted(model, conversations_file, tmp_path / "alone", 1)
    two = {"per_device_train_batch_size": 2}
    assert predicted(model, conversations_file, tmp_path / "3", 2, deepspeed=CONFIGS / "zero3.json", **two) == alone
    if fixture == FAMILIES[1]:
        assert predicted(model, conversations_file, tmp_path / "2", 2, deepspeed=CONFIGS / "zero2.json", **two) == alone
    rows = [json.loads(line) for line in alone[1].splitlines()]
    assert [row["step"] for row in rows] == [1] * 7 + [2] * 7
    assert list(rows[0]) == ["step", "place", "question", "expected", "prediction"]
    last = {row["place"]: row for row in rows[7:]}
    assert len(last) == 7
    assert len({row["prediction"] for row in rows[7:]}) > 4
    found = text_scores(*([row[name] for row in rows[7:]] for name in ("prediction", "expected")))
    assert alone[0] == pytest.approx({f"eval_{name}": score for name, score in found.items()})
    output = tmp_path / "answers.jsonl"
    list(generate(Request(str(tmp_path / "alone"), conversations_file, output, Asking(max_new_tokens=8))))
    answers = {row["place"]: row["prediction"] for row in map(json.loads, output.read_text().splitlines())}
    assert {place: row["prediction"] for place, row in last.items()} == {place: answers[place] for place in last}


def test_answers_of_a_step_that_comes_again_replace_the_earlier_ones(tmp_path: Path) -> None:
    asked = Asked("f:record 1", "", "q", "a", [1])
    predicting = Predicting([asked], SimpleNamespace(), 8, 1, tmp_path)  # type: ignore[arg-type]  # not used here
    for step, text in ((5, "five"), (10, "ten"), (15, "fifteen")):
        keep_predictions(predicting, [text], step=step)
    with (tmp_path / PREDICTIONS).open("a") as file:
        file.write("torn")
    keep_predictions(predicting, ["ten again"], step=10)
    rows = [json.loads(line) for line in (tmp_path / PREDICTIONS).read_text().splitlines()]
    assert [(row["step"], row["prediction"]) for row in rows] == [(5, "five"), (10, "ten again")]
    assert [file.name for file in tmp_path.iterdir()] == [PREDICTIONS]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"eval_strategy": "no"}, "predict_with_generate: needs evaluations, but eval_strategy is no"),
        ({"num_predict": 0}, "num_predict: must be at least 1, but is 0"),
        ({"predict_max_new_tokens": -3}, "predict_max_new_tokens: must be at least 1, but is -3"),
    ],
)
def test_what_cannot_be_predicted_is_told_before_anything_is_loaded(
    flags: dict[str, Any], told: str, tmp_path: Path
) -> None:
    settings = parse(main_flags(Path("m"), Path("d"), tmp_path, **{**FLAGS, **flags}))
    (fault,) = predicting_faults(settings)
    assert str(fault).startswith(told)
    settings = parse(main_flags(Path("m"), Path("d"), tmp_path, **{**FLAGS, **flags, "predict_with_generate": False}))
    assert list(predicting_faults(settings)) == []
