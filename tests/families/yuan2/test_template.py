"""Samples are those of the oracle in every loss mode, and the limit is kept by dropping history or cutting between."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from ds_sft.contracts import Dialogue, Draft, Exchange, LayoutOptions, Segment
from ds_sft.data.normalise import normalise
from ds_sft.data.read import read_conversations
from ds_sft.errors import ConfigError
from ds_sft.families.yuan2.template import CHAT_TEMPLATE, CONTROL_TOKENS, lay_out

GOLDEN = Path(__file__).parents[2] / "golden" / "conversations"
ROWS: list[dict[str, Any]] = json.loads((GOLDEN / "expected_semantics_yuan2.json").read_text(encoding="utf-8"))
CONVERSATIONS = {one.identity: one for one in read_conversations(GOLDEN / "conversations.json")}
NO_LIMIT = 10**9
LossMode = Literal["last_response", "split_example", "efficient"]
MODES: tuple[LossMode, ...] = ("last_response", "split_example", "efficient")


def options_of(mode: str, max_tokens: int = NO_LIMIT) -> LayoutOptions:
    """Translate the oracle's name of a mode."""
    return {
        "last_response": LayoutOptions(max_tokens, "last_response"),
        "split": LayoutOptions(max_tokens, "split_example"),
        "efficient": LayoutOptions(max_tokens, "efficient"),
        "efficient_fastchat_layout": LayoutOptions(max_tokens, "efficient", "fastchat"),
    }[mode]


def measure(segments: Sequence[Segment]) -> int:
    """Count as the oracle's char tokenizer does: a code point is a token, and so is each marker, `<n>` too."""
    return sum(1 if segment.kind == "control" or segment.text == "<n>" else len(segment.text) for segment in segments)


def drafts(dialogue: Dialogue, options: LayoutOptions) -> list[Draft]:
    return lay_out(dialogue, options, measure).drafts


def cut(draft: Draft, max_tokens: int) -> list[tuple[str, bool]]:
    """Cut a sample as `encode` does, one code point a token: text and supervision of every token."""
    tokens = []
    for one in draft.target:
        whole = one.kind == "control" or one.text == "<n>"
        tokens += [(piece, one.loss) for piece in ([one.text] if whole else one.text)]
    return tokens[:max_tokens]


def marked(draft: Draft, max_tokens: int = NO_LIMIT) -> str:
    """Show a sample with its supervised stretches in «»."""
    shown, before = "", False
    for text, loss in [*cut(draft, max_tokens), ("", False)]:
        shown += ("«" if loss else "»") * (loss != before) + text
        before = loss
    return shown


def expected_marks(segments: Sequence[dict[str, Any]]) -> str:
    return marked(Draft(tuple(Segment("control", one["text"], loss=one["loss"]) for one in segments)))


def name_of(row: dict[str, Any]) -> str:
    return f"{row['id']}-{row['mode']}-{row['max_len']}"


USABLE = [row for row in ROWS if not row["rejected"]]


@pytest.mark.parametrize("row", USABLE, ids=name_of)
def test_the_oracle_agrees_on_every_sample_and_what_is_supervised_in_it(row: dict[str, Any]) -> None:
    dialogue, _ = normalise(CONVERSATIONS[row["id"]])
    assert isinstance(dialogue, Dialogue)
    limit = row["max_len"] or NO_LIMIT
    got = [marked(draft, limit) for draft in drafts(dialogue, options_of(row["mode"], limit))]
    assert got == [expected_marks(sample["segments"]) for sample in row["samples"]]


@pytest.mark.parametrize("row", USABLE, ids=name_of)
def test_the_oracle_agrees_on_every_counter(row: dict[str, Any]) -> None:
    dialogue, counters = normalise(CONVERSATIONS[row["id"]])
    assert isinstance(dialogue, Dialogue)
    layout = lay_out(dialogue, options_of(row["mode"], row["max_len"] or NO_LIMIT), measure)
    assert dict(+(counters + layout.counters)) == row["counters"]


@pytest.mark.parametrize("row", [row for row in USABLE if not row["max_len"]], ids=name_of)
def test_the_oracle_agrees_on_what_is_a_control_token(row: dict[str, Any]) -> None:
    dialogue, _ = normalise(CONVERSATIONS[row["id"]])
    assert isinstance(dialogue, Dialogue)
    kinds = {"text": "text", "n": "text", "sep": "control", "eod": "control"}
    for draft, sample in zip(drafts(dialogue, options_of(row["mode"])), row["samples"], strict=True):
        assert [(one.kind, one.text) for one in draft.target] == [
            (kinds[one["kind"]], one["text"]) for one in sample["segments"]
        ]


