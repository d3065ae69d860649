"""From conversations to samples as segments, with a count of everything that was dropped: no torch."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ds_sft.contracts import Conversation, Draft, Example, Family, Layout, LayoutOptions, Rejection, Segment
from ds_sft.data.encode import count_tokens, encode, encode_stretches
from ds_sft.data.normalise import normalise
from ds_sft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLACES_SHOWN = 10


@dataclass(frozen=True)
class Encoder:
    """A family with its tokenizer: all that is needed to turn conversations into samples.

    Args:
        family: The card.
        tokenizer: From the card's `load_tokenizer`.
        options: Limit and loss mode.
    """

    family: Family
    tokenizer: "PreTrainedTokenizerBase"
    options: LayoutOptions

    def count_tokens(self, segments: Sequence[Segment]) -> int:
        """Count the tokens of some segments.

        Args:
            segments: One sequence, in order.

        Returns:
            Their number, control tokens included.
        """
        return count_tokens(segments, tokenizer=self.tokenizer, encode_text=self.family.encode_text)

    def stretches(self, segments: Sequence[Segment]) -> Iterator[tuple[Segment, list[int]]]:
        """Give what some segments become, stretch by stretch.

        Args:
            segments: One sequence, in order.

        Returns:
            Each stretch of text that is encoded as one, or control token, with its ids.
        """
        return encode_stretches(segments, tokenizer=self.tokenizer, encode_text=self.family.encode_text)

    def example(self, draft: Draft) -> Example:
        """Tokenise one sample.

        Args:
            draft: The sample as segments.

        Returns:
            Ids and labels.
        """
        return encode(
            draft, tokenizer=self.tokenizer, encode_text=self.family.encode_text, max_tokens=self.options.max_tokens
        )


@dataclass
class Drafts:
    """The samples of a data file before tokenisation, and what happened on the way.

    Args:
        items: In file order.
        counters: `records`, `samples`, `rejected_<reason>` and the counters of normalisation and layout.
        rejected: Place and reason of the first rejected records.
    """

    items: list[Draft] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    rejected: list[str] = field(default_factory=list)


def draft_samples(conversations: Sequence[Conversation], encoder: Encoder, *, is_strict: bool) -> Drafts:
    """Turn conversations into samples and count what became of them.

    Args:
        conversations: As read.
        encoder: Family, tokenizer and limit.
        is_strict: Stop at the first rejected conversation.

    Returns:
        The samples before tokenisation.

    Raises:
        DataError: At the first rejected conversation, when strict.
    """
    drafts = Drafts(counters=Counter(records=len(conversations)))
    for conversation in conversations:
        outcome, counters = draft_conversation(conversation, encoder)
        drafts.counters += counters
        if isinstance(outcome, Layout):
            drafts.items += outcome.drafts
            continue
        if is_strict:
            raise DataError(
                f"{conversation.place}: must be usable, but: {told_rejection(outcome)}; mend it or drop --strict_data"
            )
        if len(drafts.rejected) < _PLACES_SHOWN:
            drafts.rejected.append(f"{conversation.place}: {told_rejection(outcome)}")
    drafts.counters["samples"] = len(drafts.items)
    return drafts


def draft_conversation(conversation: Conversation, encoder: Encoder) -> tuple[Layout | Rejection, Counter[str]]:
    """Turn one conversation into samples.

    Args:
        conversation: As read.
        encoder: Family, tokenizer and limit.

    Returns:
        Its samples, or why there are none; and what was rejected, merged, dropped or cut on the way.
    """
    dialogue, counters = normalise(conversation)
    if isinstance(dialogue, Rejection):
        return dialogue, counters + Counter({f"rejected_{dialogue.reason}": 1})
    layout = encoder.family.lay_out(dialogue, encoder.options, encoder.count_tokens)
    return layout, counters + layout.counters


def told(counters: Counter[str]) -> str:
    """Put counters into words.

    Args:
        counters: Of the data.

    Returns:
        Those above zero, in one line.
    """
    return ", ".join(f"{count} {name}" for name, count in counters.items() if count)


def told_rejection(rejection: Rejection) -> str:
    """Put a rejection into words.

    Args:
        rejection: Of one conversation.

    Returns:
        Its reason, and what is at fault.
    """
    return f"{rejection.reason}: {rejection.detail}" if rejection.detail else rejection.reason
