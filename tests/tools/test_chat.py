"""A conversation is laid out as in training, shown while it is written, and can be stopped, forgotten and saved."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ds_sft.contracts import Exchange, LayoutOptions, Question, Rejection
from ds_sft.data.draft import Encoder, draft_conversation
from ds_sft.data.questions import prompt_of
from ds_sft.data.read import open_records
from ds_sft.families import family_named
from ds_sft.tools.asking import Asking
from ds_sft.tools.chat import Request, Talk
from tests.test_cli import ds_sft_verb

MOST = 30
FAMILIES = [("flan_t5", "tiny_checkpoint"), ("yuan2", "tiny_yuan2")]


class Scripted:
    """A model that gives answers from a list, and a terminal that keeps what it is shown."""

    def __init__(self, encoder: Encoder, answers: Sequence[str], system: str | None = None) -> None:
        self.encoder, self.answers = encoder, iter(answers)
        self.prompts: list[Sequence[int]] = []
        self.pieces: list[str] = []
        loaded: Any = SimpleNamespace(write=self._write, ends=SimpleNamespace(end=encoder.tokenizer.eos_token_id))
        self.talk = Talk(Request("m", Asking(max_new_tokens=MOST), system), loaded, encoder, self.show)

    def _write(
        self, prompts: Sequence[Sequence[int]], _asking: Asking, *, numbers: Sequence[int]
    ) -> Iterator[list[int]]:
        assert len(numbers) == 1
        self.prompts += prompts
        family, tokenizer = self.encoder.family, self.encoder.tokenizer
        ids = family.encode_text(tokenizer, next(self.answers) + family.answer_end, is_continued=False)
        yield from ([one] for one in [*ids, self.encoder.tokenizer.eos_token_id][:MOST])

    def show(self, piece: str) -> None:
        self.pieces.append(piece)

    @property
    def shown(self) -> str:
        return "".join(self.pieces)


def encoder_of(family: str, folder: Path, max_tokens: int = 512) -> Encoder:
    card = family_named(family)
    return Encoder(card, card.load_tokenizer(folder), LayoutOptions(max_tokens, "last_response"))


@pytest.fixture
def encoder(tiny_yuan2: Path) -> Encoder:
    """A family whose tokenizer has bytes for every character."""
    return encoder_of("yuan2", tiny_yuan2)


@pytest.mark.parametrize(("family", "fixture"), FAMILIES)
def test_every_turn_is_asked_with_all_that_was_said_before(
    family: str, fixture: str, request: pytest.FixtureRequest
) -> None:
    encoder = encoder_of(family, request.getfixturevalue(fixture))
    model = Scripted(encoder, ["one answer", "another"], system="Be brief.")
    assert [model.talk.hear(line) for line in ("first </s> <eod>", "", "second")] == [True, True, True]
    first = Question("Be brief.", (), "first </s> <eod>")
    second = Question("Be brief.", (Exchange("first </s> <eod>", "one answer"),), "second")
    assert model.prompts == [prompt_of(question, encoder)[0] for question in (first, second)]
    assert model.shown == "one answer\nanother\n"


def test_an_answer_is_shown_while_it_is_written_and_characters_come_whole(encoder: Encoder) -> None:
    model = Scripted(encoder, ["the \u9f98\U0001f600 end"])
    model.talk.hear("q")
    assert model.shown == "the \u9f98\U0001f600 end\n"
    assert len(model.pieces) > 3
    assert "\ufffd" not in model.shown


def test_control_characters_of_an_answer_are_shown_and_not_sent(encoder: Encoder) -> None:
    model = Scripted(encoder, ["a\x1b[2Jb"])
    model.talk.hear("q")
    assert model.shown == "a\u241b[2Jb\n"


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(
    encoder: Encoder, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Scripted(encoder, ["one two three", "fine"])

    def stop(piece: str) -> None:
        Scripted.show(model, piece)
        if len(model.pieces) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(model.talk, "_show", stop)
    assert model.talk.hear("q")
    begun = model.shown.removesuffix("\n")
    assert begun
    assert "one two three".startswith(begun)
    assert begun != "one two three"
    assert "stopped" in told.text
    assert model.talk.hear("and?")
    assert model.prompts[1] == prompt_of(Question(None, (Exchange("q", begun),), "and?"), encoder)[0]


def test_a_saved_conversation_is_a_data_file(encoder: Encoder, tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    model, file = Scripted(encoder, ["a1", "a2"], system="s"), tmp_path / "talk.json"
    for line in ("q1", " /q2", f"/save {file}", f"/save {file}", "/save"):
        assert model.talk.hear(line)
    (conversation,) = open_records(file)
    layout, _ = draft_conversation(conversation, encoder)
    assert not isinstance(layout, Rejection)
    assert "".join(segment.text for segment in layout.drafts[0].target) == "s\nq1<n>a1<n> /q2<sep>a2<eod>"
    assert "File exists; name another one" in told.text
    assert "/save: needs a file's name" in told.text


def test_answers_that_are_not_whole_are_told_when_they_are_saved(
    encoder: Encoder, tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    model = Scripted(encoder, ["word " * 40])
    model.talk.hear("q")
    model.talk.hear(f"/save {tmp_path / 'talk.json'}")
    assert "the answer is not whole (most tokens: --max_new_tokens 30)" in told.text
    assert "1 of its answers are not whole" in told.text


def test_reset_forgets_all_but_the_system_text(encoder: Encoder) -> None:
    model = Scripted(encoder, ["a1", "a2"], system="s")
    for line in ("q1", "/reset", "q2"):
        model.talk.hear(line)
    assert model.prompts[1] == prompt_of(Question("s", (), "q2"), encoder)[0]


def test_what_cannot_be_asked_is_told_and_costs_nothing(tiny_yuan2: Path, told: pytest.LogCaptureFixture) -> None:
    model = Scripted(encoder_of("yuan2", tiny_yuan2, 20), ["", "a"])
    for line in ("long " * 30, "/sav x", "\udcff", "q", "q2"):
        assert model.talk.hear(line)
    faults = [line.split(":")[0] for line in told.messages if ": must fit" in line or ": must be UTF-8" in line]
    assert faults == ["question", "question"]
    assert "/sav: command must exist, but does not" in told.text
    assert "the answer is blank" in told.text
    # The blank answer is not part of it.
    assert model.prompts[1] == prompt_of(Question(None, (), "q2"), model.encoder)[0]


def test_quit_ends_it(encoder: Encoder) -> None:
    assert not Scripted(encoder, []).talk.hear("/quit")


def test_away_from_a_terminal_every_line_is_a_question(tiny_yuan2: Path) -> None:
    ended = ds_sft_verb("chat", tiny_yuan2, "--max_new_tokens", "3", stdin="hello\n/reset\nand you?\n")
    assert ended.code == 0
    assert len(ended.out.splitlines()) == 2
    assert "> " not in ended.out


def test_a_saved_file_is_read_by_people_too(encoder: Encoder, tmp_path: Path) -> None:
    model = Scripted(encoder, ["\u5929"])
    model.talk.hear("\u5730")
    model.talk.hear(f"/save {tmp_path / 'talk.json'}")
    content = (tmp_path / "talk.json").read_text(encoding="utf-8")
    assert "\u5929" in content
    assert json.loads(content)[0]["conversations"][0] == {"from": "human", "value": "\u5730"}
