"""Ids and labels come from segments alone: which tokens are supervised is known by construction."""

from typing import TYPE_CHECKING, cast

import pytest

from ds_sft.contracts import IGNORE_INDEX, Draft, Segment
from ds_sft.data.encode import count_tokens, encode, encode_stretches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = IGNORE_INDEX
END, UNKNOWN = 1, 2


class CharTokenizer:
    """One token for each character, and two control tokens."""

    unk_token_id = UNKNOWN

    def convert_tokens_to_ids(self, token: str) -> int:
        """Give the id of a control token."""
        return {"</s>": END}.get(token, UNKNOWN)


TOKENIZER = cast("PreTrainedTokenizerBase", CharTokenizer())
PREFIX = 3


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str, *, is_continued: bool) -> list[int]:
    """Give a prefix token as SentencePiece does, but not behind other text, then one id a character."""
    return [*([] if is_continued else [PREFIX]), *(ord(character) for character in text)]


def text(content: str, *, loss: bool = False) -> Segment:
    return Segment("text", content, loss=loss)


def control(name: str, *, loss: bool = False) -> Segment:
    return Segment("control", name, loss=loss)


def ids_and_labels(draft: Draft, *, max_tokens: int = 100) -> tuple[list[int], list[int]]:
    example = encode(draft, tokenizer=TOKENIZER, encode_text=encode_text, max_tokens=max_tokens)
    return list(example.input_ids), list(example.labels)


def test_labels_are_the_ids_where_there_is_loss_and_ignored_elsewhere() -> None:
    draft = Draft(target=(text("ab"), text("cd", loss=True), control("</s>", loss=True)))
    ids, labels = ids_and_labels(draft)
    assert ids == [PREFIX, 97, 98, 99, 100, END]
    assert labels == [IGNORE, IGNORE, IGNORE, 99, 100, END]


def test_neighbouring_texts_of_equal_supervision_are_encoded_as_one_string() -> None:
    assert ids_and_labels(Draft(target=(text("a"), text("b"), text("c", loss=True), text("d", loss=True))))[0] == [
        PREFIX,
        97,
        98,
        99,
        100,
    ]


def test_a_control_token_separates_texts() -> None:
    assert ids_and_labels(Draft(target=(text("a"), control("</s>"), text("b"))))[0] == [PREFIX, 97, END, PREFIX, 98]


def test_text_that_spells_a_control_token_stays_text() -> None:
    ids, _ = ids_and_labels(Draft(target=(text("</s>", loss=True),)))
    assert ids == [PREFIX, ord("<"), ord("/"), ord("s"), ord(">")]


def test_with_a_source_the_inputs_are_the_sources_and_the_labels_the_targets() -> None:
    draft = Draft(source=(text("q"), control("</s>")), target=(text("a", loss=True), control("</s>", loss=True)))
    assert ids_and_labels(draft) == ([PREFIX, ord("q"), END], [PREFIX, ord("a"), END])


def test_a_target_over_the_limit_loses_its_end_and_with_it_the_stop_token() -> None:
    target = (text("abc", loss=True), control("</s>", loss=True))
    assert ids_and_labels(Draft(target=target), max_tokens=4)[1] == [PREFIX, 97, 98, 99]
    assert ids_and_labels(Draft(target=target), max_tokens=5)[1] == [PREFIX, 97, 98, 99, END]


def test_ids_and_labels_of_a_cut_target_stay_aligned() -> None:
    ids, labels = ids_and_labels(Draft(target=(text("ab"), text("cd", loss=True))), max_tokens=5)
    assert ids == [PREFIX, 97, 98, 99, 100]
    assert labels == [IGNORE, IGNORE, IGNORE, 99, 100]


def test_a_source_is_never_cut_here() -> None:
    draft = Draft(source=(text("abcdef"),), target=(text("x", loss=True),))
    assert ids_and_labels(draft, max_tokens=2)[0] == [PREFIX, *b"abcdef"]


def test_the_count_is_the_number_of_ids() -> None:
    segments = (text("ab"), text("c"), control("</s>"), control("</s>"), text("d", loss=True))
    counted = count_tokens(segments, tokenizer=TOKENIZER, encode_text=encode_text)
    assert counted == len([PREFIX, 97, 98, 99, END, END, PREFIX, 100])


def test_a_control_token_that_the_tokenizer_lacks_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="does not know the control token '<sep>'"):
        ids_and_labels(Draft(target=(control("<sep>"),)))


def test_stretches_keep_the_ids_beside_the_text_or_control_token_they_come_from() -> None:
    segments = (text("a"), text("b"), text("c", loss=True), control("</s>", loss=True), control("</s>"), text("d"))
    assert list(encode_stretches(segments, tokenizer=TOKENIZER, encode_text=encode_text)) == [
        (text("ab"), [PREFIX, 97, 98]),
        (text("c", loss=True), [99]),
        (control("</s>", loss=True), [END]),
        (control("</s>"), [END]),
        (text("d"), [PREFIX, 100]),
    ]
