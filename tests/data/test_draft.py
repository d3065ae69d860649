"""Lengths are bounded without tokenising, and samples are the same as if every token were counted."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_sft.contracts import Conversation, Dialogue, LayoutOptions, LossMode, Segment, Turn
from ds_sft.data.draft import Encoder, draft_conversation, most_tokens
from ds_sft.data.normalise import normalise
from ds_sft.families import family_named

TOKENIZERS = Path(__file__).parents[3] / "shared" / "fixtures" / "tokenizers"
LIMIT = 150
# What becomes longest: words of one character, compatibility forms, bytes, marks, our separators.
PIECES = [" ", "\n", "a", "~", "<", "é", "½", "\ufdfa", "\ufdfb", "\u3300", "好", "😀", "\x00", "word ", "\u200b", "\t"]
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=60).map("".join), st.text(max_size=60))
SAID = st.text("ab \né", min_size=1, max_size=150).filter(str.strip)


def real(name: str, folder: str) -> Any:
    reason = f"the real tokenizers are not part of this repository: {TOKENIZERS}"
    return pytest.param((name, folder), marks=pytest.mark.skipif(not TOKENIZERS.is_dir(), reason=reason))


FAMILIES = [("flan_t5", ""), real("flan_t5", "t5"), ("yuan2", ""), real("yuan2", "yuan")]


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def encoder(request: pytest.FixtureRequest, tiny_checkpoint: Path, tiny_yuan2: Path) -> Encoder:
    """Each family with a tokenizer, and a limit that some samples reach."""
    name, folder = request.param
    family = family_named(name)
    tiny = {"flan_t5": tiny_checkpoint, "yuan2": tiny_yuan2}[name]
    tokenizer = family.load_tokenizer(TOKENIZERS / folder if folder else tiny)
    return Encoder(family, tokenizer, LayoutOptions(LIMIT))


def num_tokens(encoder: Encoder, text: str) -> int:
    return len(encoder.family.encode_text(encoder.tokenizer, text, is_continued=False))


@given(text=TEXTS)
@settings(max_examples=300, deadline=None)
def test_no_text_has_more_tokens_than_its_bound(encoder: Encoder, text: str) -> None:
    assert num_tokens(encoder, text) <= most_tokens([Segment("text", text)])


def test_no_character_that_the_normaliser_makes_longer_breaks_the_bound(encoder: Encoder) -> None:
    longer = [chr(code) for code in range(0x20000) if len(unicodedata.normalize("NFKC", chr(code))) > 1]
    assert len(longer) > 1000
    for character in longer:
        text = f"{character}{character} {character}"
        assert num_tokens(encoder, text) <= most_tokens([Segment("text", text)]), f"{ord(character):x}"


def test_the_bound_counts_a_control_token_once() -> None:
    assert most_tokens([Segment("control", "</s>"), Segment("control", "<sep>")]) == 2


def test_the_bound_is_that_of_all_segments_together() -> None:
    segments = [Segment("text", "ab"), Segment("control", "</s>"), Segment("text", "é")]
    assert most_tokens(segments) == sum(most_tokens([segment]) for segment in segments)


def test_what_may_be_too_long_is_counted(encoder: Encoder) -> None:
    segments = [Segment("text", "a b " * 100)]
    assert most_tokens(segments) > LIMIT
    assert encoder.measure(segments) == num_tokens(encoder, "a b " * 100)


def test_what_cannot_be_too_long_is_not_tokenised(encoder: Encoder) -> None:
    before = encoder.texts.num_encoded
    assert num_tokens(encoder, "a new text") <= encoder.measure([Segment("text", "a new text")]) < LIMIT
    assert encoder.texts.num_encoded == before


@pytest.mark.parametrize("mode", ["last_response", "split_example", "efficient"])
@given(said=st.lists(SAID, min_size=2, max_size=8), limit=st.integers(2, 400))
@settings(max_examples=60, deadline=None)
def test_samples_are_those_of_counting_every_token(
    encoder: Encoder, mode: LossMode, said: list[str], limit: int
) -> None:
    turns = tuple(Turn(("human", "gpt")[index % 2], text) for index, text in enumerate(said))
    limited = Encoder(encoder.family, encoder.tokenizer, LayoutOptions(limit, mode))
    dialogue, _ = normalise(Conversation(turns, "here"))
    assert isinstance(dialogue, Dialogue)
    expected = encoder.family.lay_out(dialogue, limited.options, limited.count_tokens)
    outcome, counters = draft_conversation(Conversation(turns, "here"), limited)
    assert outcome == expected
    assert all(counters[name] == count for name, count in expected.counters.items())


def test_ids_that_are_remembered_are_those_of_the_text(encoder: Encoder) -> None:
    texts = [f"text {number}" for number in range(300)]
    for text in [*texts, *texts, texts[-1]]:
        for is_continued in (False, True):
            expected = encoder.family.encode_text(encoder.tokenizer, text, is_continued=is_continued)
            assert encoder.texts(encoder.tokenizer, text, is_continued=is_continued) == expected


def test_a_text_that_was_just_measured_is_not_tokenised_again(encoder: Encoder) -> None:
    segments = [Segment("text", "measured " * 100)]
    encoder.measure(segments)
    before = encoder.texts.num_encoded
    assert encoder.count_tokens(segments) == num_tokens(encoder, "measured " * 100)
    assert encoder.texts.num_encoded == before
