"""Samples for programs that call parts of this package by their old names: the same ones that the main job has."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ds_sft.config.sources import MODEL_MAX_LENGTH
from ds_sft.contracts import Conversation, Rejection, Turn
from ds_sft.data.draft import Encoder, draft_conversation, told_rejection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_LONGEST_LIMIT = 1 << 30

Source = Sequence[Mapping[str, object]]
"""A conversation as a data file has it: messages with `from` and `value`."""


def conversation_of(source: Source, *, place: str) -> Conversation:
    """Take over a conversation.

    Args:
        source: Its messages.
        place: What to call it in messages to the user.

    Returns:
        The conversation.
    """
    return Conversation(tuple(Turn(message.get("from"), message.get("value")) for message in source), place)


def limit_of(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Give the most tokens of one sequence.

    Args:
        tokenizer: transformers gives one without a limit an enormous one.

    Returns:
        Its `model_max_length`, or 2048 where that says nothing.
    """
    limit = tokenizer.model_max_length
    return int(limit) if limit < _LONGEST_LIMIT else MODEL_MAX_LENGTH


def preprocess(sources: Sequence[Source], encoder: Encoder) -> dict[str, list[list[int]]]:
    """Tokenise conversations.

    Args:
        sources: The conversations; those that cannot be used are skipped with a warning.
        encoder: Family, tokenizer and layout.

    Returns:
        `input_ids` and `labels` of every sample, in order.
    """
    samples: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for number, source in enumerate(sources, start=1):
        conversation = conversation_of(source, place=f"conversation {number}")
        outcome, _ = draft_conversation(conversation, encoder)
        if isinstance(outcome, Rejection):
            log.warning("rejected %s: %s", conversation.place, told_rejection(outcome))
            continue
        for example in map(encoder.example, outcome.drafts):
            samples["input_ids"].append(list(example.input_ids))
            samples["labels"].append(list(example.labels))
    return samples
