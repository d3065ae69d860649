"""What lies beside a log is shown without secrets and without the user's home."""

import json
from pathlib import Path

import pytest

from ds_sft.tools.run_report.record import read_run
from ds_sft.tools.run_report.surroundings import Surroundings, read_surroundings, without_home
from tests.tools.run_report.folders import rows, write_state


def beside(folder: Path) -> Surroundings:
    return read_surroundings(read_run(write_state(folder, rows(2))))


def write_manifest(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: {"size": 3, "sha256": "ab" * 32} for name in names}
    content = {"format": 1, "step": 4, "world_size": 2, "files": files, "facts": {"versions": {"torch": "2.13"}}}
    (folder / "MANIFEST.json").write_text(json.dumps(content))


def test_nothing_beside_the_log_is_required(tmp_path: Path) -> None:
    assert beside(tmp_path) == Surroundings({}, {}, [], "There is no MANIFEST.json that can be read.", {})


def test_files_are_those_of_the_export(tmp_path: Path) -> None:
    write_manifest(tmp_path, "b", "a")
    found = beside(tmp_path)
    assert [(file.name, file.size, file.sha256) for file in found.files] == [("a", 3, "ab" * 32), ("b", 3, "ab" * 32)]
    assert found.files_of == "2 of 2 files of the export, as its MANIFEST.json names them."
    assert found.facts == {"versions.torch": "2.13"}


def test_a_crashed_run_has_the_files_of_its_newest_checkpoint(tmp_path: Path) -> None:
    write_manifest(tmp_path / "checkpoint-4", "old")
    write_manifest(tmp_path / "checkpoint-12", "new")
    assert [file.name for file in beside(tmp_path).files] == ["new"]


def test_a_broken_manifest_and_broken_counters_are_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "MANIFEST.json").write_text("{")
    (tmp_path / "data_counters.json").write_text("[1]")
    assert (beside(tmp_path).files, beside(tmp_path).counters) == ([], {})


@pytest.mark.parametrize("line", ["hub_token: abc", "  token: abc", '"api_key": "abc"', "X_PASSWORD : abc"])
def test_secrets_of_the_settings_are_not_shown(line: str, tmp_path: Path) -> None:
    (tmp_path / "ds_sft.resolved.yaml").write_text(f"a: 1\n{line}\nnum_tokens: 5\n")
    text = beside(tmp_path).texts["ds_sft.resolved.yaml"]
    assert "abc" not in text
    assert text.startswith("a: 1\n")
    assert text.endswith("***\nnum_tokens: 5\n")


def test_long_settings_are_cut_and_say_so(tmp_path: Path) -> None:
    (tmp_path / "ds_sft.resolved.yaml").write_text("x" * 100_000)
    assert beside(tmp_path).texts["ds_sft.resolved.yaml"] == "x" * 60_000 + "\n... cut after 60000 characters"


def test_the_home_of_the_user_is_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert without_home("at /home/me/runs, '/home/me' and /home/media") == "at ~/runs, '~' and /home/media"
