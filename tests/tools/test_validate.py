"""Validating looks at every record and ends in the documented code when training would learn nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ds_sft.errors import DataError
from ds_sft.tools import validate as verb
from ds_sft.tools.findings import Findings
from ds_sft.tools.inputs import read_inputs
from ds_sft.tools.validate import Effort, find_everywhere, validate

TEXT = Effort(is_json=False, num_workers=1)
JSON = Effort(is_json=True, num_workers=1)
ANSWERED = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "It is a loss."}]
UNKNOWN_ROLE = [{"from": "robot", "value": "x"}]
ROBOT = "unknown_role: turn 1 has role 'robot'; known are human, user, gpt, assistant, chatgpt, system"


def flags(model: Path, file: Path, *conversations: object) -> list[str]:
    if conversations:
        file.write_text(json.dumps([{"conversations": one} for one in conversations]), encoding="utf-8")
    return ["--model_name_or_path", str(model), "--data_path", str(file)]


def test_a_good_file_is_told_in_lines_and_with_the_next_command(
    tiny_checkpoint: Path, tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "d.json"
    asked = flags(tiny_checkpoint, file, ANSWERED, UNKNOWN_ROLE)
    lines = list(validate(asked, TEXT))
    assert lines[0] == f"{file}: 2 records, 1 usable, 1 samples"
    assert f"      {file}:record 2: {ROBOT}" in lines
    assert told.messages[-1].startswith("next: ds-sft preview --model_name_or_path ")


def test_json_is_one_object(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (line,) = validate(flags(tiny_checkpoint, tmp_path / "d.json", ANSWERED), JSON)
    told = json.loads(line)
    assert (told["records"], told["usable"], told["samples"]) == (1, 1, 1)
    assert line.isascii()


def test_a_file_that_teaches_nothing_is_told_with_its_first_records_after_the_report(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "d.json"
    lines: list[str] = []
    with pytest.raises(DataError) as caught:
        lines.extend(validate(flags(tiny_checkpoint, file, UNKNOWN_ROLE, UNKNOWN_ROLE), TEXT))
    assert caught.value.exit_code == 65
    first, *others = caught.value.faults
    assert first.startswith(f"{file}: must hold at least one sample with an answer, but none of 2 records gave one; ")
    assert others == [f"{file}:record 1: {ROBOT}", f"{file}:record 2: {ROBOT}"]
    assert lines[0] == f"{file}: 2 records, 0 usable, 0 samples"


def test_a_limit_that_leaves_no_sample_is_the_same_fault(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 1 records gave one"):
        list(validate([*flags(tiny_checkpoint, tmp_path / "d.json", ANSWERED), "--model_max_length", "9"], TEXT))


def test_where_training_would_stop_at_a_rejected_record_validating_lists_them_all(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "d.json"
    asked = flags(tiny_checkpoint, file, UNKNOWN_ROLE, ANSWERED, UNKNOWN_ROLE)
    with pytest.raises(DataError) as caught:
        list(validate([*asked, "--strict_data"], TEXT))
    assert caught.value.faults == (
        f"{file}:record 1: {ROBOT}; mend it or drop --strict_data",
        f"{file}:record 3: {ROBOT}; mend it or drop --strict_data",
    )


@pytest.mark.parametrize("folder", ["tiny_checkpoint", "tiny_yuan2"])
def test_several_processes_find_what_one_finds(
    folder: str, request: pytest.FixtureRequest, conversations_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "_BYTES_OF_ONE_PROCESS", 0)
    monkeypatch.setattr(verb, "_BYTES_OF_A_STRETCH", 2000)
    inputs = read_inputs(flags(request.getfixturevalue(folder), conversations_file), verb="validate")
    assert find_everywhere(inputs, num_workers=2) == find_everywhere(inputs, num_workers=1)


def test_a_file_is_cut_into_stretches_without_gap_or_overlap(
    tiny_checkpoint: Path, conversations_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[range] = []

    def spread(_work: Any, _shared: Any, stretches: list[range], *, num_workers: int) -> Iterator[Findings]:
        seen.extend(stretches)
        return iter(())

    monkeypatch.setattr(verb, "spread", spread)
    monkeypatch.setattr(verb, "_BYTES_OF_A_STRETCH", 1500)
    inputs = read_inputs(flags(tiny_checkpoint, conversations_file), verb="validate")
    find_everywhere(inputs, num_workers=2)
    assert [index for stretch in seen for index in stretch] == list(range(len(inputs.records)))
    assert len(seen) > 3


def test_away_from_a_terminal_progress_is_plain_lines(
    tiny_checkpoint: Path, conversations_file: Path, monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verb, "_SECONDS_BETWEEN_LINES", -1.0)
    monkeypatch.setattr(verb, "_BYTES_OF_A_STRETCH", 10**9)
    inputs = read_inputs([*flags(tiny_checkpoint, conversations_file), "--num_data", "3"], verb="validate")
    find_everywhere(inputs, num_workers=1)
    assert told.messages == ["3 of 3 records"]
