"""The record of a run is only ever appended to, and a kill costs at most the line that was being written."""

from pathlib import Path

import pytest

from ds_sft.save.events import EventFile, read_events


def facts_of(path: Path) -> list[dict[str, object]]:
    return [{name: value for name, value in event.items() if name != "time"} for event in read_events(path)]


def write(path: Path | None, kind: str, **facts: object) -> None:
    file = EventFile(path)
    file.write(kind, **facts)
    file.close()


def test_a_second_start_appends(tmp_path: Path) -> None:
    write(tmp_path / "e", "start", step=0)
    write(tmp_path / "e", "resume", step=4)
    assert facts_of(tmp_path / "e") == [{"event": "start", "step": 0}, {"event": "resume", "step": 4}]


@pytest.mark.parametrize("torn", [b'{"event": "log", "st', b"\xff\xfe", b"[1]", b'{"step": 1}', b"[" * 99999])
def test_a_line_that_is_not_whole_costs_nothing_else(torn: bytes, tmp_path: Path) -> None:
    write(tmp_path / "e", "start", step=0)
    with (tmp_path / "e").open("ab") as stream:
        stream.write(torn)
    assert facts_of(tmp_path / "e") == [{"event": "start", "step": 0}]
    write(tmp_path / "e", "resume", step=4)
    assert facts_of(tmp_path / "e") == [{"event": "start", "step": 0}, {"event": "resume", "step": 4}]


def test_a_file_that_cannot_be_written_is_told_once_and_ends_nothing(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    file = EventFile(tmp_path / "none" / "e")
    file.write("start")
    file.write("log")
    assert told.messages == [f"{tmp_path / 'none' / 'e'}: No such file or directory; no more events are written"]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "e").symlink_to(tmp_path / "victim")
    write(tmp_path / "e", "start")
    assert (tmp_path / "victim").read_text() == "mine"


def test_ranks_without_a_file_write_nothing(tmp_path: Path) -> None:
    write(None, "start")
    assert read_events(tmp_path / "e") == []
