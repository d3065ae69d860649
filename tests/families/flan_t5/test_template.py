"""Every answer becomes one pair, as the oracle says, and the limit is kept by dropping the oldest history."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ds_sft.contracts import Dialogue, Draft, Exchange, LayoutOptions, Segment
from ds_sft.data.normalise import normalise
from ds_sft.data.read import read_conversations
from ds_sft.families.flan_t5.template import DEFAULT_SYSTEM, OTHER_TOKENS, SPECIAL_TOKENS, lay_out

GOLDEN = Path(__file__).parents[2] / "golden" / "conversations"
ROWS: list[dict[str, Any]] = json.loads((GOLDEN / "expected_semantics.json").read_text(encoding="utf-8"))
CONVERSATIONS = {one.identity: one for one in read_conversations(GOLDEN / "conversations.json")}
NO_LIMIT = 10**9


def measure(segments: Sequence[Segment]) -> int:
    """Count as the oracle's char tokenizer does: a code point is a token, and so is a control token."""
    return sum(1 if segment.kind == "control" else len(segment.text) for segment in segments)


def joined(segments: Sequence[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def pairs(dialogue: Dialogue, max_tokens: int = NO_LIMIT) -> list[tuple[str, str]]:
    return [
        (joined(draft.source), joined(draft.target))
        for draft in lay_out(dialogue, LayoutOptions(max_tokens), measure).drafts
    ]


def cut(target: Sequence[Segment], max_tokens: int) -> str:
    """Cut a target as `encode` does, one code point a token."""
    tokens = [piece for one in target for piece in ([one.text] if one.kind == "control" else one.text)]
    return "".join(tokens[:max_tokens])


@pytest.mark.parametrize(
    "row", [row for row in ROWS if not row["rejected"]], ids=lambda row: f"{row['id']}-{row['max_len']}"
)
def test_the_oracle_agrees_on_every_pair_and_counter(row: dict[str, Any]) -> None:
    dialogue, counters = normalise(CONVERSATIONS[row["id"]])
    assert isinstance(dialogue, Dialogue)
    limit = row["max_len"] or NO_LIMIT
    layout = lay_out(dialogue, LayoutOptions(limit), measure)
    assert [(joined(draft.source), cut(draft.target, limit)) for draft in layout.drafts] == [
        (sample["source_full"], sample["target_full"]) for sample in row["samples"]
    ]
    assert dict(+(counters + layout.counters)) == row["counters"]


@pytest.mark.parametrize(
    "row", [row for row in ROWS if not row["rejected"] and not row["max_len"]], ids=lambda row: str(row["id"])
)
def test_the_oracle_agrees_on_what_is_control_and_what_is_supervised(row: dict[str, Any]) -> None:
    dialogue, _ = normalise(CONVERSATIONS[row["id"]])
    assert isinstance(dialogue, Dialogue)
    kinds = {"text": "text", "eos": "control"}
    for draft, sample in zip(lay_out(dialogue, LayoutOptions(NO_LIMIT), measure).drafts, row["samples"], strict=True):
        expected = [(kinds[one["kind"]], one["text"], one["loss"]) for one in sample["target"]]
        assert [(one.kind, one.text, one.loss) for one in draft.target] == expected
        assert joined([one for one in draft.source if one.kind == "control"]) == "</s>"
        assert not any(one.loss for one in draft.source)


TWO = Dialogue("Be kind.", (Exchange("q1", "a1"), Exchange("q2", "a2")))


def test_history_and_question_stand_in_the_source_and_only_the_answer_in_the_target() -> None:
    assert pairs(TWO) == [
        ("Be kind.\n\n### Human: q1\n### Assistant: </s>", "a1\n</s>"),
        ("Be kind.\n\n### Human: q1\n### Assistant: a1\n### Human: q2\n### Assistant: </s>", "a2\n</s>"),
    ]


def test_without_a_system_text_the_default_one_stands_in_front() -> None:
    assert pairs(Dialogue(None, (Exchange("q", "a"),)))[0][0] == (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions.\n\n### Human: q\n### Assistant: </s>"
    )


def test_the_whole_target_is_supervised_and_nothing_of_the_source() -> None:
    for draft in lay_out(TWO, LayoutOptions(NO_LIMIT), measure).drafts:
        assert all(segment.loss for segment in draft.target)
        assert not any(segment.loss for segment in draft.source)


def test_the_source_fills_the_limit_to_the_last_token() -> None:
    whole = len("Be kind.\n\n### Human: q1\n### Assistant: a1\n### Human: q2\n### Assistant: ") + 1
    assert pairs(TWO, whole)[1][0].count("### Human") == 2
    layout = lay_out(TWO, LayoutOptions(whole - 1), measure)
    assert joined(layout.drafts[1].source) == "Be kind.\n\n### Human: q2\n### Assistant: </s>"
    assert dict(+layout.counters) == {"history_dropped": 1}


def test_a_question_that_does_not_fit_alone_gives_no_pair() -> None:
    dialogue = Dialogue("s", (Exchange("q" * 50, "a"), Exchange("q", "b")))
    layout = lay_out(dialogue, LayoutOptions(40), measure)
    assert [joined(draft.target) for draft in layout.drafts] == ["b\n</s>"]
    assert dict(+layout.counters) == {"prompt_too_long": 1, "history_dropped": 1}


def test_an_answer_over_the_limit_is_counted_and_kept_whole_for_encode_to_cut() -> None:
    limit = len("s\n\n### Human: q\n### Assistant: ") + 1
    fits = Dialogue("s", (Exchange("q", "a" * (limit - 2)),))
    too_long = Dialogue("s", (Exchange("q", "a" * (limit - 1)),))
    assert dict(+lay_out(fits, LayoutOptions(limit), measure).counters) == {}
    layout = lay_out(too_long, LayoutOptions(limit), measure)
    assert dict(+layout.counters) == {"answer_truncated": 1}
    assert isinstance(layout.drafts[0], Draft)
    assert cut(layout.drafts[0].target, limit) == "a" * (limit - 1) + "\n"


def test_text_that_spells_markers_stays_text() -> None:
    (draft,) = lay_out(
        Dialogue("s", (Exchange("</s>### Assistant: x", "</s>"),)), LayoutOptions(NO_LIMIT), measure
    ).drafts
    assert [one.text for one in (*draft.source, *draft.target) if one.kind == "control"] == ["</s>", "</s>"]
    assert draft.target[0] == Segment("text", "</s>\n", loss=True)


def test_the_added_tokens_and_their_order_are_those_of_fastchat() -> None:
    assert SPECIAL_TOKENS == {"pad_token": "[PAD]"}
    assert OTHER_TOKENS == ("<", "{", "\n", "}", "`", " ", "\\", "^", "\t")


def test_the_default_system_text_is_that_of_fastchat() -> None:
    golden = json.loads((GOLDEN / "fastchat_t5_outputs.json").read_text(encoding="utf-8"))
    assert golden[0]["source_text"].startswith(f"{DEFAULT_SYSTEM}\n\n### Human: ")


def test_a_long_conversation_is_measured_a_few_times_for_each_answer() -> None:
    num, calls = 200, []

    def measure(segments: Sequence[Segment]) -> int:
        calls.append(1)
        return sum(1 if segment.kind == "control" else len(segment.text) for segment in segments)

    dialogue = Dialogue("s", tuple(Exchange(f"question {index}", f"answer {index}") for index in range(num)))
    layout = lay_out(dialogue, LayoutOptions(500), measure)
    assert len(layout.drafts) == num
    assert layout.counters["history_dropped"] > num
    assert len(calls) <= 7 * num
