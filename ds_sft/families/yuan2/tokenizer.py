"""Yuan2's tokenizer: SentencePiece itself with the control tokens of the official loader, and an exact way back."""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from ds_sft.errors import MissingInputError, ModelError
from ds_sft.families.yuan2.pieces import refuse_control_tokens_from_text, without_dummy_prefix
from ds_sft.families.yuan2.template import CHAT_TEMPLATE, CONTROL_TOKENS, EOD, PAD, SEP

log = logging.getLogger(__name__)

_KEPT = (
    "vocab_file",
    "name_or_path",
    "chat_template",
    "model_max_length",
    "padding_side",
    "truncation_side",
)
"""What a folder may say. All else is fixed: `add_bos_token` of the first published folders, for example, is untrue."""

_NAMED = {
    # No `bos_token`: the model never saw `<s>`, and transformers' Trainer would write its id over the one (that of
    # <eod>) in config.json.
    "eos_token": EOD,
    "unk_token": "<unk>",
    "sep_token": SEP,
    # config.json names <eod> as padding too. With a token of its own, which no text and no answer has, nobody who
    # masks padding by its id masks the end of the answers as well.
    "pad_token": PAD,
    "eod_token": EOD,
}
_MODELS_OWN = ("<s>", "</s>", "<unk>")


