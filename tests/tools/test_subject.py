"""What hosts must agree about, read from a command line."""

from pathlib import Path

import pytest

import ds_sft
from ds_sft.tools.subject import CODE, subject_of

OUR_CODE = {CODE: str(Path(ds_sft.__file__).parent)}


def test_flags_win_over_the_recipe_and_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("data_path: a.json\noutput_dir: out\ndeepspeed: z.json\n")
    subject = subject_of(["r.yaml", "--data-path=/b.json"])
    assert subject.output_dir == str(tmp_path / "out")
    assert subject.inputs == OUR_CODE | {
        "deepspeed": str(tmp_path / "z.json"), "data_path": "/b.json", "recipe": str(tmp_path / "r.yaml"),
    }  # fmt: skip


@pytest.mark.parametrize(("model", "is_compared"), [("google/flan-t5-xl", False), ("./m", True), ("/m", True)])
def test_a_name_on_the_hub_is_no_path(
    model: str, is_compared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ("model_name_or_path" in subject_of(["--model_name_or_path", model]).inputs) == is_compared


def test_without_a_command_line_only_our_code_is_compared() -> None:
    subject = subject_of([])
    assert (subject.inputs, subject.output_dir) == (OUR_CODE, None)
