"""What is found in a stretch of a data file; the findings of two stretches add up."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from ds_sft.contracts import Conversation, Draft, Rejection, Segment
from ds_sft.data.draft import Encoder, draft_conversation, told_rejection
from ds_sft.data.read import texts_of
from ds_sft.tools.inputs import Inputs

PLACES_SHOWN = 5
_TEXTS_KEPT = 64


@dataclass
class Findings:
    """Counts, and the first places of what is worth a look.

    Args:
        counters: `records`, `usable`, `samples`, `tokens_*`, `text_*` and what was rejected, merged, dropped or cut.
        lengths: `source` and `target`, or `sequence` -> number of tokens -> how many samples have so many.
        control_strings: Control token -> messages that spell it.
        places: Counter or control token -> the first records with it.
    """

    counters: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    control_strings: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, other: "Findings") -> None:
        """Take in the findings of the stretch that follows.

        Args:
            other: Its findings.
        """
        self.counters.update(other.counters)
        self.control_strings.update(other.control_strings)
        for side, lengths in other.lengths.items():
            self.lengths[side].update(lengths)
        for name, places in other.places.items():
            self.places[name] = (self.places[name] + places)[:PLACES_SHOWN]

    def note(self, names: Iterable[str], place: str) -> None:
        """Keep a place, while there are few.

        Args:
            names: What was found there.
            place: File and record.
        """
        for name in names:
            if len(self.places[name]) < PLACES_SHOWN and place not in self.places[name]:
                self.places[name].append(place)


def find(inputs: Inputs, stretch: range) -> Findings:
    """Look at some records.

    Args:
        inputs: Data, family and tokenizer.
        stretch: Indices of the records.

    Returns:
        What is found there.
    """
    findings, encoder = Findings(), _with_memory(inputs.encoder)
    spelt = re.compile("|".join(map(re.escape, control_tokens(inputs.encoder))))
    for index in stretch:
        conversation = inputs.records[index]
        findings.counters["records"] += 1
        _find_control_strings(conversation, spelt, findings)
        outcome, counters = draft_conversation(conversation, encoder)
        findings.counters.update(counters)
        if isinstance(outcome, Rejection):
            findings.note([f"rejected_{outcome.reason}"], f"{conversation.place}: {told_rejection(outcome)}")
            findings.note((name for name in counters if not name.startswith("rejected_")), conversation.place)
            continue
        findings.note(counters, conversation.place)
        findings.counters["usable"] += bool(outcome.drafts)
        for draft in outcome.drafts:
            _measure(draft, encoder, findings)
        if outcome.drafts:
            _find_losses(texts_of([conversation]), encoder, findings.counters)
    return findings


def _with_memory(encoder: Encoder) -> Encoder:
    """Give an encoder that encodes a text once: laying out and measuring ask for the same ones."""
    remembered = lru_cache(maxsize=_TEXTS_KEPT)(encoder.family.encode_text)
    return replace(encoder, family=replace(encoder.family, encode_text=remembered))


def _measure(draft: Draft, encoder: Encoder, findings: Findings) -> None:
    """Count the tokens of a sample: those that are trained on, and those that the limit cuts off."""
    most, counters = encoder.options.max_tokens, findings.counters
    length, num_supervised = 0, 0
    for segment, ids in encoder.stretches(draft.target):
        kept = max(0, min(len(ids), most - length))
        num_supervised += kept if segment.loss else 0
        length += len(ids)
    counters["samples"] += 1
    counters["tokens_supervised"] += num_supervised
    counters["tokens_truncated"] += max(0, length - most)
    lengths = {"sequence": min(length, most)}
    if draft.source:
        lengths = {"source": encoder.count_tokens(draft.source), "target": min(length, most)}
    for side, num_tokens in lengths.items():
        counters["tokens_total"] += num_tokens
        findings.lengths[side][num_tokens] += 1


def _find_losses(texts: Sequence[str], encoder: Encoder, counters: Counter[str]) -> None:
    """Encode every message, read it back and count what the tokenizer does not know or does not give back."""
    for text in texts:
        for _, ids in encoder.stretches([Segment("text", text)]):
            decoded = encoder.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            num_spaces = _num_spaces(text)
            counters["text_tokens"] += len(ids)
            counters["text_unknown"] += ids.count(encoder.tokenizer.unk_token_id)
            counters["text_whitespace"] += num_spaces
            counters["text_whitespace_lost"] += max(0, num_spaces - _num_spaces(decoded))


def _num_spaces(text: str | list[str]) -> int:
    return sum(map(str.isspace, text))


def _find_control_strings(conversation: Conversation, pattern: re.Pattern[str], findings: Findings) -> None:
    for text in texts_of([conversation]):
        spelt = set(pattern.findall(text))
        findings.control_strings.update(spelt)
        findings.note(sorted(spelt), conversation.place)


def control_tokens(encoder: Encoder) -> list[str]:
    """Name the control tokens of a tokenizer.

    Args:
        encoder: With the tokenizer.

    Returns:
        Their names; one that begins like another, shorter one stands before it.
    """
    tokenizer = encoder.tokenizer
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({*added, *map(str, tokenizer.all_special_tokens)}, key=lambda token: (-len(token), token))
