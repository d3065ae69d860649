"""Three files, the same bytes for the same run, with the samples that training saw."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.errors import SaveError
from ds_sft.tools.run_report.report import Wanted, report
from tests.tools.run_report.folders import Page, row, rows, samples_of_run, write_run, write_state

NUM = 30


def written(folder: Path, into: Path | None = None, *, is_json: bool = False) -> list[str]:
    return list(report(Wanted(folder, into, NUM, is_json=is_json)))


@pytest.fixture
def run(tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path) -> Path:
    """The folder of a run as it is left, its model and tokenizer too; what it began with has gone."""
    return write_run(tmp_path / "run", checkpoint=tiny_checkpoint, data=conversations_file)


def test_the_samples_are_those_of_training(run: Path, conversations_file: Path) -> None:
    written(run)
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    dataset = samples_of_run(run, conversations_file)
    articles = page.of("article")
    assert len(articles) == NUM
    for number, (start, end) in enumerate(zip(articles, [*articles[1:], len(page.elements)], strict=True)):
        spans = [index for index in page.of("span", style="tr") if start < index < end]
        trained = sum(int(page.elements[index][1]["data-tokens"] or 0) for index in spans)
        assert trained == sum(label != IGNORE_INDEX for label in dataset[number]["labels"])


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(run, tmp_path / name)
    names = ["report.html", "report.json", "report.png"]
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == names
    assert [(tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names] == [
        True
    ] * 3
    assert (tmp_path / "a" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_json_has_every_row_or_says_how_many_there_are(tmp_path: Path) -> None:
    write_state(tmp_path, [row(1, 3.0), row(2, float("nan")), row(3, 1.0)])
    (line,) = written(tmp_path, is_json=True)
    told = json.loads(line)
    assert told == json.loads((tmp_path / "report.json").read_text())
    assert told["series"]["loss"] == {"points": [[1, 3.0], [2, None], [3, 1.0]], "num_rows": 3}
    assert (told["num_rows"], told["num_rows_not_finite"], told["lowest"]["step"]) == (3, 1, 3)


def test_the_text_is_one_line(run: Path) -> None:
    assert written(run) == [f"{run}: finished; 20 rows, loss 4.9500 to 4.0000, 0 warnings"]


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"data_path": "/nowhere/d.json"}, "No samples: data_path: file must exist"),
        ({"data_path": None}, "No samples: command line: the following arguments are required: --data_path"),
        ({"model_max_length": "many"}, "No samples: command line: argument --model_max_length"),
    ],
)
def test_samples_that_cannot_be_made_again_are_explained(change: dict[str, Any], note: str, run: Path) -> None:
    settings = yaml.safe_load((run / "ds_sft.resolved.yaml").read_text()) | change
    (run / "ds_sft.resolved.yaml").write_text(yaml.safe_dump(settings))
    written(run)
    assert note in (run / "report.html").read_text(encoding="utf-8")


def test_a_model_of_the_hub_is_not_asked_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "config.json").unlink()
    monkeypatch.setattr("ds_sft.model.folder._fetch", lambda *_: pytest.fail("the network was asked"))
    settings = yaml.safe_load((run / "ds_sft.resolved.yaml").read_text()) | {"model_name_or_path": "some/model"}
    (run / "ds_sft.resolved.yaml").write_text(yaml.safe_dump(settings))
    written(run)
    assert "No samples: the tokenizer is on no disk of this machine." in (run / "report.html").read_text()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    write_state(tmp_path / "run", rows(2))
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="output_dir: must be writable, but "):
        written(tmp_path / "run", tmp_path / "file" / "report")
