"""A broken file ends in one line that names file, record, line, byte, field and rule."""

import json
from pathlib import Path

import pytest

from ds_sft.data.read import open_records
from ds_sft.errors import DataError

GOOD = b'{"conversations": []}'


def fault(folder: Path, content: bytes) -> str:
    """Give the message for a broken file, without the folder."""
    (folder / "d.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_records(folder / "d.json")
    assert caught.value.exit_code == 65
    assert caught.value.faults == (str(caught.value),)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{folder}/", "")


def syntax(place: str, reason: str) -> str:
    return f"d.json:{place}: must be one JSON object{reason}; mend or drop that record"


NONE_OF_THEM = "must hold `conversations`, `messages` or `instruction` and `output`, but has"
ENDS_EARLY = " (on one line, outside of an array), but ends too early"


@pytest.mark.parametrize("content", [b"", b" \n\t\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n", b"\n" * 3_000_000])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    assert fault(tmp_path, content) == (
        "d.json: data file must hold at least one conversation, but is empty; write a JSON array"
    )


def test_a_broken_record_of_an_array_is_named_by_record_line_and_byte(tmp_path: Path) -> None:
    # Brackets, commas and escaped quotes inside of strings must not be counted.
    first = b'[{"id": "],[\\"{,", "conversations": []},\n'
    content = first + b'{"conversations" []}]'
    assert fault(tmp_path, content) == syntax("record 2, line 2, byte 58", ", but: expected ':'")
    assert content[58:60] == b"[]"


def test_a_broken_line_is_named_by_record_line_and_byte(tmp_path: Path) -> None:
    content = GOOD + b'\n\n{"conversations": [}\n'
    assert fault(tmp_path, content) == syntax("record 2, line 3, byte 42", ", but: invalid character")
    assert content[42:43] == b"}"


def test_bytes_are_counted_with_the_byte_order_mark(tmp_path: Path) -> None:
    assert fault(tmp_path, b"\xef\xbb\xbf[}") == syntax("record 1, line 1, byte 4", ", but: invalid character")


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"[", "record 1, line 1, byte 1"),
        (b"[" + GOOD, "record 1, line 1, byte 22"),
        (b"[" + GOOD + b",\n", "record 2, line 2, byte 24"),
        (b"[" + GOOD + b',{"id', "record 2, line 1, byte 27"),
        (b'{"id', "record 1, line 1, byte 4"),
        (GOOD + b"\n" + GOOD[:-1] + b"\n", "record 2, line 2, byte 42"),
        (b'{\n"conversations": []}', "record 1, line 1, byte 1"),
    ],
)
def test_text_that_ends_too_early_is_at_fault_at_its_end(tmp_path: Path, content: bytes, place: str) -> None:
    assert fault(tmp_path, content) == syntax(place, ENDS_EARLY)


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        (b"[" + GOOD + GOOD + b"]", "record 1, line 1, byte 22", "expected ',' or ']'"),
        (b"[" + GOOD + b",]", "record 2, line 1, byte 23", "invalid character"),
        (b"[" + GOOD + b"]\nx", "record 2, line 2, byte 24", "text after the array"),
        (b"[] []", "record 1, line 1, byte 3", "text after the array"),
        (GOOD + b" " + GOOD, "record 1, line 1, byte 22", "trailing characters"),
        (GOOD + b"\x00", "record 1, line 1, byte 21", "trailing characters"),
        (b'{"a": NaN}', "record 1, line 1, byte 6", "invalid character"),
        (b'{"a": 01}', "record 1, line 1, byte 7", "invalid number"),
        (b'{"a": "\x00"}', "record 1, line 1, byte 7", "invalid character"),
        (b'{"a": "\\q"}', "record 1, line 1, byte 8", "invalid escaped character"),
        (b"\x00\x00\x00\x00", "record 1, line 1, byte 0", "invalid character"),
        (b"conversations", "record 1, line 1, byte 0", "invalid character"),
    ],
)
def test_text_that_is_no_json_is_told_with_the_byte(tmp_path: Path, content: bytes, place: str, reason: str) -> None:
    assert fault(tmp_path, content) == syntax(place, f", but: {reason}")


@pytest.mark.parametrize("form", [b"%s", b"[%s]"])
def test_half_of_a_surrogate_pair_is_told(tmp_path: Path, form: bytes) -> None:
    record = json.dumps({"conversations": [], "id": "\ud800"}).encode()
    assert "surrogate pair" in fault(tmp_path, form % record)


