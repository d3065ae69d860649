"""A data file becomes conversations, or one DataError that names the place; nothing else."""

import gzip
import json
import os
import pickle
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_sft.contracts import Conversation, Turn
from ds_sft.data.read import RecordFile, open_records, read_conversations, texts_of
from ds_sft.errors import DataError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

RECORD = {"id": "a", "conversations": [{"from": "human", "value": "Hé?"}, {"from": "gpt", "value": "好"}]}
TURNS = (Turn("human", "Hé?"), Turn("gpt", "好"))


def as_array(records: list[Any]) -> bytes:
    return json.dumps(records, ensure_ascii=False, indent=1).encode()


def as_lines(records: list[Any]) -> bytes:
    return "\n".join(json.dumps(record) for record in records).encode()


WRITERS: dict[str, Callable[[list[Any]], bytes]] = {
    "array": as_array,
    "lines": as_lines,
    "array.gz": lambda records: gzip.compress(as_array(records), mtime=0),
    "lines.zst": lambda records: zstd.compress(as_lines(records)),
}
VALID = {form: write([RECORD, {**RECORD, "id": "b"}]) for form, write in WRITERS.items()}


def opened(folder: Path, content: bytes) -> RecordFile:
    (folder / "data.json").write_bytes(content)
    return open_records(folder / "data.json")


def places(records: RecordFile) -> list[str]:
    return [one.place.rpartition(":")[2] for one in records]


@pytest.mark.parametrize("form", ["array", "array.gz"])
def test_an_array_gives_every_record_with_its_number(tmp_path: Path, form: str) -> None:
    assert list(opened(tmp_path, VALID[form])) == [
        Conversation(TURNS, f"{tmp_path}/data.json:record 1", "a"),
        Conversation(TURNS, f"{tmp_path}/data.json:record 2", "b"),
    ]


@pytest.mark.parametrize("form", ["lines", "lines.zst"])
def test_lines_give_every_record_with_its_line(tmp_path: Path, form: str) -> None:
    assert list(opened(tmp_path, VALID[form])) == [
        Conversation(TURNS, f"{tmp_path}/data.json:line 1", "a"),
        Conversation(TURNS, f"{tmp_path}/data.json:line 2", "b"),
    ]


def test_forms_may_differ_from_record_to_record(tmp_path: Path) -> None:
    messages = [{"role": "human", "content": "Hé?"}, {"role": "gpt", "content": "好"}]
    records = opened(tmp_path, as_lines([RECORD, {"messages": messages}, {"instruction": "Hé?", "output": "好"}]))
    assert [one.turns for one in records] == [TURNS, TURNS, TURNS]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n \t\r\n"])
def test_blank_lines_count_and_the_last_line_needs_no_end(tmp_path: Path, end: bytes) -> None:
    one = json.dumps(RECORD).encode()
    assert places(opened(tmp_path, b"\n" + one + b"\r\n  \n\n" + one + end)) == ["line 2", "line 5"]


def test_blank_lines_count_across_window_borders(tmp_path: Path) -> None:
    one = json.dumps(RECORD).encode()
    assert places(opened(tmp_path, one + b"\n" * 3_000_000 + one + b"\n" + one)) == [
        "line 1",
        "line 3000001",
        "line 3000002",
    ]


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\u0085d"
    content = json.dumps({"messages": [{"role": "user", "content": text}]}, ensure_ascii=False).encode()
    assert [one.turns[0].text for one in opened(tmp_path, content + b"\n" + content)] == [text, text]


@pytest.mark.parametrize("form", VALID)
def test_a_byte_order_mark_is_skipped(tmp_path: Path, form: str) -> None:
    marked = "\ufeff".encode() + WRITERS[form.partition(".")[0]]([RECORD])
    packed = {"gz": gzip.compress(marked), "zst": zstd.compress(marked)}.get(form.partition(".")[2], marked)
    assert [one.identity for one in opened(tmp_path, packed)] == ["a"]


def test_unknown_keys_are_skipped(tmp_path: Path) -> None:
    content = b'[{"tags": [1, {"a": null}], "conversations": [{"from": "human", "value": "x", "weight": null}]}]'
    assert opened(tmp_path, content)[0].turns == (Turn("human", "x"),)


def test_the_last_of_several_equal_keys_counts(tmp_path: Path) -> None:
    content = b'{"messages": [], "messages": [{"role": "user", "role": "gpt", "content": "x"}]}'
    assert opened(tmp_path, content)[0].turns == (Turn("gpt", "x"),)


