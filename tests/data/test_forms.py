"""Each form of a record gives the same turns; a record of none of them, or of two, is told with its keys."""

import json
from typing import Any

import msgspec
import pytest

from ds_sft.contracts import Turn
from ds_sft.data.forms import check, decode, identity_of, turns_of

TURNS = (Turn("human", "Hé?\n"), Turn("gpt", " 好 "))
SHAREGPT = [{"from": "human", "value": "Hé?\n"}, {"from": "gpt", "value": " 好 "}]
MESSAGES = [{"role": "human", "content": "Hé?\n"}, {"role": "gpt", "content": " 好 "}]
PAIR = {"instruction": "Hé?\n", "output": " 好 "}


def turns(record: object) -> tuple[Turn, ...]:
    text = json.dumps(record).encode()
    check(text)
    return turns_of(decode(text))


def fault(record: object) -> str:
    with pytest.raises(msgspec.ValidationError) as caught:
        check(json.dumps(record).encode())
    return str(caught.value)


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": SHAREGPT},
        {"conversations": MESSAGES},
        {"messages": MESSAGES},
        {"messages": SHAREGPT},
        {"conversations": [SHAREGPT[0], MESSAGES[1]]},
        {"messages": [{"from": "human", "content": "Hé?\n"}, {"role": "gpt", "value": " 好 "}]},
        PAIR,
        {**PAIR, "input": None, "system": None, "history": None},
        {**PAIR, "input": " \n", "system": "", "history": []},
    ],
)
def test_every_form_gives_the_same_turns(record: object) -> None:
    assert turns(record) == TURNS


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": SHAREGPT, "messages": None, "instruction": None, "output": None},
        {"conversations": None, "messages": MESSAGES},
        {"conversations": None, "messages": None, **PAIR},
        {"conversations": [{**message, "role": None, "content": None} for message in SHAREGPT]},
    ],
)
def test_null_stands_for_a_key_that_is_not_there(record: object) -> None:
    assert turns(record) == TURNS


@pytest.mark.parametrize("other", [{"instruction": "x"}, {"output": "x"}, {"input": "x", "history": 3, "text": 4}])
def test_keys_that_make_no_form_of_their_own_are_skipped(other: dict[str, Any]) -> None:
    assert turns({"conversations": SHAREGPT, **other}) == TURNS


def test_the_input_of_an_instruction_follows_it_on_a_new_line() -> None:
    assert turns({"instruction": " Add. ", "input": "1\n2 ", "output": "3"})[0] == Turn("human", " Add. \n1\n2 ")


def test_a_blank_instruction_gives_way_to_its_input() -> None:
    assert turns({"instruction": " ", "input": " 1+2? ", "output": "3"})[0] == Turn("human", " 1+2? ")


def test_history_comes_before_the_instruction() -> None:
    assert turns({**PAIR, "history": [["a", "b"], ["c", 3]]}) == (
        Turn("human", "a"),
        Turn("gpt", "b"),
        Turn("human", "c"),
        Turn("gpt", 3),
        *TURNS,
    )


@pytest.mark.parametrize("record", [{"conversations": SHAREGPT}, {"messages": MESSAGES}, PAIR])
def test_a_system_text_beside_the_messages_is_the_first_turn(record: dict[str, Any]) -> None:
    assert turns({**record, "system": " Be kind. "}) == (Turn("system", " Be kind. "), *TURNS)
    assert turns({**record, "system": " \n"}) == TURNS


@pytest.mark.parametrize("bad", [3, ["x"], {"text": "x"}, True])
def test_values_of_another_kind_are_left_for_normalisation(bad: object) -> None:
    assert turns({"conversations": [{"from": bad, "value": bad}]}) == (Turn(bad, bad),)
    assert turns({"instruction": bad, "output": bad, "system": bad}) == (
        Turn("system", bad),
        Turn("human", bad),
        Turn("gpt", bad),
    )
    assert turns({"instruction": "x", "input": bad, "output": None}) == (Turn("human", bad), Turn("gpt", None))