@pytest.mark.parametrize(
    ("content", "byte"),
    [
        (b"[" + GOOD + b',\n{"id": "\xff", "conversations": []}]', 32),
        (GOOD + b'\n{"id": "\xff", "conversations": []}', 30),
        (b'{"id": "h\xc3\xa9 \xe9", "conversations": []}', 12),
        (b'{"id": "\xed\xa0\x80", "conversations": []}', 8),
        # In GBK the second byte of a character may be a backslash, an escape to JSON.
        (b'{"id": "' + "乗".encode("gbk") + b' q", "conversations": []}', 8),
    ],
)
def test_bytes_that_are_not_utf_8_are_named_by_their_offset(tmp_path: Path, content: bytes, byte: int) -> None:
    line = 1 + content[:byte].count(b"\n")
    assert fault(tmp_path, content) == (
        f"d.json:record {line}, line {line}, byte {byte}: must be UTF-8, but holds byte {content[byte]:#x}; "
        "convert the file, as in: iconv -f GB18030 -t UTF-8"
    )


@pytest.mark.parametrize("head", [b'{"id":"', b'{"id": "'])
def test_bytes_that_are_not_utf_8_are_found_across_window_borders(tmp_path: Path, head: bytes) -> None:
    # One of the two lengths puts a border of the search into the middle of a character.
    content = head + "é".encode() * (1 << 20) + b'\xff", "conversations": []}'
    place = f"d.json:record 1, line 1, byte {len(head) + (2 << 20)}"
    assert fault(tmp_path, content).startswith(f"{place}: must be UTF-8, ")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_told_with_how_to_convert_it(tmp_path: Path, encoding: str) -> None:
    assert fault(tmp_path, '[{"conversations": []}]'.encode(encoding)) == (
        "d.json: data file must be JSON in UTF-8, but looks like UTF-16; convert it, as in: iconv -f UTF-16 -t UTF-8"
    )


@pytest.mark.parametrize(
    ("head", "looks"),
    [
        (b"PK\x03\x04", "a zip archive"),
        (b"PAR1", "a Parquet file"),
        (b"\xfd7zXZ\x00", "an xz file"),
        (b"BZh9", "a bzip2 file"),
    ],
)
def test_other_kinds_of_files_are_told_by_name(tmp_path: Path, head: bytes, looks: str) -> None:
    assert fault(tmp_path, head + b"\x15\x04\x15\x10") == (
        f"d.json: data file must be JSON in UTF-8, but looks like {looks}; convert it to JSON"
    )


def test_lines_that_end_in_cr_alone_are_told_with_how_to_convert_them(tmp_path: Path) -> None:
    assert fault(tmp_path, GOOD + b"\r" + GOOD + b"\r") == (
        "d.json:record 1, line 1, byte 22: must end its lines with LF, but has CR alone; "
        "convert the file, as in: tr '\\r' '\\n'"
    )


@pytest.mark.parametrize("content", [b"[" + b'{"x":' * 100_000, b'{"x":' + b"[" * 100_000, b"[" * 100_000])
def test_nesting_without_end_is_a_data_fault(tmp_path: Path, content: bytes) -> None:
    assert "must be less deeply nested, but is nested too deeply; mend or drop that record" in fault(tmp_path, content)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (b"3", "must be object, but is int"),
        (b'"x"', "must be object, but is str"),
        (b"[]", "must be object, but is array"),
        (b"null", "must be object, but is null"),
        (b'{"conversations": 3}', "`conversations` must be array or null, but is int"),
        (b'{"messages": [{}, "x"]}', "`messages[1]` must be object, but is str"),
        (
            b'{"id": ' + b"9" * 5000 + b', "conversations": []}',
            "`id` must be a usual value, but: Integer value out of range",
        ),
        (
            b'{"conversations": [{"value": 1e999}]}',
            "`conversations[0].value` must be a usual value, but: Number out of range",
        ),
        (b'{"conversations": [], "messages": []}', "must have one form, but has both `conversations` and `messages`"),
        (
            b'{"conversation": []}',
            f"{NONE_OF_THEM} `conversation` (did you mean `conversations`?)",
        ),
    ],
)
def test_a_record_of_the_wrong_shape_is_named_by_its_first_byte_and_field(
    tmp_path: Path, record: bytes, told: str
) -> None:
    assert fault(tmp_path, b"[" + GOOD + b",\n " + record + b"]") == (
        f"d.json:record 2, line 2, byte 25: {told}; mend or drop that record"
    )


def test_the_first_of_several_faults_is_told(tmp_path: Path) -> None:
    assert fault(tmp_path, b"\n".join([GOOD, b"x", b"y"])).startswith("d.json:record 2, line 2, byte 22: ")