@pytest.mark.parametrize("escaped", [True, False])
def test_text_is_unchanged_byte_for_byte(tmp_path: Path, *, escaped: bool) -> None:
    text = " \u0000\t\r\n\u2028 </s>\\ \U0001f600 e\u0301 \u00a0"
    content = json.dumps([{"conversations": [{"from": "human", "value": text}]}], ensure_ascii=escaped).encode()
    assert opened(tmp_path, content)[0].turns[0].text == text


def test_brackets_and_commas_in_text_are_no_boundaries(tmp_path: Path) -> None:
    texts = ["],[", "},{", '"]}', '\\"},', "\\", "[[[{{{"]
    content = as_array([{"messages": [{"role": "user", "content": text}]} for text in texts])
    assert [one.turns[0].text for one in opened(tmp_path, content)] == texts


@pytest.mark.parametrize("content", [b"[]", b" [ \n] \n", b"\xef\xbb\xbf[]"])
def test_an_empty_array_has_no_records(tmp_path: Path, content: bytes) -> None:
    assert list(opened(tmp_path, content)) == []


def test_a_record_of_many_megabytes_is_read(tmp_path: Path) -> None:
    text = '好 \\" ' * 2_000_000
    (one,) = opened(tmp_path, as_array([{"messages": [{"role": "user", "content": text}]}]))
    assert one.turns == (Turn("user", text),)


def test_a_record_is_found_by_its_index_from_either_end(tmp_path: Path) -> None:
    records = opened(tmp_path, as_lines([{**RECORD, "id": number} for number in range(5)]))
    assert len(records) == 5
    assert [records[index].identity for index in (0, 4, -1, -5)] == ["0", "4", "4", "0"]
    for index in (5, -6):
        with pytest.raises(IndexError):
            records[index]


@pytest.mark.parametrize("chosen", [slice(2), slice(1, -1), slice(None, None, -2), slice(4, 2), slice(3, 99)])
def test_a_slice_keeps_records_and_their_places(tmp_path: Path, chosen: slice) -> None:
    lines = [json.dumps({**RECORD, "id": number}).encode() + b"\n" * (1 + number % 2) for number in range(5)]
    records = opened(tmp_path, b"".join(lines))
    assert [(one.identity, one.place) for one in records[chosen]] == [
        (str(number), f"{tmp_path}/data.json:line {line}") for number, line in list(enumerate([1, 2, 4, 5, 7]))[chosen]
    ]


def test_iteration_goes_on_across_blocks(tmp_path: Path) -> None:
    records = opened(tmp_path, as_lines([{"messages": [], "id": number} for number in range(3000)]))
    assert [one.identity for one in records] == [str(number) for number in range(3000)]


@pytest.mark.parametrize("form", VALID)
def test_a_pickled_file_gives_the_same_records(tmp_path: Path, form: str) -> None:
    records = opened(tmp_path, VALID[form])
    again: RecordFile = pickle.loads(pickle.dumps(records))  # noqa: S301 - our own bytes
    assert again.path == records.path == tmp_path / "data.json"
    assert list(again) == list(records)
    assert again[1] == records[1]


def test_boundaries_take_sixteen_bytes_a_record(tmp_path: Path) -> None:
    records = opened(tmp_path, as_lines([RECORD] * 10_000))
    assert records.boundaries.spans.nbytes == 160_000
    assert records.boundaries.spans.base is None
    assert len(pickle.dumps(records)) < 161_000


def test_line_numbers_take_eight_bytes_a_record_more_where_blank_lines_stand_between(tmp_path: Path) -> None:
    numbers = opened(tmp_path, as_lines([RECORD] * 1000) + b"\n\n" + as_lines([RECORD])).boundaries.numbers
    assert isinstance(numbers, np.ndarray)
    assert (numbers.nbytes, numbers.base) == (8008, None)


@pytest.mark.parametrize("form", ["array", "lines"])
def test_nothing_but_boundaries_stays_in_memory(tmp_path: Path, form: str) -> None:
    record = {"messages": [{"role": "user", "content": "好 \n" * 1000}]}
    content = WRITERS[form]([record] * 1000)
    tracemalloc.start()
    try:
        assert sum(len(one.turns) for one in opened(tmp_path, content)) == 1000
        assert tracemalloc.get_traced_memory()[1] < 500_000 < len(content) / 10
    finally:
        tracemalloc.stop()


def test_a_record_that_was_overwritten_is_told(tmp_path: Path) -> None:
    records = opened(tmp_path, as_lines([RECORD, RECORD]))
    with (tmp_path / "data.json").open("r+b") as file:
        file.write(b"x")
    with pytest.raises(DataError) as caught:
        records[0]
    assert str(caught.value).startswith(f"{tmp_path}/data.json:line 1: must stay as it was, but has changed: ")
    assert records[1].turns == TURNS