def test_a_message_without_speaker_or_text_is_left_for_normalisation() -> None:
    assert turns({"messages": [{}, {"role": "user"}, {"text": "x"}]}) == (
        Turn(None, None),
        Turn("user", None),
        Turn(None, None),
    )


def test_parts_that_are_all_text_are_joined_with_a_newline() -> None:
    parts = [{"type": "text", "text": " a"}, {"type": "text", "text": "b\n"}]
    assert turns({"messages": [{"role": "user", "content": parts}]}) == (Turn("user", " a\nb\n"),)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        ["a"],
        [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}],
        [{"type": "text", "text": "a"}, {"type": "text", "text": None}],
        [{"type": "text"}],
        [{"text": "a"}],
    ],
)
def test_parts_that_are_not_all_text_are_left_for_normalisation(parts: list[Any]) -> None:
    assert turns({"messages": [{"role": "user", "content": parts}]}) == (Turn("user", parts),)


@pytest.mark.parametrize(
    ("identity", "told"),
    [("a", "a"), ("", ""), (7, "7"), (None, ""), (1.5, ""), ([1], ""), ({"a": 1}, "")],
)
def test_an_identity_is_text_or_a_whole_number(identity: object, told: str) -> None:
    assert identity_of(decode(json.dumps({"id": identity, "messages": []}).encode())) == told


NONE_OF_THEM = "must hold `conversations`, `messages` or `instruction` and `output`, but has "


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({}, "no keys"),
        ({"conversation": [], "id": 1}, "`conversation`, `id` (did you mean `conversations`?)"),
        ({"id": 1, "Message": []}, "`id`, `Message` (did you mean `messages`?)"),
        ({"instruction": "x", "ouput": "y"}, "`instruction`, `ouput` (did you mean `output`?)"),
        ({"instruction": "x", "input": "y"}, "`instruction`, `input`"),
        ({"conversations": None}, "`conversations` (null)"),
        ({"prompt": "x", "response": "y"}, "`prompt`, `response`"),
        ({f"k{number}": 0 for number in range(11)}, "`k0`, `k1`, `k2`, `k3`, `k4`, `k5`, `k6`, `k7` and 3 more"),
        ({"a\nb" + "x" * 1_000_000: 0}, "`a\\nb" + "x" * 36 + "`"),
    ],
)
def test_a_record_of_no_form_is_told_with_its_keys_and_the_one_that_was_meant(record: object, told: str) -> None:
    assert fault(record) == NONE_OF_THEM + told


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"conversations": [], "messages": []}, "`conversations` and `messages`"),
        ({"conversations": [], **PAIR}, "`conversations` and `instruction`"),
        ({"messages": MESSAGES, **PAIR}, "`messages` and `instruction`"),
    ],
)
def test_a_record_of_two_forms_is_refused_with_both(record: object, told: str) -> None:
    assert fault(record) == f"must have one form, but has both {told}"


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (
            {"conversations": [SHAREGPT[0], {**SHAREGPT[1], "role": "gpt"}]},
            "`conversations[1]` must name one speaker, but has both `from` and `role`",
        ),
        (
            {"messages": [{**MESSAGES[0], "value": ""}]},
            "`messages[0]` must hold one text, but has both `value` and `content`",
        ),
        ({**PAIR, "history": "x"}, "`history` must be array or null, but is str"),
        ({**PAIR, "history": [["a", "b"], ["c"]]}, "`history[1]` must be question and answer, but is ['c']"),
        ({**PAIR, "history": ["ab"]}, "`history[0]` must be question and answer, but is ab"),
        ({"conversations": 3}, "Expected `array | null`, got `int` - at `$.conversations`"),
        ({"messages": [[]]}, "Expected `object`, got `array` - at `$.messages[0]`"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused_with_its_field(record: object, told: str) -> None:
    assert fault(record) == told