TWO = Dialogue("Be kind.", (Exchange("q1", "a1"), Exchange("q2", "a2")))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("last_response", ["Be kind.\nq1<n>a1<n>q2<sep>«a2<eod>»"]),
        ("split", ["Be kind.\nq1<sep>«a1<eod>»", "Be kind.\nq1<n>a1<n>q2<sep>«a2<eod>»"]),
        ("efficient", ["Be kind.\nq1<n>«a1»<n>q2<sep>«a2<eod>»"]),
        ("efficient_fastchat_layout", ["Be kind.\nq1<n>«a1<n>»q2<n>«a2<eod>»"]),
    ],
)
def test_two_exchanges_and_a_system_text(mode: str, expected: list[str]) -> None:
    assert [marked(draft) for draft in drafts(TWO, options_of(mode))] == expected


@pytest.mark.parametrize("mode", ["last_response", "split_example"])
def test_fastchats_layout_with_another_loss_is_refused(mode: LossMode) -> None:
    with pytest.raises(ConfigError) as caught:
        lay_out(TWO, LayoutOptions(NO_LIMIT, mode, "fastchat"), measure)
    assert str(caught.value) == (
        f"layout: fastchat must go with efficient_loss, but the loss is {mode}; drop one of them"
    )


TEXTS = st.text(alphabet="ab<n>se\n 好", min_size=1, max_size=12)
EXCHANGES = st.lists(st.builds(Exchange, TEXTS, TEXTS), min_size=1, max_size=7)
DIALOGUES = st.builds(Dialogue, st.none() | TEXTS, EXCHANGES.map(tuple))
EXAMPLES = settings(max_examples=150, deadline=None, derandomize=True)


def answers(draft: Draft) -> list[str]:
    """Give the supervised texts without the end."""
    return [one.text for one in draft.target if one.loss and one.kind == "text"]


@EXAMPLES
@given(dialogue=DIALOGUES)
def test_with_one_exchange_all_modes_give_the_same(dialogue: Dialogue) -> None:
    one = Dialogue(dialogue.system, dialogue.exchanges[:1])
    first, *others = (drafts(one, LayoutOptions(NO_LIMIT, mode)) for mode in MODES)
    assert len(first) == 1
    assert others == [first, first]


@EXAMPLES
@given(dialogue=DIALOGUES, limit=st.integers(2, 80))
def test_the_last_sample_of_split_is_that_of_last_response(dialogue: Dialogue, limit: int) -> None:
    split = lay_out(dialogue, LayoutOptions(limit, "split_example"), measure)
    last = lay_out(dialogue, LayoutOptions(limit, "last_response"), measure)
    if last.drafts:
        assert split.drafts[-1:] == last.drafts
    else:
        assert last.counters["prompt_too_long"] == 1
        assert split.counters["prompt_too_long"] >= 1


@EXAMPLES
@given(dialogue=DIALOGUES)
def test_split_and_efficient_supervise_every_answer_once(dialogue: Dialogue) -> None:
    expected = [exchange.answer for exchange in dialogue.exchanges]
    for mode in ("split", "efficient"):
        assert [text for draft in drafts(dialogue, options_of(mode)) for text in answers(draft)] == expected


@EXAMPLES
@given(dialogue=DIALOGUES, limit=st.integers(2, 80))
def test_under_any_limit_each_answer_is_in_one_efficient_sample_or_its_question_was_too_long(
    dialogue: Dialogue, limit: int
) -> None:
    layout = lay_out(dialogue, LayoutOptions(limit, "efficient"), measure)
    found = [text for draft in layout.drafts for text in answers(draft)]
    head = len(dialogue.system) + 1 if dialogue.system else 0
    assert found == [one.answer for one in dialogue.exchanges if head + len_of(one.question) + 1 < limit]
    assert layout.counters["prompt_too_long"] == len(dialogue.exchanges) - len(found)


def len_of(text: str) -> int:
    return 1 if text == "<n>" else len(text)


@EXAMPLES
@given(dialogue=DIALOGUES, limit=st.integers(2, 80), mode=st.sampled_from(MODES))
def test_only_a_sample_of_one_exchange_is_over_the_limit(dialogue: Dialogue, limit: int, mode: LossMode) -> None:
    layout = lay_out(dialogue, LayoutOptions(limit, mode), measure)
    over = [draft for draft in layout.drafts if measure(draft.target) > limit]
    assert layout.counters["answer_truncated"] == len(over)
    for draft in over:
        assert len(draft.target) == (5 if dialogue.system else 4)
        assert cut(draft, limit)[-1][1]


@EXAMPLES
@given(dialogue=DIALOGUES, limit=st.integers(2, 80))
def test_the_history_is_the_longest_that_fits(dialogue: Dialogue, limit: int) -> None:
    exchanges = dialogue.exchanges
    head = [Segment("text", f"{dialogue.system}\n")] if dialogue.system else []

    def whole(first: int) -> int:
        told = [Segment("text", text) for one in exchanges[first:] for text in (one.question, "<n>", one.answer, "<n>")]
        return measure([*head, *told])

    layout = lay_out(dialogue, LayoutOptions(limit, "last_response"), measure)
    fitting = [first for first in range(len(exchanges)) if whole(first) <= limit]
    assert layout.counters["history_dropped"] == min(fitting, default=len(exchanges) - 1)