def test_a_file_that_became_shorter_is_told(tmp_path: Path) -> None:
    records = opened(tmp_path, as_lines([RECORD, RECORD]))
    os.truncate(tmp_path / "data.json", 10)
    for look in (lambda: records[0], lambda: list(records)):
        with pytest.raises(DataError, match="must stay as it is during a run, but has changed"):
            look()


def test_conversations_are_read_as_a_list(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(VALID["array"])
    assert [one.identity for one in read_conversations(tmp_path / "data.json")] == ["a", "b"]


def test_texts_are_given_in_order_without_values_of_another_kind(tmp_path: Path) -> None:
    content = b'[{"conversations": [{"value": "x"}, {"value": 3}]}, {"instruction": "y", "output": "z"}]'
    assert texts_of(opened(tmp_path, content)) == ["x", "y", "z"]


TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
PAIRS = st.lists(st.tuples(st.sampled_from(["human", "gpt", "system", " X"]), TEXTS), max_size=4)
FILES = st.lists(PAIRS, min_size=1, max_size=4)


def check_round_trip(
    folder: Path, form: str, conversations: list[list[tuple[str, str]]], names: tuple[str, ...]
) -> None:
    outer, role, text = names
    records = [{outer: [{role: who, text: what} for who, what in pairs]} for pairs in conversations]
    assert [[(turn.role, turn.text) for turn in one.turns] for one in opened(folder, WRITERS[form](records))] == (
        conversations
    )


@pytest.mark.parametrize("form", VALID)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    conversations=FILES,
    names=st.sampled_from([("conversations", "from", "value"), ("messages", "role", "content")]),
)
def test_any_conversations_are_read_as_they_were_written(
    tmp_path: Path, form: str, conversations: list[list[tuple[str, str]]], names: tuple[str, ...]
) -> None:
    check_round_trip(tmp_path, form, conversations, names)


def json_turns(record: Any) -> list[tuple[object, object]]:
    """Give the turns of a record as the standard library reads them."""
    messages = record.get("conversations")
    messages = record.get("messages") if messages is None else messages
    if messages is None:
        return [("human", record["instruction"]), ("gpt", record["output"])]
    found = []
    for message in messages:
        role, text = message.get("from"), message.get("value")
        found.append((message.get("role") if role is None else role, message.get("content") if text is None else text))
    return found


def json_records(content: bytes) -> list[Any]:
    """Read a whole file with the standard library, which minds bytes that are no UTF-8 less than we do."""
    text = content.removeprefix(b"\xef\xbb\xbf").decode(errors="replace")
    if text.lstrip(" \t\r\n").startswith("["):
        records: list[Any] = json.loads(text)
        return records
    return [json.loads(line) for line in text.split("\n") if line.strip(" \t\r\n")]


ENDINGS = (
    "; mend or drop that record",
    "; write a JSON array",
    "UTF-8",
    "tr '\\r' '\\n'",
    "; copy it again",
    "to JSON",
)


def check_mutation(folder: Path, form: str, data: st.DataObject) -> None:
    """Whatever we read from changed bytes, the standard library reads too; else one error is told in our words."""
    content = bytearray(VALID[form])
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        num_removed = data.draw(st.integers(0, 3))
        content[start : start + num_removed] = data.draw(
            st.binary(max_size=3)
            | st.sampled_from([b"{", b"[", b"]", b'"', b"\\", b",", b"\n", b"\r", b"\\ud800", b"1e999", b"null", b"{}"])
        )
    try:
        records = list(opened(folder, bytes(content)))
    except DataError as error:
        told = str(error)
    else:
        if "." not in form:
            assert [[(turn.role, turn.text) for turn in one.turns] for one in records] == [
                json_turns(record) for record in json_records(bytes(content))
            ]
        return
    assert told.startswith(f"{folder}/data.json:")
    assert told.endswith(ENDINGS)
    assert "\n" not in told


@pytest.mark.parametrize("form", VALID)
@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_changed_bytes_give_conversations_or_a_data_error(tmp_path: Path, form: str, data: st.DataObject) -> None:
    check_mutation(tmp_path, form, data)


@pytest.mark.slow
@pytest.mark.parametrize("form", VALID)
@settings(
    max_examples=2000, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_2000_changes_of_bytes_give_conversations_or_a_data_error(
    tmp_path: Path, form: str, data: st.DataObject
) -> None:
    check_mutation(tmp_path, form, data)
