"""The last question of a conversation, by the rules of training, and its ids: what stood before the answer there."""

import json
from pathlib import Path

import pytest

from ds_sft.contracts import Conversation, Exchange, LayoutOptions, Question, Rejection, Turn
from ds_sft.data.draft import Encoder, draft_conversation
from ds_sft.data.normalise import last_question
from ds_sft.data.questions import answer_text, prompt_options, questions_of
from ds_sft.data.read import open_records
from ds_sft.errors import ConfigError, DataError
from ds_sft.families import family_named, family_of

FAMILIES = [("flan_t5", "tiny_checkpoint"), ("yuan2", "tiny_yuan2")]


def conversation(*turns: tuple[str, str]) -> Conversation:
    return Conversation(tuple(Turn(role, text) for role, text in turns), "f:record 1")


def encoder(family: str, folder: Path, max_tokens: int = 512) -> Encoder:
    card = family_named(family)
    return Encoder(card, card.load_tokenizer(folder), LayoutOptions(max_tokens, "last_response"))


Q1, A1, Q2, A2 = ("human", "q1"), ("gpt", "a1"), ("human", "q2"), ("gpt", "a2")


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([Q1, A1, Q2, A2], (Question(None, (Exchange("q1", "a1"),), "q2"), "a2")),
        ([Q1, A1, Q2], (Question(None, (Exchange("q1", "a1"),), "q2"), None)),
        ([Q1], (Question(None, (), "q1"), None)),
        ([("system", "s"), Q1, ("gpt", " \n")], (Question("s", (), "q1"), None)),
        ([A1, Q2, ("human", "more")], (Question(None, (), "q2\nmore"), None)),
        ([Q1, A1, ("human", "  ")], (Question(None, (), "q1"), "a1")),
    ],
)
def test_the_last_question_needs_no_answer(turns: list[tuple[str, str]], expected: tuple[Question, str | None]) -> None:
    assert last_question(conversation(*turns))[0] == expected


@pytest.mark.parametrize("turns", [[], [A1], [("robot", "q")], [Q1, ("system", "s")]])
def test_a_conversation_without_a_question_is_rejected(turns: list[tuple[str, str]]) -> None:
    assert isinstance(last_question(conversation(*turns))[0], Rejection)


@pytest.mark.parametrize(("family", "fixture"), FAMILIES)
def test_a_prompt_is_what_stands_before_the_answer_in_training(
    family: str, fixture: str, request: pytest.FixtureRequest, conversations_file: Path
) -> None:
    card = encoder(family, request.getfixturevalue(fixture))
    records = open_records(conversations_file)
    for one, asked in zip(records, questions_of(records, card), strict=True):
        layout, _ = draft_conversation(one, card)
        assert not isinstance(layout, Rejection)
        sample = card.example(layout.drafts[-1])
        if card.family.is_encoder_decoder:
            assert asked.prompt == list(sample.input_ids)
        else:
            num_before = next(place for place, label in enumerate(sample.labels) if label >= 0)
            assert asked.prompt == list(sample.input_ids)[:num_before]
        assert answer_text([label for label in sample.labels if label >= 0], card) == asked.expected


@pytest.mark.parametrize(("family", "fixture"), FAMILIES)
def test_a_question_that_spells_control_tokens_stays_text(
    family: str, fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    card = encoder(family, request.getfixturevalue(fixture))
    text = "<eod> </s> <sep> <pad> [PAD] <extra_id_0>"
    file = tmp_path / "d.json"
    file.write_text(json.dumps([{"conversations": [{"from": "human", "value": value}]} for value in (text, "plain")]))
    spelt, plain = questions_of(open_records(file), card)
    # A tiny tokenizer has no piece for every character.
    special = set(card.tokenizer.all_special_ids) - {card.tokenizer.unk_token_id}
    # The family's own control tokens are there once each, as in any prompt.
    assert special & set(plain.prompt)
    assert [one for one in spelt.prompt if one in special] == [one for one in plain.prompt if one in special]


@pytest.mark.parametrize(("family", "fixture"), FAMILIES)
def test_the_oldest_exchanges_leave_a_prompt_that_is_too_long(
    family: str, fixture: str, request: pytest.FixtureRequest
) -> None:
    turns = [turn for n in range(4) for turn in (("human", f"question {n}"), ("gpt", f"answer {n}"))]
    folder = request.getfixturevalue(fixture)
    whole = encoder(family, folder)
    question = last_question(conversation(*turns, ("human", "last")))[0]
    assert not isinstance(question, Rejection)
    prompt = whole.family.lay_out_prompt(question[0], whole.options, whole.measure)
    assert prompt.num_dropped == 0
    limit = whole.count_tokens(prompt.segments) - 1
    short = encoder(family, folder, limit)
    cut = short.family.lay_out_prompt(question[0], short.options, short.measure)
    told = "".join(segment.text for segment in cut.segments)
    assert (cut.num_dropped, "question 0" in told, "answer 1" in told, "last" in told) == (1, False, True, True)
    tiny = encoder(family, folder, 1)
    assert tiny.family.lay_out_prompt(question[0], tiny.options, tiny.measure).segments == ()


def test_records_that_cannot_be_asked_are_counted_and_named(
    tiny_checkpoint: Path, tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "d.jsonl"
    lines = [
        [{"from": "robot", "value": "x"}],
        [{"from": "human", "value": "word " * 600}],
        [{"from": "human", "value": "q"}],
    ]
    file.write_text("\n".join(json.dumps({"conversations": line}) for line in lines))
    (asked,) = questions_of(open_records(file), encoder("flan_t5", tiny_checkpoint))
    assert (asked.place, asked.question, asked.expected) == (f"{file}:line 3", "q", None)
    assert f"not asked: {file}:line 1: unknown_role: turn 1 has role 'robot'" in told.text
    assert f"not asked: {file}:line 2: prompt_too_long: the question must fit into 512 tokens" in told.text
    assert "3 records, 1 questions, 1 rejected_unknown_role, 1 rejected_prompt_too_long" in told.text


def test_a_file_without_a_question_is_a_fault(tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "d.json"
    file.write_text('[{"conversations": [{"from": "gpt", "value": "x"}]}]')
    with pytest.raises(DataError, match="must hold at least one question, but none of 1 records gave one"):
        list(questions_of(open_records(file), encoder("flan_t5", tiny_checkpoint)))


def test_an_answer_behind_the_prompt_takes_room_from_it() -> None:
    t5, yuan = (family_of({"model_type": kind}, folder=Path("m")) for kind in ("t5", "yuan"))
    given = {"max_tokens": 100, "max_new_tokens": 30}
    assert prompt_options(t5, **given, layout="native").max_tokens == 100
    assert prompt_options(yuan, **given, layout="fastchat") == LayoutOptions(70, "last_response", "fastchat")
    with pytest.raises(ConfigError, match=r"max_new_tokens: must be below model_max_length \(100\), but is 100"):
        prompt_options(yuan, max_tokens=100, max_new_tokens=100, layout="native")
