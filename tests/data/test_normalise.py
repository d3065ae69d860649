"""The rules N1 to N6, one by one, and the whole oracle."""

import json
from pathlib import Path
from typing import Any

import pytest

from ds_sft.contracts import Conversation, Dialogue, Exchange, Rejection, Turn
from ds_sft.data.normalise import normalise
from ds_sft.data.read import read_conversations

GOLDEN = Path(__file__).parent.parent / "golden" / "conversations"
ROWS: list[dict[str, Any]] = json.loads((GOLDEN / "expected_semantics.json").read_text(encoding="utf-8"))
CONVERSATIONS = {one.identity: one for one in read_conversations(GOLDEN / "conversations.json")}


def result(*turns: tuple[object, object]) -> tuple[Dialogue | str, dict[str, int]]:
    """Normalise some turns; counters that are zero are left out."""
    found, counters = normalise(Conversation(tuple(Turn(role, text) for role, text in turns), "here"))
    return found.reason if isinstance(found, Rejection) else found, dict(+counters)


def dialogue(*exchanges: tuple[str, str], system: str | None = None) -> Dialogue:
    return Dialogue(system, tuple(Exchange(question, answer) for question, answer in exchanges))


@pytest.mark.parametrize("human", ["human", "user", " Human ", "USER\n"])
@pytest.mark.parametrize("gpt", ["gpt", "assistant", "chatgpt", "\tGPT", "ChatGPT", "Assistant"])
def test_n1_roles_are_read_in_any_case_and_trimmed(human: str, gpt: str) -> None:
    assert result((human, "q"), (gpt, "a")) == (dialogue(("q", "a")), {})


@pytest.mark.parametrize("role", ["bot", "", "human2", None, 3, ["human"], True])
def test_n1_an_unknown_role_rejects_the_conversation(role: object) -> None:
    assert result(("human", "q"), ("gpt", "a"), (role, "x")) == ("unknown_role", {})


@pytest.mark.parametrize("text", [None, 3, ["a"], {"text": "a"}, False])
def test_n1_a_text_that_is_no_string_rejects_the_conversation(text: object) -> None:
    assert result(("human", "q"), ("gpt", text)) == ("bad_value", {})


def test_n2_a_first_system_turn_is_kept_byte_for_byte() -> None:
    assert result(("System", " Be kind.\n"), ("human", "q"), ("gpt", "a")) == (
        dialogue(("q", "a"), system=" Be kind.\n"),
        {},
    )


def test_n2_a_blank_system_turn_counts_as_absent() -> None:
    assert result(("system", " \n"), ("human", "q"), ("gpt", "a")) == (dialogue(("q", "a")), {})


@pytest.mark.parametrize(
    "turns",
    [
        [("human", "q"), ("system", "s"), ("gpt", "a")],
        [("system", "s"), ("system", "t"), ("human", "q"), ("gpt", "a")],
    ],
)
def test_n2_a_later_system_turn_rejects_the_conversation(turns: list[tuple[str, str]]) -> None:
    assert result(*turns) == ("system_not_first", {})


def test_n3_turns_of_one_role_are_joined_with_a_newline() -> None:
    found = result(("human", "q1"), ("user", "q2"), ("gpt", "a1"), ("gpt", "a2"), ("gpt", "a3"))
    assert found == (dialogue(("q1\nq2", "a1\na2\na3")), {"merged_turns": 3})


def test_n3_blank_parts_of_a_run_are_left_out() -> None:
    found = result(("human", "q"), ("gpt", "a1"), ("gpt", "  "), ("gpt", " a2 "))
    assert found == (dialogue(("q", "a1\n a2 ")), {"merged_turns": 2})


def test_n4_leading_answers_are_dropped() -> None:
    found = result(("gpt", "x"), ("gpt", "y"), ("human", "q"), ("gpt", "a"))
    assert found == (dialogue(("q", "a")), {"leading_gpt": 1, "merged_turns": 1})


def test_n4_a_trailing_question_is_dropped() -> None:
    found = result(("human", "q"), ("gpt", "a"), ("human", "z"))
    assert found == (dialogue(("q", "a")), {"trailing_human": 1})


def test_n4_a_system_turn_does_not_hide_a_leading_answer() -> None:
    found = result(("system", "s"), ("gpt", "x"), ("human", "q"), ("gpt", "a"))
    assert found == (dialogue(("q", "a"), system="s"), {"leading_gpt": 1})


def test_n5_a_blank_answer_drops_its_exchange_only() -> None:
    found = result(("human", "q1"), ("gpt", "\n "), ("human", "q2"), ("gpt", "a2"))
    assert found == (dialogue(("q2", "a2")), {"empty_answer": 1})


def test_n5_a_blank_question_drops_its_exchange_only() -> None:
    found = result(("human", "q1"), ("gpt", "a1"), ("human", "\t"), ("gpt", "a2"))
    assert found == (dialogue(("q1", "a1")), {"empty_question": 1})


def test_n5_an_exchange_that_is_blank_on_both_sides_counts_as_an_empty_answer() -> None:
    found = result(("human", " "), ("gpt", " "), ("human", "q"), ("gpt", "a"))
    assert found == (dialogue(("q", "a")), {"empty_answer": 1})


@pytest.mark.parametrize(
    ("turns", "counters"),
    [
        ([], {}),
        ([("system", "s")], {}),
        ([("human", "q")], {"trailing_human": 1}),
        ([("gpt", "a")], {"leading_gpt": 1}),
        ([("human", "q"), ("gpt", "")], {"empty_answer": 1}),
    ],
)
def test_n5_a_conversation_without_an_exchange_is_rejected(
    turns: list[tuple[str, str]], counters: dict[str, int]
) -> None:
    assert result(*turns) == ("no_exchange", counters)


def test_n6_all_other_text_is_unchanged_byte_for_byte() -> None:
    question, answer = " q\r\n\u00a0</s>\u2028", "\n\ta <n>[PAD] \u0000 "
    assert result(("human", question), ("gpt", answer)) == (dialogue((question, answer)), {})


@pytest.mark.parametrize("row", [row for row in ROWS if row["max_len"] is None], ids=lambda row: str(row["id"]))
def test_the_oracle_agrees_on_rejections_and_counters(row: dict[str, Any]) -> None:
    found, counters = normalise(CONVERSATIONS[row["id"]])
    assert (found.reason if isinstance(found, Rejection) else None) == row["rejected"]
    assert row["rejected"] or dict(+counters) == row["counters"]
