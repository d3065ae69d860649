"""Turns segments into ids and labels in one pass; the only place that writes `IGNORE_INDEX`."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from ds_sft.contracts import IGNORE_INDEX, Draft, EncodeText, Example, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def count_tokens(segments: Sequence[Segment], *, tokenizer: "PreTrainedTokenizerBase", encode_text: EncodeText) -> int:
    """Give the number of tokens that some segments become.

    Args:
        segments: One sequence, in order.
        tokenizer: The family's tokenizer.
        encode_text: The family's way to ids without control tokens.

    Returns:
        Number of tokens, control tokens included.
    """
    return len(_encode(segments, tokenizer, encode_text)[0])


def encode(draft: Draft, *, tokenizer: "PreTrainedTokenizerBase", encode_text: EncodeText, max_tokens: int) -> Example:
    """Turn one sample into ids and labels.

    The supervised tokens come from construction: no string or id is ever searched for.

    Args:
        draft: The sample as segments.
        tokenizer: The family's tokenizer.
        encode_text: The family's way to ids without control tokens.
        max_tokens: The target is cut on the right to this many tokens.

    Returns:
        Ids and labels; with an encoder the ids are the source's, without one they are the target's own.
    """
    ids, labels = _encode(draft.target, tokenizer, encode_text)
    ids, labels = ids[:max_tokens], labels[:max_tokens]
    if draft.source:
        ids, _ = _encode(draft.source, tokenizer, encode_text)
    return Example(input_ids=ids, labels=labels)


def encode_stretches(
    segments: Sequence[Segment], *, tokenizer: "PreTrainedTokenizerBase", encode_text: EncodeText
) -> Iterator[tuple[Segment, list[int]]]:
    """Encode each maximal stretch of text with equal supervision as one string, and control tokens by name.

    Args:
        segments: One sequence, in order.
        tokenizer: The family's tokenizer.
        encode_text: The family's way to ids without control tokens.

    Yields:
        Each stretch of text or control token, and its ids.
    """
    before = "control"
    for (kind, loss), run in groupby(segments, key=lambda segment: (segment.kind, segment.loss)):
        if kind == "control":
            yield from ((segment, [_control_id(segment.text, tokenizer)]) for segment in run)
        else:
            text = "".join(segment.text for segment in run)
            yield Segment("text", text, loss), encode_text(tokenizer, text, is_continued=before == "text")
        before = kind


def _encode(
    segments: Sequence[Segment], tokenizer: "PreTrainedTokenizerBase", encode_text: EncodeText
) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    labels: list[int] = []
    for stretch, new in encode_stretches(segments, tokenizer=tokenizer, encode_text=encode_text):
        ids += new
        labels += new if stretch.loss else [IGNORE_INDEX] * len(new)
    return ids, labels


def _control_id(name: str, tokenizer: "PreTrainedTokenizerBase") -> int:
    found = tokenizer.convert_tokens_to_ids(name)
    if not isinstance(found, int) or found == tokenizer.unk_token_id:
        raise AssertionError(f"the tokenizer does not know the control token {name!r}")
    return found
