"""Words that are tokenised once and put together give the ids of the whole text, as transformers gives them."""

import shutil
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from ds_sft.families.flan_t5 import words
from ds_sft.families.flan_t5.template import OTHER_TOKENS
from ds_sft.families.flan_t5.tokenizer import load_tokenizer
from ds_sft.families.flan_t5.words import encode_words

REAL = Path(__file__).parents[4] / "shared" / "fixtures" / "tokenizers" / "t5"
needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"T5's own spiece.model is not part of this repository: {REAL}"
)
# Ends of parts, white space of other kinds, forms that the normaliser changes, no script of T5, a character of 4 bytes.
PIECES = ["word", "Words", "a", "1", "###", ":", ".", "'s", *OTHER_TOKENS, "\r", "\u00a0", "\u3000", "\ufb01", "\ufdfa"]
PIECES += ["½", "é", "e\u0301", "好", "的", "\u200b", "\u00ad", "😀", "\x00", "\u2581", "＜", "﹤", "/s", ">"]
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES)).map("".join), st.text(max_size=40))


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=needs_real)])
def tokenizer(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> PreTrainedTokenizerBase:
    """The tiny model's tokenizer, and T5's own."""
    if request.param == "tiny":
        return load_tokenizer(tiny_checkpoint)
    folder = tmp_path_factory.mktemp("t5")
    shutil.copy(REAL / "spiece.model", folder)
    return load_tokenizer(folder)


def whole(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Give transformers' ids of the whole text, in which no special token is looked for."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def copied(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    """Give a tokenizer of its own to a test that changes it."""
    tokenizer.save_pretrained(folder)
    found: PreTrainedTokenizerBase = type(tokenizer).from_pretrained(folder)
    return found


@given(text=TEXTS)
@settings(max_examples=400, deadline=None)
def test_the_ids_are_those_of_the_whole_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    expected = whole(tokenizer, text)
    assume(not {0, 1} & set(expected))  # it spells a control token, which transformers finds and we must not
    assert encode_words(tokenizer, text) == expected


def test_every_character_alone_and_between_words_has_its_ids_in_the_whole_text(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    characters = [chr(code) for code in [*range(0x500), *range(0x2000, 0x2100), *range(0xFB00, 0xFE00)]]
    for start in range(0, len(characters), 40):
        text = "".join(f"{one} x{one}y\n{one}" for one in characters[start : start + 40])
        assert encode_words(tokenizer, text) == whole(tokenizer, text)


def test_a_text_told_again_gets_the_same_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "One line\nand `more` {of} it\n"
    first = encode_words(tokenizer, text)
    assert encode_words(tokenizer, text) == first
    assert encode_words(tokenizer, text + text) == first + first


def test_more_words_than_are_remembered_keep_their_ids(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "_PARTS_REMEMBERED", 2)
    for text in ("a b c d e f", "c g a", "a b c d e f g h"):
        assert encode_words(tokenizer, text) == whole(tokenizer, text)


def test_a_tokenizer_that_has_grown_gives_its_new_ids(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    grown = copied(tokenizer, tmp_path)
    encode_words(grown, "a neologism here")
    grown.add_tokens(["neologism"])
    assert grown.convert_tokens_to_ids("neologism") in encode_words(grown, "a neologism here")


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("new york", normalized=False),
        AddedToken("{x", normalized=False),
        AddedToken("<tool>", normalized=False, lstrip=True),
        AddedToken("<tool>", normalized=False, rstrip=True),
        AddedToken("new", normalized=False, single_word=True),
        AddedToken("York", normalized=True),
    ],
    ids=str,
)
def test_other_added_tokens_are_found_where_transformers_finds_them(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, token: AddedToken
) -> None:
    grown = copied(tokenizer, tmp_path)
    grown.add_tokens([token])
    text = "to new york {x} <tool> York news\nnew <tool>"
    expected = whole(grown, text)
    assert grown.convert_tokens_to_ids(token.content) in expected
    assert encode_words(grown, text) == expected


def test_looking_for_special_tokens_is_as_it_was_afterwards(tokenizer: PreTrainedTokenizerBase) -> None:
    before = tokenizer("x </s>")["input_ids"]
    encode_words(tokenizer, "unheard-of </s> words")
    assert tokenizer("x </s>")["input_ids"] == before
