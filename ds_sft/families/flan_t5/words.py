"""From text to ids, each word only once: T5's added tokens make words independent of each other."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from ds_sft.families.flan_t5.template import OTHER_TOKENS

_PARTS_REMEMBERED = 1 << 16
_CONTROL_START = re.compile(r"<(?=/s>|pad>|unk>|extra_id_\d+>)")
"""The first character of text that spells a control token of the SentencePiece model."""
_CONTROL = re.compile(r"</s>|<pad>|<extra_id_\d+>")
_LOOKALIKE = re.compile("[\ufe64\uff1c]")
_BEHIND_LOOKALIKE = re.compile("(?<=[\ufe64\uff1c])")
"""T5's normaliser makes `<` of these two characters, and so `</s>` of its full-width form."""


def encode_words(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Give the ids of text in which nothing is a control token.

    An added token ends a piece wherever it stands, and what lies between two of them is tokenised by itself. So text
    is cut behind each space and newline, and a part that was met before is not tokenised again: words come again and
    again, and a question and all that stands before it does so for every later answer.

    Args:
        tokenizer: A T5 tokenizer with the added tokens of ours, or some of them.
        text: Any text.

    Returns:
        The ids of the whole text.
    """
    parts = _parts_of(tokenizer)
    found = parts.pattern.findall(text)
    known = parts.known
    new = [part for part in dict.fromkeys(found) if part not in known]
    if new:
        if len(known) > _PARTS_REMEMBERED:
            known.clear()
            new = list(dict.fromkeys(found))
        known.update(zip(new, _literal_ids(tokenizer, new), strict=True))
    ids: list[int] = []
    for part in found:
        ids += known[part]
    return ids


@dataclass
class _Parts:
    """The parts of texts that a tokenizer has met.

    Args:
        pattern: Finds the parts of a text.
        num_tokens: Of the tokenizer when this was made: one that has grown since gives other ids.
        known: Part -> ids.
    """

    pattern: re.Pattern[str]
    num_tokens: int
    known: dict[str, list[int]] = field(default_factory=dict)


_MET: "WeakKeyDictionary[PreTrainedTokenizerBase, _Parts]" = WeakKeyDictionary()


def _parts_of(tokenizer: PreTrainedTokenizerBase) -> _Parts:
    parts, num_tokens = _MET.get(tokenizer), len(tokenizer)
    if parts is None or parts.num_tokens != num_tokens:
        parts = _MET[tokenizer] = _Parts(_pattern(tokenizer), num_tokens)
    return parts


def _pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Find the parts that may be tokenised by themselves: what lies between two added tokens, with the second of them.

    Special tokens do not count, since none is looked for in text. Another added token with one of ours inside forbids
    cutting there, and one that looks at its neighbours forbids cutting at all.
    """
    added = [token for token in tokenizer.added_tokens_decoder.values() if not token.special]
    if any(token.lstrip or token.rstrip or token.single_word for token in added):
        return re.compile(".+", re.DOTALL)
    ends = [token.content for token in added if token.content in OTHER_TOKENS and not token.normalized]
    others = [token.content for token in added if token.content not in ends]
    safe = "".join(re.escape(end) for end in ends if not any(end in other for other in others))
    return re.compile(f"[^{safe}]*[{safe}]|[^{safe}]+" if safe else ".+", re.DOTALL)


def _literal_ids(tokenizer: PreTrainedTokenizerBase, parts: Sequence[str]) -> list[list[int]]:
    """Tokenise parts one by one, looking for no special token."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    before, backend.encode_special_tokens = backend.encode_special_tokens, True
    # One by one: a batch would start threads, and later a worker that is forked warns about them.
    ids = [[one for piece in _cut_at_controls(part) for one in _ids(backend, piece)] for part in parts]
    backend.encode_special_tokens = before
    return ids


def _cut_at_controls(text: str) -> list[str]:
    """Cut text that spells a control token behind its `<`, where the added token `<` ends a piece in any case.

    Looking for no special token is not enough: the Rust Unigram model holds `</s>` as an ordinary piece.
    """
    if "<" not in text:
        return [text]
    ends = [*(found.end() for found in _CONTROL_START.finditer(text)), len(text)]
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _ids(backend: Tokenizer, text: str) -> list[int]:
    """Encode text without `<` in front of a control token's rest; only full-width forms can still become one."""
    encoded = backend.encode(text, add_special_tokens=False)
    if not _LOOKALIKE.search(text) or not any(_CONTROL.fullmatch(token) for token in encoded.tokens):
        ids: list[int] = encoded.ids
        return ids
    pieces = _BEHIND_LOOKALIKE.split(text)
    return [one for piece in pieces for one in backend.encode(piece, add_special_tokens=False).ids]