@pytest.mark.parametrize("mode", [*MODES])
def test_the_limit_is_filled_to_the_last_token(mode: LossMode) -> None:
    whole = len("Be kind.\nq1") + 1 + len("a1") + 1 + len("q2") + 1 + len("a2") + 1
    assert marked(drafts(TWO, LayoutOptions(whole, mode))[-1]).startswith("Be kind.\nq1<n>")
    shorter = lay_out(TWO, LayoutOptions(whole - 1, mode), measure)
    assert marked(shorter.drafts[-1]) == "Be kind.\nq2<sep>«a2<eod>»"
    assert shorter.counters["answer_truncated"] == 0


def test_an_answer_that_lacks_one_token_loses_only_the_end() -> None:
    one = Dialogue(None, (Exchange("q", "answer"),))
    (draft,) = drafts(one, LayoutOptions(8, "efficient"))
    assert marked(draft, 8) == "q<sep>«answer»"


def test_text_that_spells_markers_stays_text() -> None:
    (draft,) = drafts(Dialogue("<sep>", (Exchange("<eod><n>", "<sep>"),)), options_of("efficient"))
    assert [one.text for one in draft.target if one.kind == "control"] == ["<sep>", "<eod>"]
    assert draft.target[-2] == Segment("text", "<sep>", loss=True)


@pytest.mark.parametrize("mode", [*MODES])
def test_the_work_of_measuring_grows_with_the_length_of_a_conversation_and_not_with_its_square(mode: LossMode) -> None:
    measured = 0

    def counting(segments: Sequence[Segment]) -> int:
        nonlocal measured
        measured += measure(segments)
        return measure(segments)

    exchanges = tuple(Exchange(f"question {index:04}", f"answer {index:04}") for index in range(2000))
    layout = lay_out(Dialogue("s", exchanges), LayoutOptions(500, mode), counting)
    assert layout.drafts
    num_samples = {"last_response": 1, "split_example": 2000, "efficient": 2000 // 20}[mode]
    assert measured <= 10 * 500 * num_samples


def test_the_control_tokens_stand_in_the_order_of_the_official_loader() -> None:
    golden = json.loads((GOLDEN / "yuan_tokenizer_golden.json").read_text(encoding="utf-8"))
    assert list(CONTROL_TOKENS) == [*golden["add_tokens"], "<eod>"]


def rendered(messages: Sequence[tuple[str, str]], *, is_prompt: bool) -> str:
    """Render the chat template as transformers does."""
    conversation = [{"role": role, "content": content} for role, content in messages]
    done: Any = render_jinja_template(
        conversations=[conversation], chat_template=CHAT_TEMPLATE, add_generation_prompt=is_prompt
    )
    return str(done[0][0])


def messages_of(dialogue: Dialogue) -> list[tuple[str, str]]:
    system = [("system", dialogue.system)] if dialogue.system is not None else []
    turns = [pair for one in dialogue.exchanges for pair in (("user", one.question), ("assistant", one.answer))]
    return [*system, *turns]


def joined(segments: Sequence[Segment]) -> str:
    return "".join(one.text for one in segments)


@EXAMPLES
@given(dialogue=DIALOGUES.filter(lambda one: one.system is None or one.system.strip() != ""))
def test_the_chat_template_renders_what_stands_before_the_answer_and_behind_it(dialogue: Dialogue) -> None:
    (draft,) = drafts(dialogue, options_of("last_response"))
    messages = messages_of(dialogue)
    assert rendered(messages[:-1], is_prompt=True) == joined(draft.target[:-2])
    assert rendered(messages, is_prompt=False) == joined(draft.target)


@pytest.mark.parametrize("system", ["", " ", "\n\t "])
def test_a_blank_system_message_counts_as_absent_in_the_chat_template(system: str) -> None:
    assert rendered([("system", system), ("user", " q ")], is_prompt=True) == " q <sep>"


@pytest.mark.parametrize(
    ("roles", "told"),
    [
        (["user", "tool"], "role must be user or assistant, but is tool"),
        (["user", "assistant", "system"], "role must be user or assistant, but is system"),
        (["assistant"], "roles must alternate from user on, but assistant is out of turn"),
        (["user", "user"], "roles must alternate from user on, but user is out of turn"),
        (["user", "assistant"], "the last role must be user, but is assistant"),
    ],
)
def test_the_chat_template_refuses_what_training_never_saw(roles: list[str], told: str) -> None:
    with pytest.raises(Exception, match=told):
        rendered([(role, "x") for role in roles], is_prompt=True)
