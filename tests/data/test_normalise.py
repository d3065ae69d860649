"""The rules N1 to N6, one by one, and the whole oracle."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def detail(*turns: tuple[object, object]) -> str:
    """Give the reason and its detail for turns that are rejected."""
    found, _ = normalise(Conversation(tuple(Turn(role, text) for role, text in turns), "here"))
    assert isinstance(found, Rejection)
    return f"{found.reason}: {found.detail}"


KNOWN = "known are human, user, gpt, assistant, chatgpt, system"


@pytest.mark.parametrize(
    ("role", "told"),
    [
        ("asistant", "role 'asistant'; did you mean 'assistant'?"),
        (" Usr\n", "role ' Usr\\n'; did you mean 'user'?"),
        ("tool", f"role 'tool'; {KNOWN}"),
        ("function", f"role 'function'; {KNOWN}"),
        ("", f"role ''; {KNOWN}"),
        ("x" * 1_000_000, f"role '{'x' * 40}'; {KNOWN}"),
        (None, "no role"),
        (3, "a number as role"),
        (["human"], "an array as role"),
        (True, "a true or false as role"),
    ],
)
def test_an_unknown_role_is_told_with_its_turn_and_the_role_that_was_meant(role: object, told: str) -> None:
    assert detail(("human", "q"), (role, "a"), ("robot", 3)) == f"unknown_role: turn 2 has {told}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "no text"),
        (3, "a number as text"),
        (0.5, "a number as text"),
        ([], "an array as text"),
        ({"a": 1}, "an object as text"),
        (False, "a true or false as text"),
    ],
)
def test_a_bad_value_is_told_with_its_turn_and_kind(text: object, told: str) -> None:
    assert detail(("human", "q"), ("gpt", "a"), ("human", text), ("gpt", None)) == f"bad_value: turn 3 has {told}"


def test_a_system_turn_out_of_place_is_told_with_its_number() -> None:
    assert detail(("human", "q"), ("gpt", "a"), ("system", "s"), ("system", "t")) == (
        "system_not_first: turn 3 is a system turn, and only the first may be one"
    )


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ([], "0 turns"),
        ([("system", "s"), ("user", "q")], "2 turns: 1 system, 1 human (1 trailing_human)"),
        ([("human", "q"), ("gpt", " ")], "2 turns: 1 human, 1 gpt (1 empty_answer)"),
        ([("gpt", "a"), ("gpt", "b")], "2 turns: 2 gpt (1 merged_turns, 1 leading_gpt)"),
    ],
)
def test_a_conversation_without_an_exchange_is_told_with_what_it_has(
    turns: list[tuple[object, object]], told: str
) -> None:
    assert detail(*turns) == f"no_exchange: no question has an answer in {told}"


SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "Assistant ": "gpt"}
TEXTS = st.sampled_from(["", " \n", "\u3000", "a", "b\nc", " d\r\n"]) | st.text(max_size=6)
SOUND_TURNS = st.tuples(st.sampled_from(sorted(SPEAKERS)), TEXTS)
ANY_TURNS: st.SearchStrategy[tuple[Any, Any]] = st.tuples(
    st.sampled_from([*SPEAKERS, "system", "bot", None, 3]), TEXTS | st.sampled_from([None, 3, True, [], {}])
)
CONVERSATIONS_OF_ANY_KIND = st.tuples(
    st.lists(st.tuples(st.just("system"), TEXTS), max_size=1), st.lists(SOUND_TURNS, max_size=8)
).map(lambda parts: parts[0] + parts[1]) | st.lists(ANY_TURNS, max_size=5)
"""Most of them are sound: a single turn with a fault rejects its conversation."""

Turns = list[tuple[Any, Any]]


def check_identities(turns: Turns) -> None:
    """Check what is true of every conversation, by other means than the code uses."""
    found, counters = normalise(Conversation(tuple(Turn(role, text) for role, text in turns), "here"))
    if isinstance(found, Rejection) and found.reason != "no_exchange":
        is_at_fault = {
            "unknown_role": any(role not in {*SPEAKERS, "system"} for role, _ in turns),
            "bad_value": any(not isinstance(text, str) for _, text in turns),
            "system_not_first": "system" in [role for role, _ in turns[1:]],
        }
        assert is_at_fault[found.reason]
        return
    exchanges = () if isinstance(found, Rejection) else found.exchanges
    assert bool(exchanges) == isinstance(found, Dialogue)
    check_counts(turns, len(exchanges), counters)
    check_texts(turns, exchanges)
    if isinstance(found, Dialogue):
        assert found.system == (turns[0][1] if turns[0][0] == "system" and turns[0][1].strip() else None)


def check_counts(turns: Turns, num_exchanges: int, counters: Mapping[str, int]) -> None:
    """Every turn is part of an exchange, or counted as merged or dropped."""
    num_spoken = sum(role != "system" for role, _ in turns)
    num_pairs = num_exchanges + counters["empty_answer"] + counters["empty_question"]
    num_alone = counters["leading_gpt"] + counters["trailing_human"]
    assert num_spoken == 2 * num_pairs + num_alone + counters["merged_turns"]


def check_texts(turns: Turns, exchanges: Sequence[Exchange]) -> None:
    """Every side is what one speaker said, byte for byte, joined from neighbours, in the order of the file."""
    given = [(SPEAKERS[role], text) for role, text in turns if role != "system" and text.strip()]
    position = 0
    for speaker, side in (
        (name, text) for one in exchanges for name, text in (("human", one.question), ("gpt", one.answer))
    ):
        assert side.strip()
        ends = [
            end
            for start in range(position, len(given))
            for end in range(start + 1, len(given) + 1)
            if "\n".join(text for _, text in given[start:end]) == side
            and {name for name, _ in given[start:end]} == {speaker}
        ]
        assert ends
        position = ends[0]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(turns=CONVERSATIONS_OF_ANY_KIND)
def test_any_conversation_gives_samples_that_satisfy_the_identities_or_a_rejection(turns: Turns) -> None:
    check_identities(turns)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, derandomize=True)
@given(turns=CONVERSATIONS_OF_ANY_KIND)
def test_2000_conversations_give_samples_that_satisfy_the_identities_or_a_rejection(turns: Turns) -> None:
    check_identities(turns)
