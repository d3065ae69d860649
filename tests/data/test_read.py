"""A ShareGPT file becomes conversations, or one DataError that names the place; nothing else."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_sft.contracts import Conversation, Turn
from ds_sft.data.read import read_conversations
from ds_sft.errors import DataError, MissingInputError

RECORD = {"id": "a", "conversations": [{"from": "human", "value": "Hé?"}, {"from": "gpt", "value": "好"}]}
TURNS = (Turn("human", "Hé?"), Turn("gpt", "好"))
VALID = {
    "array": json.dumps([RECORD, {**RECORD, "id": "b"}], ensure_ascii=False).encode(),
    "lines": "\n".join(json.dumps({**RECORD, "id": name}) for name in "ab").encode(),
}


def read(folder: Path, content: bytes) -> list[Conversation]:
    file = folder / "data.json"
    file.write_bytes(content)
    return read_conversations(file)


def fault(folder: Path, content: bytes) -> str:
    """Give the message for a broken file, without the folder."""
    with pytest.raises(DataError) as caught:
        read(folder, content)
    assert caught.value.exit_code == 65
    return str(caught.value).replace(f"{folder}/", "")


def test_an_array_gives_every_record_with_its_number(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    assert read(tmp_path, VALID["array"]) == [
        Conversation(TURNS, f"{file}:record 1", "a"),
        Conversation(TURNS, f"{file}:record 2", "b"),
    ]


def test_lines_give_every_record_with_its_line_and_blank_lines_count(tmp_path: Path) -> None:
    content = b"\n" + json.dumps(RECORD).encode() + b"\r\n  \n" + json.dumps({**RECORD, "id": 7}).encode() + b"\n\n"
    places = [(one.place.rpartition(":")[2], one.identity) for one in read(tmp_path, content)]
    assert places == [("line 2", "a"), ("line 4", "7")]


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert [one.identity for one in read(tmp_path, b"\xef\xbb\xbf" + VALID["array"])] == ["a", "b"]


def test_unknown_keys_are_skipped(tmp_path: Path) -> None:
    content = b'[{"tags": [1], "conversations": [{"from": "human", "value": "x", "weight": null}]}]'
    assert read(tmp_path, content)[0].turns == (Turn("human", "x"),)


def test_a_message_without_role_or_text_is_read_and_left_for_normalisation(tmp_path: Path) -> None:
    content = b'[{"conversations": [{}, {"from": 3, "value": ["x"]}]}]'
    assert read(tmp_path, content)[0].turns == (Turn(None, None), Turn(3, ["x"]))


def test_text_is_unchanged_byte_for_byte(tmp_path: Path) -> None:
    text = " \u0000\t\r\n\u2028 </s>\\ \U0001f600 e\u0301 \u00a0"
    for content in (
        json.dumps([{"conversations": [{"from": "human", "value": text}]}], ensure_ascii=escaped).encode()
        for escaped in (True, False)
    ):
        assert read(tmp_path, content)[0].turns[0].text == text


def test_a_missing_file_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as caught:
        read_conversations(tmp_path / "no.json")
    assert caught.value.exit_code == 66
    assert str(caught.value) == f"data_path: file must exist, but {tmp_path}/no.json does not; check the path"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_conversations(tmp_path)
    assert str(caught.value) == f"data_path: must be a file, but {tmp_path} is a folder; name the JSON file in it"


@pytest.mark.parametrize("content", [b"", b" \n\t\r\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    assert fault(tmp_path, content) == (
        "data.json: data file must hold at least one conversation, but is empty; write a JSON array"
    )


def test_a_broken_record_of_an_array_is_named_by_number_and_byte(tmp_path: Path) -> None:
    # Brackets, commas and escaped quotes inside of strings must not be counted.
    first = b'[{"id": "],[\\"{,", "conversations": []},\n'
    assert fault(tmp_path, first + b'{"conversations" []}]') == (
        "data.json:record 2, line 2, byte 58: must be one JSON object, but: expected ':'; mend or drop that record"
    )
    assert (first + b'{"conversations" []}]')[58:60] == b"[]"


def test_a_record_of_the_wrong_kind_is_named_by_number_and_field(tmp_path: Path) -> None:
    assert fault(tmp_path, b'[{"conversations": []}, {"conversations": 3}]') == (
        "data.json:record 2, line 1, byte 24: "
        "`conversations` must be array or null, but is int; mend or drop that record"
    )


def test_an_array_that_ends_too_early_is_at_fault_at_its_end(tmp_path: Path) -> None:
    assert fault(tmp_path, b'[{"conversations": []}, {"id') == (
        "data.json:record 2, line 1, byte 28: "
        "must be one JSON object (on one line, outside of an array), but ends too early; mend or drop that record"
    )


def test_a_broken_line_is_named_by_number_and_byte_of_the_file(tmp_path: Path) -> None:
    content = b'{"conversations": []}\n\n{"conversations": [}\n'
    assert content[42:43] == b"}"
    assert fault(tmp_path, content) == (
        "data.json:record 2, line 3, byte 42: must be one JSON object, but: invalid character; mend or drop that record"
    )


@pytest.mark.parametrize(
    ("content", "byte"),
    [
        (b'[{"conversations": []},\n{"id": "\xff", "conversations": []}]', 32),
        (b'{"conversations": []}\n{"id": "\xff", "conversations": []}', 30),
    ],
)
def test_bytes_that_are_not_utf_8_are_named_by_their_offset_in_the_file(
    tmp_path: Path, content: bytes, byte: int
) -> None:
    assert content[byte] == 0xFF
    assert fault(tmp_path, content) == (
        f"data.json:record 2, line 2, byte {byte}: must be UTF-8, but holds byte 0xff; "
        "convert the file, as in: iconv -f GB18030 -t UTF-8"
    )


@pytest.mark.parametrize("content", [b"[" + b'{"x":' * 100_000, b'{"x":' + b"[" * 100_000])
def test_nesting_without_end_is_a_data_fault(tmp_path: Path, content: bytes) -> None:
    assert "but is nested too deeply" in fault(tmp_path, content)


@pytest.mark.parametrize("form", VALID)
@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_changed_bytes_give_conversations_or_a_data_error(tmp_path: Path, form: str, data: st.DataObject) -> None:
    content = bytearray(VALID[form])
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        num_removed = data.draw(st.integers(0, 3))
        content[start : start + num_removed] = data.draw(
            st.binary(max_size=3)
            | st.sampled_from([b"{", b"[", b'"', b"\\", b",", b"\n", b"\\ud800", b"1e999", b"null"])
        )
    outcome: str | list[Conversation]
    try:
        outcome = read(tmp_path, bytes(content))
    except DataError as error:
        outcome = str(error)
    if isinstance(outcome, str):
        assert outcome.startswith(f"{tmp_path}/data.json:")
        assert outcome.endswith(("; mend or drop that record", "; write a JSON array", "UTF-8"))
    else:
        assert all(isinstance(one, Conversation) for one in outcome)
