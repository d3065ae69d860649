"""From a conversation to samples as segments, with a count of everything that was dropped: no torch."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ds_sft.contracts import Conversation, Draft, EncodeText, Example, Family, Layout, LayoutOptions, Rejection, Segment
from ds_sft.data.encode import count_tokens, encode, encode_stretches
from ds_sft.data.normalise import normalise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXTS_REMEMBERED = 128
_TOKENS_PER_ASCII_BYTE = 2
_TOKENS_PER_OTHER_BYTE = 7
_TOKENS_BESIDE_TEXT = 2


class RecentTexts:
    """Remembers the ids of the last texts: what was measured to lay out a dialogue is encoded next.

    Args:
        encode_text: The family's way to ids.
    """

    def __init__(self, encode_text: EncodeText) -> None:
        self._encode_text = encode_text
        self._ids: dict[tuple[str, bool], list[int]] = {}
        self.num_encoded = 0

    def __call__(self, tokenizer: "PreTrainedTokenizerBase", text: str, *, is_continued: bool) -> list[int]:
        """Give the ids of a stretch of text.

        Args:
            tokenizer: Always the same one.
            text: Any text.
            is_continued: Whether other text of the same sequence stands right before it.

        Returns:
            The ids, to be left as they are.
        """
        known = self._ids.get((text, is_continued))
        if known is not None:
            return known
        if len(self._ids) == _TEXTS_REMEMBERED:
            del self._ids[next(iter(self._ids))]
        self.num_encoded += 1
        ids = self._ids[text, is_continued] = self._encode_text(tokenizer, text, is_continued=is_continued)
        return ids


@dataclass(frozen=True)
class Encoder:
    """A family with its tokenizer: all that is needed to turn conversations into samples.

    Args:
        family: The card.
        tokenizer: From the card's `load_tokenizer`; it must not change any more.
        options: Limit and loss mode.
    """

    family: Family
    tokenizer: "PreTrainedTokenizerBase"
    options: LayoutOptions
    texts: RecentTexts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", RecentTexts(self.family.encode_text))

    def count_tokens(self, segments: Sequence[Segment]) -> int:
        """Count the tokens of some segments.

        Args:
            segments: One sequence, in order.

        Returns:
            Their number, control tokens included.
        """
        return count_tokens(segments, tokenizer=self.tokenizer, encode_text=self.texts)

    def measure(self, segments: Sequence[Segment]) -> int:
        """Count the tokens of some segments, unless it is clear without tokenising that the limit is out of reach.

        Args:
            segments: One sequence, in order.

        Returns:
            Their number; or a number that is not below it, but below the limit.
        """
        most = most_tokens(segments)
        return most if most < self.options.max_tokens else self.count_tokens(segments)

    def stretches(self, segments: Sequence[Segment]) -> Iterator[tuple[Segment, list[int]]]:
        """Give what some segments become, stretch by stretch.

        Args:
            segments: One sequence, in order.

        Returns:
            Each stretch of text that is encoded as one, or control token, with its ids.
        """
        return encode_stretches(segments, tokenizer=self.tokenizer, encode_text=self.texts)

    def example(self, draft: Draft) -> Example:
        """Tokenise one sample.

        Args:
            draft: The sample as segments.

        Returns:
            Ids and labels.
        """
        return encode(draft, tokenizer=self.tokenizer, encode_text=self.texts, max_tokens=self.options.max_tokens)


def most_tokens(segments: Sequence[Segment]) -> int:
    """Give a number that the tokens of some segments never exceed, without looking at more than their lengths.

    A SentencePiece token stands for at least one byte or character of the normalised text. In front of each word there
    may be one more for the space, and compatibility forms may become longer: one Arabic ligature of 3 bytes is 18
    characters in 4 words.

    Args:
        segments: One sequence, in order.

    Returns:
        An upper bound of their number of tokens, for any SentencePiece model.
    """
    return sum(_most_tokens(segment.text) if segment.kind == "text" else 1 for segment in segments)


def _most_tokens(text: str) -> int:
    if text.isascii():
        return _TOKENS_BESIDE_TEXT + _TOKENS_PER_ASCII_BYTE * len(text)
    return _TOKENS_BESIDE_TEXT + _TOKENS_PER_OTHER_BYTE * len(text.encode(errors="surrogatepass"))


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
    layout = encoder.family.lay_out(dialogue, encoder.options, encoder.measure)
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
