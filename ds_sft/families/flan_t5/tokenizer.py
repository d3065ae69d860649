"""Flan-T5's tokenizer with the ten tokens that make code survive, and an exact way back to text."""

from pathlib import Path

from tokenizers import AddedToken, decoders
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, T5Tokenizer

from ds_sft.errors import MissingInputError, ModelError
from ds_sft.families.flan_t5.old_folder import is_old, read_old
from ds_sft.families.flan_t5.template import CHAT_TEMPLATE, OTHER_TOKENS, SPECIAL_TOKENS
from ds_sft.families.flan_t5.words import encode_words


def encode_text(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    is_continued: bool = False,  # noqa: ARG001  # the card's interface
) -> list[int]:
    """Give the ids of text in which nothing is a control token.

    Args:
        tokenizer: From `load_tokenizer`.
        text: Any text, for example one that holds the four characters `</s>`.
        is_continued: No difference here: no text of T5 follows text of other supervision.

    Returns:
        Ids; decoding them gives back the text as far as the pieces cover its characters.
    """
    return encode_words(tokenizer, text)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a model folder and add what Flan-T5 lacks.

    Args:
        folder: Holds `tokenizer.json` or `spiece.model`.

    Returns:
        A tokenizer whose `decode` gives back the encoded text, without extra or lost spaces.

    Raises:
        MissingInputError: When neither file is there.
        ModelError: When the file is not a T5 tokenizer.
    """
    files = [file for file in (folder / "tokenizer.json", folder / "spiece.model") if file.is_file()]
    if not files:
        raise MissingInputError(
            f"model_name_or_path: folder must hold tokenizer.json or spiece.model, but {folder} has neither; "
            "copy the tokenizer's files there"
        )
    if not all(file.stat().st_size for file in files):
        # SentencePiece reads an empty file as a model without pieces.
        raise ModelError(f"{folder}: tokenizer files must be T5's, but: one of them is empty; restore them")
    try:
        loaded = read_old(folder) if is_old(folder) else T5Tokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: tokenizer files must be T5's, but: {error}; restore them") from error
    loaded.add_special_tokens(dict(SPECIAL_TOKENS))
    # Not normalised: T5's normaliser turns newline and tab into a space, and three tokens would collide.
    loaded.add_tokens([AddedToken(token, normalized=False) for token in OTHER_TOKENS])
    return _with_exact_decoder(loaded)


def _with_exact_decoder(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make decoding the inverse of encoding, also for readers that know nothing of this project.

    A space is a token of its own here, so every metaspace left in a piece is the dummy prefix of a word and no space.
    transformers' T5 class would rebuild its decoder on loading; the generic class reads tokenizer.json as it stands.
    """
    backend = tokenizer.backend_tokenizer
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", ""), decoders.Fuse()])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        tokenizer_object=backend,
        **{
            name: str(token)
            for name, token in tokenizer.special_tokens_map.items()
            if name != "additional_special_tokens"
        },
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
