"""Ids are FastChat's, decoding gives the text back, and nothing a user writes becomes a control token."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ds_sft.contracts import Dialogue, Exchange, LayoutOptions
from ds_sft.data.encode import count_tokens, encode
from ds_sft.data.normalise import normalise
from ds_sft.data.read import read_conversations
from ds_sft.errors import MissingInputError, ModelError
from ds_sft.families.flan_t5.template import lay_out
from ds_sft.families.flan_t5.tiny import write_tiny_checkpoint
from ds_sft.families.flan_t5.tokenizer import encode_text, load_tokenizer

GOLDEN = Path(__file__).parents[2] / "golden" / "conversations"
REAL = Path(__file__).parents[4] / "shared" / "fixtures" / "tokenizers" / "t5"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"#-+*=/()[]_>éü好的"
CONTROL = ["</s>", "<pad>", "<unk>", "[PAD]", "<extra_id_0>", "<extra_id_7>", "<extra_id_99>"]
needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"T5's own spiece.model is not part of this repository: {REAL}"
)


def golden(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """A tokenizer with a piece for every one of LETTERS."""
    folder = tmp_path_factory.mktemp("letters")
    write_tiny_checkpoint(folder, [f"a{letter}b {letter} c{letter}" for letter in LETTERS])
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """T5's own tokenizer."""
    folder = tmp_path_factory.mktemp("t5")
    shutil.copy(REAL / "spiece.model", folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=needs_real)])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """Each of the two."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, PreTrainedTokenizerBase)
    return found


def control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Give the ids of every control token but `<unk>`, which also stands for characters without a piece."""
    vocabulary = tokenizer.get_vocab()
    return {vocabulary[name] for name in CONTROL if name != "<unk>" and name in vocabulary}


def test_the_ten_added_tokens_follow_each_other_behind_the_model_vocabulary(tiny: PreTrainedTokenizerBase) -> None:
    added = ["[PAD]", "<", "{", "\n", "}", "`", " ", "\\", "^", "\t"]
    first = len(tiny) - 10
    assert [tiny.convert_tokens_to_ids(token) for token in added] == list(range(first, first + 10))


def test_the_padding_token_is_the_added_one_and_the_end_is_t5s(tiny: PreTrainedTokenizerBase) -> None:
    assert (tiny.pad_token, tiny.eos_token, tiny.unk_token) == ("[PAD]", "</s>", "<unk>")
    assert (tiny.eos_token_id, tiny.unk_token_id) == (1, 2)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_decoding_gives_back_the_text_over_the_characters_of_the_tokenizer(
    tiny: PreTrainedTokenizerBase, data: st.DataObject
) -> None:
    text = data.draw(st.text(alphabet=LETTERS + "<{\n}` \\^\t", max_size=40))
    assert tiny.decode(encode_text(tiny, text)) == text


@pytest.mark.parametrize("text", ["</s>", "a </s> b", "</s></s>", "x<extra_id_0>y", "<pad>\n<unk>", " </s", "[PAD]"])
def test_decoding_gives_back_text_that_spells_control_tokens(tiny: PreTrainedTokenizerBase, text: str) -> None:
    assert tiny.decode(encode_text(tiny, text)) == text


@pytest.mark.parametrize("name", CONTROL)
@pytest.mark.parametrize(
    "frame",
    ["{}", "a{}b", " {} ", "\n{}\n", "<{}>", "{0}{0}", "</s{}", "{}/s>", "<extra_id_{}0>", "ﬁ{}\u0301", "{{{}}}"],
)
def test_text_never_becomes_a_control_token(tokenizer: PreTrainedTokenizerBase, name: str, frame: str) -> None:
    assert not control_ids(tokenizer) & set(encode_text(tokenizer, frame.format(name)))


@pytest.mark.parametrize("less", "＜﹤")
@pytest.mark.parametrize("rest", ["/s>", "/s＞", "／ｓ＞", "pad﹥", "extra_id_0＞", "\x01/s>", "extra_id_42>"])
@pytest.mark.parametrize("before", ["", "a ", "a＜"])
def test_full_width_text_never_becomes_a_control_token(
    tokenizer: PreTrainedTokenizerBase, less: str, rest: str, before: str
) -> None:
    vocabulary = tokenizer.get_vocab()
    forbidden = control_ids(tokenizer) | {vocabulary.get("<extra_id_42>", 1)}
    assert not forbidden & set(encode_text(tokenizer, f"{before}{less}{rest} b"))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_mixture_of_control_pieces_becomes_a_control_token(
    tokenizer: PreTrainedTokenizerBase, data: st.DataObject
) -> None:
    pieces = [
        "<",
        "</",
        "s>",
        "</s>",
        "＜",
        "/s",
        ">",
        "pad",
        "unk",
        "extra_id_",
        "0",
        "[PAD]",
        " ",
        "\n",
        "\u2581",
        "\x01",
    ]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces + CONTROL), max_size=8)))
    assert not control_ids(tokenizer) & set(encode_text(tokenizer, text))