class Yuan2Tokenizer(SentencePieceBackend):
    """Gives the ids of the official loader (transformers 4 and its slow Llama class with 15 added tokens).

    transformers 5 rebuilds Llama tokenizers as a Rust BPE which merges in another order; on Yuan's model most lines of
    code and half of all Chinese lines get other ids. Nothing is put before or behind a text; only `<s>` and the control
    tokens are found in one.

    Args:
        **settings: `vocab_file` and what a tokenizer's folder may say besides.
    """

    def __init__(self, **settings: Any) -> None:
        kept = {name: settings[name] for name in _KEPT if settings.get(name) is not None}
        extra = [token for token in ("<s>", *CONTROL_TOKENS) if token not in _NAMED.values()]
        super().__init__(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
            **{"chat_template": CHAT_TEMPLATE, **kept, **_NAMED},
            extra_special_tokens=extra,
            special_tokens_pattern="none",
        )
        refuse_control_tokens_from_text(self.sp_model)
        self._continued = without_dummy_prefix(self.sp_model)
        self._keep_tokens_of_folder(settings.get("added_tokens_decoder") or {})
        named = [str(token) for token in settings.get("extra_special_tokens") or ()]
        self.add_tokens([token for token in named if token not in _MODELS_OWN], special_tokens=True)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # folders only
        cls, pretrained_model_name_or_path: str | Path, *inputs: Any, **settings: Any
    ) -> "Yuan2Tokenizer":
        """Read a folder, and say so when it names another class.

        Args:
            pretrained_model_name_or_path: The folder.
            *inputs: As transformers takes them.
            **settings: As transformers takes them.

        Returns:
            The tokenizer.
        """
        _tell_other_class(Path(pretrained_model_name_or_path) / "tokenizer_config.json")
        loaded: Yuan2Tokenizer = super().from_pretrained(pretrained_model_name_or_path, *inputs, **settings)
        return loaded

    def encode_literal(self, text: str, *, is_continued: bool) -> list[int]:
        """Give the ids of text in which nothing is a control token.

        Args:
            text: Any text.
            is_continued: Whether other text stands right before it, so that no space must be put in front.

        Returns:
            The ids.
        """
        if not self._ordinary:
            return list((self._continued if is_continued else self.sp_model).encode(text))
        ids: list[int] = []
        for stretch in re.split(f"({'|'.join(map(re.escape, self._ordinary))})", text):
            if stretch in self._ordinary:
                ids.append(self._added_tokens_encoder[stretch])
            else:
                ids += (self._continued if is_continued else self.sp_model).encode(stretch)
            is_continued = is_continued and not ids
        return ids

    def get_vocab(self) -> dict[str, int]:
        """Give every piece and added token with its id.

        Returns:
            Token -> id.
        """
        pieces = self.sp_model.id_to_piece(list(range(self.vocab_size)))
        return {piece: index for index, piece in enumerate(pieces)} | self.added_tokens_encoder

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Give the text of some tokens.

        Args:
            tokens: Pieces and added tokens.

        Returns:
            Their text.
        """
        ids: Any = self.convert_tokens_to_ids(list(tokens))
        return self._decode(ids)

    def _add_tokens(self, new_tokens: Iterable[str | AddedToken], special_tokens: bool = False) -> int:
        # transformers takes a known token with other flags for a new one and gives it a second id.
        new: list[Any] = [token for token in new_tokens if str(token) not in self._added_tokens_encoder]
        num_added = int(super()._add_tokens(new, special_tokens=special_tokens))
        ordinary = {token.content for token in self._added_tokens_decoder.values() if not token.special}
        self._ordinary = tuple(sorted(ordinary, key=len, reverse=True))
        return num_added

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = False,
        **kwargs: Any,
    ) -> str:
        """Undo encoding: SentencePiece put a space before each stretch between added tokens, and takes it away here."""
        added, text = self._added_tokens_decoder, ""
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        for is_piece, run in groupby(ids, key=lambda one: one < self.vocab_size and one not in added):
            if is_piece:
                text += self.sp_model.decode(list(run))
            else:
                # A model may have rows, and so give ids, for which there is no token.
                tokens = [added.get(one, added[self.unk_token_id]) for one in run]
                text += "".join(token.content for token in tokens if not (skip_special_tokens and token.special))
        return text

    def _keep_tokens_of_folder(self, found: Mapping[int, AddedToken]) -> None:
        """Take over the tokens that a user added after ours; their ids, and ours, must be what they were."""
        for index, token in sorted(found.items()):
            if token.content in _MODELS_OWN:
                continue
            if token.content == "<n>":
                raise ValueError("'<n>' must be ordinary text, as in the published models, but is an added token")
            in_model = self.sp_model.piece_to_id(token.content)
            free = in_model if in_model != self.sp_model.unk_id() else len(self)
            due = self._added_tokens_encoder.get(token.content, free)
            if index != due:
                raise ValueError(f"added token {token.content!r} must have id {due}, but has {index}")
            self._add_tokens([token])


def load_tokenizer(folder: Path) -> Yuan2Tokenizer:
    """Read the tokenizer of a model folder, whatever class its files name.

    Args:
        folder: Holds `tokenizer.model`; other tokenizer files may lie beside it, `tokenizer.json` tells only which
            tokens were added.

    Returns:
        The tokenizer with every control token, and with the chat template that training agrees with.

    Raises:
        MissingInputError: When there is no `tokenizer.model`.
        ModelError: When a file is broken, or has ids that are not the official ones.
    """
    file = folder / "tokenizer.model"
    if not file.is_file():
        raise MissingInputError(
            f"model_name_or_path: folder must hold tokenizer.model, but {folder} has none; copy it there"
        )
    if not file.stat().st_size:
        # SentencePiece reads an empty file as a model without pieces.
        raise ModelError(f"{file}: must be Yuan2's SentencePiece model, but is empty; restore it")
    try:
        loaded = Yuan2Tokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder}: tokenizer files must be Yuan2's, but: {reason}; restore them") from error
    if loaded.chat_template != CHAT_TEMPLATE:
        log.warning("%s: its chat template is replaced by the one that renders what training lays out", folder)
        loaded.chat_template = CHAT_TEMPLATE
    return loaded


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, *, is_continued: bool) -> list[int]:
    """Give the ids of text in which nothing is a control token.

    Args:
        tokenizer: From `load_tokenizer`.
        text: Any text, for example one that holds the five characters `<eod>`.
        is_continued: Whether other text of the same sequence stands right before it.

    Returns:
        The ids; decoding them gives back the text.
    """
    if not isinstance(tokenizer, Yuan2Tokenizer):
        raise AssertionError(f"the tokenizer must be a Yuan2Tokenizer, but is a {type(tokenizer).__name__}")  # noqa: TRY004
    return tokenizer.encode_literal(text, is_continued=is_continued)


def register(auto: ModuleType) -> None:
    """Let `AutoTokenizer` read Yuan2 folders with our class, also those that name a class of transformers.

    Args:
        auto: `transformers.models.auto.tokenization_auto`.
    """
    # Configs load torch, which a tokenizer does without; whoever has the auto classes has it already.
    from ds_sft.families.yuan2.native.configuration import Yuan2Config  # noqa: PLC0415

    auto.AutoTokenizer.register(Yuan2Config, Yuan2Tokenizer, exist_ok=True)
    # transformers' own list of model types whose published folders name a class that tokenizes wrongly.
    auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS.add(Yuan2Config.model_type)
    auto.TOKENIZER_MAPPING_NAMES[Yuan2Config.model_type] = Yuan2Tokenizer.__name__


def _tell_other_class(file: Path) -> None:
    if not file.is_file():
        return
    content = json.loads(file.read_text(encoding="utf-8"))
    named = content.get("tokenizer_class") if isinstance(content, dict) else None
    if named not in (None, Yuan2Tokenizer.__name__):
        log.warning(
            "%s: tokenizer_class: %s -> %s, because transformers 5 gives most Yuan texts other ids than the model was "
            "trained on",
            file,
            named,
            Yuan2Tokenizer.__name__,
        )
