"""Findings in words and as JSON say the same, and no text of a user is obeyed."""

from collections import Counter

from ds_sft.tools.findings import Findings
from ds_sft.tools.report import as_dict, as_lines, rejected_places

FINDINGS = Findings(
    counters=Counter(
        records=4,
        usable=3,
        samples=3,
        tokens_total=200,
        tokens_supervised=50,
        tokens_truncated=7,
        text_tokens=80,
        text_unknown=2,
        text_whitespace=10,
        text_whitespace_lost=1,
        merged_turns=0,
        rejected_bad_value=1,
        empty_answer=2,
    ),
    lengths={"source": Counter({3: 1, 4: 1, 5: 1}), "target": Counter({1: 2, 9: 1})},
    control_strings=Counter({"</s>": 2}),
    places={
        "rejected_bad_value": ["d.json:record 2: bad_value: turn 1 has null text"],
        "empty_answer": ["d.json:record 3"],
        "</s>": ["d.json:record 1"],
    },
)


def test_the_object_holds_every_finding() -> None:
    assert as_dict(FINDINGS, path="d.json") == {
        "file": "d.json",
        "records": 4,
        "usable": 3,
        "samples": 3,
        "dropped": {
            "empty_answer": {"count": 2, "places": ["d.json:record 3"]},
            "rejected_bad_value": {"count": 1, "places": ["d.json:record 2: bad_value: turn 1 has null text"]},
        },
        "tokens": {"total": 200, "supervised": 50, "truncated": 7},
        "lengths": {
            "source": [{"from": 3, "to": 4, "samples": 2}, {"from": 5, "to": 5, "samples": 1}],
            "target": [
                {"from": 0, "to": 1, "samples": 2},
                {"from": 2, "to": 2, "samples": 0},
                {"from": 3, "to": 4, "samples": 0},
                {"from": 5, "to": 8, "samples": 0},
                {"from": 9, "to": 9, "samples": 1},
            ],
        },
        "unknown_tokens": {"count": 2, "of": 80, "share": 0.025},
        "lost_whitespace": {"count": 1, "of": 10, "share": 0.1},
        "control_strings": {"</s>": {"messages": 2, "places": ["d.json:record 1"]}},
    }


def test_the_lines_hold_every_finding() -> None:
    assert list(as_lines(FINDINGS, path="d.json")) == [
        "d.json: 4 records, 3 usable, 3 samples",
        "tokens: 200 total, 50 supervised (25.00 %)",
        "        7 of answers cut off by --model_max_length",
        "unknown tokens: 2 of 80 tokens of the messages (2.50 %)",
        "lost whitespace: 1 of 10 whitespace characters of the messages (10.00 %)",
        "length of source in tokens:",
        f"        3 to 4              2 {'#' * 40}",
        f"        5 to 5              1 {'#' * 20}",
        "length of target in tokens:",
        f"        0 to 1              2 {'#' * 40}",
        "        2 to 2              0",
        "        3 to 4              0",
        "        5 to 8              0",
        f"        9 to 9              1 {'#' * 20}",
        "rejected, merged, dropped or cut:",
        "  2 empty_answer",
        "      d.json:record 3",
        "  1 rejected_bad_value",
        "      d.json:record 2: bad_value: turn 1 has null text",
        "messages that spell a control token (kept as text):",
        "  2 </s>",
        "      d.json:record 1",
    ]


def test_lengths_of_single_sequences_need_no_name() -> None:
    lines = list(as_lines(Findings(lengths={"sequence": Counter({2: 1})}), path="d.json"))
    assert "length in tokens:" in lines


def test_a_file_without_anything_usable_divides_by_nothing() -> None:
    told = as_dict(Findings(counters=Counter(records=1)), path="d.json")
    assert (told["unknown_tokens"], told["lengths"]) == ({"count": 0, "of": 0, "share": 0.0}, {})


def test_control_characters_of_a_path_are_shown() -> None:
    assert next(as_lines(Findings(), path="\x1b[2J.json")).startswith("␛[2J.json: 0 records")


def test_rejected_records_are_listed_with_their_reasons() -> None:
    assert rejected_places(FINDINGS) == ["d.json:record 2: bad_value: turn 1 has null text"]
