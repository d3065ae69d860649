"""A tokenizer whose ids are characters, so that expected ids and texts can be written down by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ds_sft.contracts import Family, LayoutOptions
from ds_sft.data.draft import Encoder
from ds_sft.data.read import open_records
from ds_sft.families import family_named
from ds_sft.tools.inputs import Inputs

PREFIX, END, SEPARATOR, UNKNOWN = 1, 2, 3, 4
CONTROLS = {"</s>": END, "<eod>": END, "<sep>": SEPARATOR, "<unk>": UNKNOWN}


@dataclass(frozen=True)
class Added:
    """An added token, as transformers describes one."""

    name: str
    special: bool

    def __str__(self) -> str:
        return self.name


class CharTokenizer:
    """One id a character; `?` is unknown and the tabulator is lost; a text without text before it gets a prefix."""

    unk_token_id = UNKNOWN
    all_special_tokens = ("</s>", "<unk>")
    added_tokens_decoder = {9: Added("<sep>", special=True), 10: Added("<word>", special=False)}  # noqa: RUF012

    def convert_tokens_to_ids(self, token: str) -> int:
        """Give the id of a control token."""
        return CONTROLS[token]

    def decode(self, ids: Sequence[int], **_how: object) -> str:
        """Give the text; the prefix disappears at the beginning only, as SentencePiece's does."""
        named = {PREFIX: " ", UNKNOWN: "<unk>"}
        return "".join(named.get(one) or chr(one) for one in ids).removeprefix(" ")


def encode_text(_tokenizer: object, text: str, *, is_continued: bool) -> list[int]:
    """Give the ids of a text."""
    ids = [UNKNOWN if character == "?" else ord(character) for character in text if character != "\t"]
    return ids if is_continued else [PREFIX, *ids]


def encode_without_prefix(_tokenizer: object, text: str, *, is_continued: bool) -> list[int]:
    """Give one id for each character, as the golden rows count them."""
    return [ord(character) for character in text]


def encoder_of(name: str, *, max_tokens: int = 1000, has_prefix: bool = True, **options: Any) -> Encoder:
    """Give an encoder with a family's layout and our characters."""
    family: Family = family_named(name)
    card = family.__class__(**{**vars(family), "encode_text": encode_text if has_prefix else encode_without_prefix})
    return Encoder(card, cast("Any", CharTokenizer()), LayoutOptions(max_tokens=max_tokens, **options))


def inputs_of(file: Path, encoder: Encoder, *, is_strict: bool = False) -> Inputs:
    """Give the inputs of a verb."""
    return Inputs(open_records(file), encoder, is_strict)
