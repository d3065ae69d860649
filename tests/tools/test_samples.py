"""What is shown of a sample is read back from the ids that are trained on."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ds_sft.contracts import IGNORE_INDEX, Draft, Segment
from ds_sft.errors import DataError
from ds_sft.tools.samples import Piece, Sample, read_back, take_samples
from tests.tools.characters import END, PREFIX, SEPARATOR, encoder_of, inputs_of

GOLDEN = Path(__file__).parents[1] / "golden" / "conversations"
ROWS: list[dict[str, Any]] = json.loads((GOLDEN / "expected_semantics.json").read_text(encoding="utf-8"))
NO_LIMIT = 10**9


def ids(text: str) -> list[int]:
    return [ord(character) for character in text]


def sample_of(*target: Segment, source: tuple[Segment, ...] = (), max_tokens: int = 1000) -> Sample:
    encoder = encoder_of("yuan2", max_tokens=max_tokens)
    return read_back(Draft(target=target, source=source), encoder, record=1, index=0, identity="")


def write(file: Path, *answers: str | None) -> Path:
    """Write one conversation for each answer; None makes one that is rejected."""
    turns = [[{"from": "human", "value": "q"}, {"from": "gpt" if a else "robot", "value": a or "x"}] for a in answers]
    file.write_text(json.dumps([{"id": f"c{n}", "conversations": one} for n, one in enumerate(turns)]), "utf-8")
    return file


def test_a_decoder_only_sample_has_one_side_with_text_and_control_tokens() -> None:
    sample = sample_of(
        Segment("text", "ab"),
        Segment("control", "<sep>"),
        Segment("text", "c", True),
        Segment("control", "<eod>", True),
    )
    assert sample.sides == {
        "target": (
            Piece("text", "ab", False, 3),
            Piece("sep", "<sep>", False, 1),
            Piece("text", "c", True, 2),
            Piece("eod", "<eod>", True, 1),
        )
    }
    assert sample.input_ids == [PREFIX, *ids("ab"), SEPARATOR, PREFIX, *ids("c"), END]
    assert sample.labels == [*[IGNORE_INDEX] * 4, PREFIX, *ids("c"), END]
    assert (sample.num_trained, sample.num_tokens, sample.num_cut) == (3, 7, 0)


def test_an_encoder_decoder_sample_has_a_source_and_a_target() -> None:
    sample = sample_of(
        Segment("text", "a", True), source=(Segment("text", "q"), Segment("control", "</s>")), max_tokens=9
    )
    assert list(sample.sides) == ["source", "target"]
    assert sample.sides["source"] == (Piece("text", "q", False, 2), Piece("eos", "</s>", False, 1))
    assert sample.input_ids == [PREFIX, ord("q"), END]


def test_text_behind_text_keeps_its_first_space() -> None:
    sample = sample_of(Segment("text", "a"), Segment("text", " b", True), Segment("text", " c"))
    assert [piece.text for piece in sample.sides["target"]] == ["a", " b", " c"]


def test_after_a_cut_only_the_text_of_the_kept_ids_is_shown() -> None:
    sample = sample_of(
        Segment("text", "ab"), Segment("text", "cdef", True), Segment("control", "<eod>", True), max_tokens=5
    )
    assert sample.sides["target"] == (Piece("text", "ab", False, 3), Piece("text", "cd", True, 2))
    assert sample.num_cut == 3


def test_what_the_tokenizer_loses_is_missing_in_what_is_shown() -> None:
    sample = sample_of(Segment("text", "a\tb?", True))
    assert [piece.text for piece in sample.sides["target"]] == ["ab<unk>"]


@pytest.mark.parametrize(
    "row", [row for row in ROWS if not row["rejected"]], ids=lambda row: f"{row['id']}-{row['max_len']}"
)
def test_the_oracle_agrees_on_every_pair_its_cuts_and_its_supervision(row: dict[str, Any], tmp_path: Path) -> None:
    records = json.loads((GOLDEN / "conversations.json").read_text(encoding="utf-8"))
    (tmp_path / "one.json").write_text(json.dumps([one for one in records if one["id"] == row["id"]]), "utf-8")
    encoder = encoder_of("flan_t5", max_tokens=row["max_len"] or NO_LIMIT, has_prefix=False)
    samples = list(take_samples(inputs_of(tmp_path / "one.json", encoder), num=NO_LIMIT, counters=Counter()))
    assert [
        [(piece.kind, piece.text, piece.loss) for pieces in sample.sides.values() for piece in pieces]
        for sample in samples
    ] == [[*_merged(sample["source"]), *_merged(sample["target"])] for sample in row["samples"]]


def _merged(segments: list[dict[str, Any]]) -> list[tuple[str, str, bool]]:
    """Join the oracle's neighbouring texts of equal supervision, which are encoded as one."""
    merged: list[tuple[str, str, bool]] = []
    for one in segments:
        if one["kind"] == "text" and merged and merged[-1][0] == "text" and merged[-1][2] == one["loss"]:
            merged[-1] = ("text", merged[-1][1] + one["text"], one["loss"])
        else:
            merged.append((one["kind"], one["text"], one["loss"]))
    return merged


def test_samples_are_numbered_by_record_and_within_it(tmp_path: Path) -> None:
    turns = [{"from": role, "value": "x"} for role in ("human", "gpt") * 2]
    (tmp_path / "d.json").write_text(json.dumps([{"id": "a", "conversations": turns}] * 2), "utf-8")
    inputs = inputs_of(tmp_path / "d.json", encoder_of("yuan2", loss_mode="split_example"))
    counters: Counter[str] = Counter()
    taken = [(one.record, one.index, one.identity) for one in take_samples(inputs, num=3, counters=counters)]
    assert taken == [(1, 0, "a"), (1, 1, "a"), (2, 0, "a")]
    assert (counters["records"], counters["samples"]) == (2, 3)


def test_tokens_are_counted_over_the_samples_that_were_given(tmp_path: Path) -> None:
    inputs = inputs_of(write(tmp_path / "d.json", "abc", "abcdef", "z"), encoder_of("yuan2", max_tokens=7))
    counters: Counter[str] = Counter()
    list(take_samples(inputs, num=2, counters=counters))
    # prefix q sep prefix a b c, and the answer's rest with its end is cut.
    assert {name: counters[name] for name in counters if name.startswith("tokens")} == {
        "tokens_total": 14,
        "tokens_supervised": 8,
        "tokens_truncated": 1 + 4,
    }


def test_a_rejected_conversation_is_passed_over_and_counted(tmp_path: Path) -> None:
    inputs = inputs_of(write(tmp_path / "d.json", None, "a"), encoder_of("yuan2"))
    counters: Counter[str] = Counter()
    assert [one.record for one in take_samples(inputs, num=9, counters=counters)] == [2]
    assert (counters["records"], counters["rejected_unknown_role"]) == (2, 1)


def test_a_rejected_conversation_ends_a_strict_look(tmp_path: Path) -> None:
    inputs = inputs_of(write(tmp_path / "d.json", None, "a"), encoder_of("yuan2"), is_strict=True)
    with pytest.raises(DataError, match=r"d\.json:record 1: must be usable, but: unknown_role: .*--strict_data"):
        list(take_samples(inputs, num=9, counters=Counter()))
