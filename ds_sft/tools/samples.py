"""Samples as they are trained on, with the text of every stretch read back from its ids."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ds_sft.contracts import IGNORE_INDEX, Conversation, Draft, Rejection, Segment
from ds_sft.data.draft import Encoder, draft_conversation, told_rejection
from ds_sft.errors import DataError
from ds_sft.tools.inputs import Inputs

log = logging.getLogger(__name__)

Side = Literal["source", "target"]


@dataclass(frozen=True)
class Piece:
    """A stretch of text or one control token, as the model sees it.

    Args:
        kind: `text`, or the short name of a control token.
        text: What the ids read, or the control token.
        loss: Whether it is supervised.
        num_tokens: How many ids it has.
    """

    kind: str
    text: str
    loss: bool
    num_tokens: int


@dataclass(frozen=True)
class Sample:
    """One sample, and where it comes from.

    Args:
        record: Number of its conversation in the data file, from 1.
        identity: The conversation's own `id`.
        index: Number among the samples of its conversation, from 0.
        input_ids: As trained on.
        labels: As trained on.
        sides: What encoder and decoder see; `target` alone without an encoder.
        num_cut: Tokens of the answer that did not fit.
    """

    record: int
    identity: str
    index: int
    input_ids: Sequence[int]
    labels: Sequence[int]
    sides: dict[Side, tuple[Piece, ...]]
    num_cut: int

    @property
    def num_trained(self) -> int:
        """How many tokens are supervised."""
        return sum(label != IGNORE_INDEX for label in self.labels)

    @property
    def num_tokens(self) -> int:
        """How many tokens there are on all sides."""
        return sum(piece.num_tokens for pieces in self.sides.values() for piece in pieces)


def take_samples(inputs: Inputs, *, num: int, counters: Counter[str]) -> Iterator[Sample]:
    """Give the first samples of a data file, in the order of training.

    Args:
        inputs: Data, family and tokenizer.
        num: Most samples to give.
        counters: What became of the conversations that were looked at is added here.

    Yields:
        The samples.

    Raises:
        DataError: At the first rejected conversation, when strict.
    """
    for record, conversation in enumerate(inputs.records, start=1):
        if counters["samples"] >= num:
            return
        counters["records"] += 1
        for index, draft in enumerate(_drafts(conversation, inputs, counters)):
            if counters["samples"] < num:
                sample = read_back(draft, inputs.encoder, record=record, index=index, identity=conversation.identity)
                counters["samples"] += 1
                counters["tokens_total"] += sample.num_tokens
                counters["tokens_supervised"] += sample.num_trained
                counters["tokens_truncated"] += sample.num_cut
                yield sample


def read_back(draft: Draft, encoder: Encoder, *, record: int, index: int, identity: str) -> Sample:
    """Tokenise a sample and read its ids back.

    Args:
        draft: The sample as segments.
        encoder: Family, tokenizer and limit.
        record: Number of its conversation.
        index: Its number in there.
        identity: The conversation's own `id`.

    Returns:
        The sample.
    """
    example = encoder.example(draft)
    target, num_cut = _pieces(draft.target, encoder, most=encoder.options.max_tokens)
    sides: dict[Side, tuple[Piece, ...]] = {"target": target}
    if draft.source:
        sides = {"source": _pieces(draft.source, encoder, most=None)[0], "target": target}
    return Sample(record, identity, index, example.input_ids, example.labels, sides, num_cut)


def _drafts(conversation: Conversation, inputs: Inputs, counters: Counter[str]) -> Sequence[Draft]:
    outcome, new = draft_conversation(conversation, inputs.encoder)
    counters.update(new)
    if not isinstance(outcome, Rejection):
        return outcome.drafts
    if inputs.is_strict:
        told = told_rejection(outcome)
        raise DataError(f"{conversation.place}: must be usable, but: {told}; mend it or drop --strict_data")
    log.warning("rejected %s: %s", conversation.place, told_rejection(outcome))
    return ()


def _pieces(segments: Sequence[Segment], encoder: Encoder, *, most: int | None) -> tuple[tuple[Piece, ...], int]:
    """Give what is left of a sequence after its cut, and the number of tokens that were cut."""
    pieces: list[Piece] = []
    length, text_ids = 0, list[int]()
    for segment, ids in encoder.stretches(segments):
        kept = ids if most is None else ids[: max(0, most - length)]
        length += len(ids)
        if not kept:
            continue
        if segment.kind == "control":
            text_ids = []
            pieces.append(Piece(_short(segment.text), segment.text, segment.loss, len(kept)))
        else:
            # A text that follows a text has no prefix of its own: alone, it would be read back without its first space.
            before, text_ids = _decode(text_ids, encoder), text_ids + kept
            text = _decode(text_ids, encoder)[len(before) :]
            pieces.append(Piece("text", text, segment.loss, len(kept)))
    return tuple(pieces), max(0, length - most) if most is not None else 0


def _decode(ids: list[int], encoder: Encoder) -> str:
    decoded = encoder.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return decoded if isinstance(decoded, str) else "".join(decoded)


def _short(token: str) -> str:
    """Give `eod` for `<eod>` and `eos` for `</s>`."""
    name = token.strip("<>[]|")
    return f"eo{name[1:]}" if name.startswith("/") else name
