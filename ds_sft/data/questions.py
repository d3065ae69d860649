"""The last question of each conversation of a data file, as the ids that a model is asked with; and answers as text."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ds_sft.contracts import Conversation, Family, LayoutName, LayoutOptions, Question, Rejection
from ds_sft.data.account import PLACES_SHOWN
from ds_sft.data.draft import Encoder, told, told_rejection
from ds_sft.data.normalise import last_question
from ds_sft.data.read import RecordFile
from ds_sft.errors import ConfigError, DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A question and what a model reads of it.

    Args:
        place: Where its conversation stands.
        identity: The conversation's own `id`.
        question: The question's words.
        expected: The answer in the file; None where there is none.
        prompt: Ids that the model reads before it answers.
    """

    place: str
    identity: str
    question: str
    expected: str | None
    prompt: Sequence[int]


def prompt_options(family: Family, *, max_tokens: int, max_new_tokens: int, layout: LayoutName) -> LayoutOptions:
    """Give what a prompt may take, so that the answer has room behind it.

    Args:
        family: An encoder reads the prompt apart from the answer.
        max_tokens: Most tokens of one sequence.
        max_new_tokens: Most tokens of an answer.
        layout: That the model was trained with.

    Returns:
        The options of the family's prompt.

    Raises:
        ConfigError: When nothing is left for the prompt.
    """
    room = max_tokens if family.is_encoder_decoder else max_tokens - max_new_tokens
    if room < 1:
        raise ConfigError(
            f"max_new_tokens: must be below model_max_length ({max_tokens}), but is {max_new_tokens}: the prompt needs "
            "room too; lower it"
        )
    return LayoutOptions(max_tokens=room, loss_mode="last_response", name=layout)


def prompt_of(question: Question, encoder: Encoder) -> tuple[list[int], int]:
    """Tokenise a question.

    Args:
        question: With all that was said before it.
        encoder: Family, tokenizer and room for the prompt.

    Returns:
        The ids, none for a question that does not fit even alone; and the number of exchanges that were left out.
    """
    prompt = encoder.family.lay_out_prompt(question, encoder.options, encoder.measure)
    return [number for _, ids in encoder.stretches(prompt.segments) for number in ids], prompt.num_dropped


def questions_of(records: RecordFile, encoder: Encoder) -> Iterator[Asked]:
    """Give the last question of every conversation that can be asked; the others are counted and told.

    Args:
        records: Of the data file.
        encoder: Family, tokenizer and room for a prompt.

    Yields:
        The questions in file order, each made when it is asked for.

    Raises:
        DataError: When there was none.
    """
    counters = Counter(records=len(records), questions=0)
    num_rejected = 0
    for conversation in records:
        outcome, new = _asked(conversation, encoder)
        counters.update(new)
        if isinstance(outcome, Asked):
            counters["questions"] += 1
            yield outcome
            continue
        counters[f"rejected_{outcome.reason}"] += 1
        num_rejected += 1
        if num_rejected <= PLACES_SHOWN:
            log.warning("not asked: %s: %s", conversation.place, told_rejection(outcome))
    log.info("%s: %s", records.path, told(counters))
    if not counters["questions"]:
        raise DataError(
            f"{records.path}: must hold at least one question, but none of {len(records)} records gave one "
            f"({told(counters)}); mend the records named above"
        )


def answer_text(ids: Sequence[int], encoder: Encoder) -> str:
    """Read an answer.

    Args:
        ids: Written by the model, without the token that ends it.
        encoder: Family and tokenizer.

    Returns:
        The text, without what training puts behind every answer.
    """
    decoded = encoder.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    text = decoded if isinstance(decoded, str) else "".join(decoded)
    return text.removesuffix(encoder.family.answer_end)


def _asked(conversation: Conversation, encoder: Encoder) -> tuple[Asked | Rejection, Counter[str]]:
    outcome, counters = last_question(conversation)
    if isinstance(outcome, Rejection):
        return outcome, counters
    question, expected = outcome
    prompt, num_dropped = prompt_of(question, encoder)
    if not prompt:
        told_room = f"the question must fit into {encoder.options.max_tokens} tokens"
        return Rejection("prompt_too_long", told_room), counters
    counters["history_dropped"] += num_dropped
    return Asked(conversation.place, conversation.identity, question.text, expected, prompt), counters