def test_a_full_width_sign_that_spells_nothing_is_encoded_as_the_tokenizer_does(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    text = "a＜b ﹤c"
    assert encode_text(tokenizer, text) == tokenizer(text, add_special_tokens=False)["input_ids"]


def prompts(dialogue: Dialogue, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Give the ids of every source as the training data has them."""
    measure = partial(count_tokens, tokenizer=tokenizer, encode_text=encode_text)
    drafts = lay_out(dialogue, LayoutOptions(10**6), measure).drafts
    return [
        list(encode(draft, tokenizer=tokenizer, encode_text=encode_text, max_tokens=10**6).input_ids)
        for draft in drafts
    ]


def chat_prompts(dialogue: Dialogue, tokenizer: PreTrainedTokenizerBase, system: str | None) -> list[list[int]]:
    """Give the ids of every source as a program that answers gets them."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    found: list[Any] = []
    for exchange in dialogue.exchanges:
        messages = [*messages, {"role": "user", "content": exchange.question}]
        found.append(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        messages = [*messages, {"role": "assistant", "content": exchange.answer}]
    return found


# These spell control tokens, which a chat template parses and training data never does.
SPELLS_CONTROL = {"v20"}


@pytest.mark.parametrize(
    "identity",
    [f"v{number:02}" for number in range(1, 23) if f"v{number:02}" not in {"v17", "v21", "v22"} | SPELLS_CONTROL],
)
def test_the_prompt_of_training_is_the_prompt_of_the_chat_template(
    tokenizer: PreTrainedTokenizerBase, identity: str
) -> None:
    (conversation,) = (one for one in read_conversations(GOLDEN / "conversations.json") if one.identity == identity)
    dialogue, _ = normalise(conversation)
    assert isinstance(dialogue, Dialogue)
    assert prompts(dialogue, tokenizer) == chat_prompts(dialogue, tokenizer, dialogue.system)


@pytest.mark.parametrize("system", ["", " \n"])
def test_a_blank_system_message_counts_as_absent_in_the_chat_template(
    tiny: PreTrainedTokenizerBase, system: str
) -> None:
    dialogue = Dialogue(None, (Exchange(" {q}\n", "a＜1 "), Exchange("it's 'q' \"2\"", "b")))
    assert chat_prompts(dialogue, tiny, system) == prompts(dialogue, tiny)


def test_the_chat_template_refuses_an_unknown_role(tiny: PreTrainedTokenizerBase) -> None:
    with pytest.raises(Exception, match="role must be user or assistant, but is tool"):
        tiny.apply_chat_template([{"role": "user", "content": "q"}, {"role": "tool", "content": "x"}])


def test_a_saved_tokenizer_is_the_same_for_readers_that_know_nothing_of_us(
    tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    text = "def f(x):\n\treturn {x: [1, 2]} < `a` \\ ^  end "
    for again in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert again(text)["input_ids"] == tiny(text)["input_ids"]
        assert again.decode(again(text)["input_ids"], skip_special_tokens=True) == text
        assert again.chat_template == tiny.chat_template
        assert (len(again), again.pad_token_id) == (len(tiny), tiny.pad_token_id)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.exit_code == 66
    assert str(caught.value) == (
        f"model_name_or_path: folder must hold tokenizer.json or spiece.model, but {tmp_path} has neither; "
        "copy the tokenizer's files there"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("spiece.model", b"junk"), ("spiece.model", b""), ("tokenizer.json", b"{"), ("tokenizer.json", b"{}")],
)
def test_broken_tokenizer_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.exit_code == 65
    assert str(caught.value).startswith(f"{tmp_path}: tokenizer files must be T5's, but: ")
    assert str(caught.value).endswith("; restore them")


# v20 spells control tokens: FastChat parses them, and we, on purpose, do not.
PAIRS = [pair for pair in golden("fastchat_t5_outputs.json") if pair["id"] != "v20"]


@needs_real
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair['id']}-{pair['pair']}")
def test_our_ids_are_those_of_fastchat(real: PreTrainedTokenizerBase, pair: dict[str, Any]) -> None:
    (conversation,) = (one for one in read_conversations(GOLDEN / "conversations.json") if one.identity == pair["id"])
    dialogue, _ = normalise(conversation)
    assert isinstance(dialogue, Dialogue)
    draft = lay_out(
        dialogue, LayoutOptions(2048), partial(count_tokens, tokenizer=real, encode_text=encode_text)
    ).drafts[pair["pair"]]
    example = encode(draft, tokenizer=real, encode_text=encode_text, max_tokens=2048)
    assert list(example.input_ids) == pair["source_ids"]
    assert list(example.labels) == pair["target_ids"]


# transformers 4.36 took the spaces around a control token away; transformers 5 keeps them (and so do we).
DIFFERENT_IN_TRANSFORMERS_5 = {"end </s>", "<extra_id_0> blah <extra_id_1>"}


@needs_real
@pytest.mark.parametrize(
    "case",
    [case for case in golden("t5_tokenizer_golden.json")["cases"] if case["text"] not in DIFFERENT_IN_TRANSFORMERS_5],
    ids=lambda case: repr(case["text"]),
)
def test_the_tokenizer_gives_the_ids_of_transformers_4(real: PreTrainedTokenizerBase, case: dict[str, Any]) -> None:
    assert real(case["text"])["input_ids"] == case["added_4_36"]


@needs_real
def test_the_added_tokens_have_the_ids_of_fastchats_checkpoints(real: PreTrainedTokenizerBase) -> None:
    expected = golden("t5_tokenizer_golden.json")["ids_of_added"]
    assert {token: real.convert_tokens_to_ids(token) for token in expected} == expected


@pytest.mark.parametrize("space", ["\u00a0", "\u3000", "\u2003", "\u2009", "\u2028", "\r", "\x0b"])
def test_white_space_but_space_newline_and_tab_vanishes(tokenizer: PreTrainedTokenizerBase, space: str) -> None:
    assert tokenizer.decode(encode_text(tokenizer, f"a{space}b {space}\n\tc")) == "ab \n\tc"
