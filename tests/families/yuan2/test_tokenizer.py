"""Ids are those of the official loader, decoding gives the text back, and no text becomes a control token."""

import copy
import io
import json
import logging
import pickle
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken
from transformers import AutoTokenizer
from transformers.models.auto import configuration_auto, tokenization_auto

from ds_sft.contracts import IGNORE_INDEX, Dialogue, Draft, Exchange, LayoutOptions
from ds_sft.data.encode import count_tokens, encode
from ds_sft.data.normalise import normalise
from ds_sft.data.read import read_conversations
from ds_sft.errors import MissingInputError, ModelError
from ds_sft.families.yuan2.native import configuration
from ds_sft.families.yuan2.template import CHAT_TEMPLATE, CONTROL_TOKENS, lay_out
from ds_sft.families.yuan2.tokenizer import (
    Yuan2Tokenizer,
    encode_text,
    load_tokenizer,
    register,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "conversations"
REAL = Path(__file__).parents[4] / "shared" / "fixtures" / "tokenizers" / "yuan"
needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"Yuan's own tokenizer.model is not part of this repository: {REAL}"
)
ABSENT = ["<mask>", "<predict>", "<FIM_SUFFIX>", "<FIM_PREFIX>", "<FIM_MIDDLE>"]
"""Control tokens that the published model has no piece for, in the order of their ids."""
PRESENT = ["<eod>", "<n>", "<sep>", "<pad>", *(name for name in CONTROL_TOKENS if name.startswith(("<c", "<j", "<em")))]
LINES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps.",
    "请用一句话介绍北京。北京是中国的首都，历史悠久。",
    "def sort(items):\n    return sorted(items)  # x < y > z",
    "Name a red fruit. A ripe strawberry. And a yellow one? A banana.",
]
LogRecords = pytest.LogCaptureFixture


def golden(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def model_bytes(*, kind: str = "bpe", control_type: int = 1, more: Sequence[str] = ()) -> bytes:
    """Train a small model like the published one: bytes for the unknown, and control pieces that no text reaches."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        model_type=kind,
        vocab_size=420,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    schema: Any = sentencepiece_model_pb2
    proto = schema.ModelProto.FromString(model.getvalue())
    for name in [*PRESENT, *more]:
        proto.pieces.add(piece=name, score=0.0, type=control_type if name in PRESENT else 1)
    return bytes(proto.SerializeToString())


@pytest.fixture(scope="module")
def toy_model() -> bytes:
    """The bytes of the small model."""
    return model_bytes()


@pytest.fixture
def toy_folder(tmp_path: Path, toy_model: bytes) -> Path:
    """A folder with nothing but the small model."""
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(toy_model)
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, toy_model: bytes) -> Yuan2Tokenizer:
    """The tokenizer of the small model."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "tokenizer.model").write_bytes(toy_model)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Yuan2Tokenizer:
    """Yuan's own tokenizer, from a folder as the hub has it."""
    folder = tmp_path_factory.mktemp("yuan")
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(REAL / name, folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module", params=["toy", pytest.param("real", marks=needs_real)])
def tokenizer(request: pytest.FixtureRequest) -> Yuan2Tokenizer:
    """Each of the two."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Yuan2Tokenizer)
    return found


def control_ids(tokenizer: Yuan2Tokenizer) -> set[Any]:
    return {tokenizer.convert_tokens_to_ids(name) for name in [*CONTROL_TOKENS, "<s>", "</s>", "<unk>"]}


CASES = golden("yuan_tokenizer_golden.json")["cases"]


@needs_real
@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["text"]))
def test_the_ids_are_those_of_the_official_loader(real: Yuan2Tokenizer, case: dict[str, Any]) -> None:
    assert real(case["text"])["input_ids"] == case["ids_tf4_36"]


@needs_real
def test_the_control_tokens_have_the_ids_of_the_official_loader(real: Yuan2Tokenizer) -> None:
    expected = golden("yuan_tokenizer_golden.json")
    assert {token: real.convert_tokens_to_ids(token) for token in expected["ids_of"]} == expected["ids_of"]
    assert len(real) == expected["len"] == 134958


# The model writes a space as U+2581, so that this character comes back as a space.
@needs_real
@pytest.mark.parametrize(
    "case", [case for case in CASES if "▁" not in case["text"]], ids=lambda case: repr(case["text"])
)
def test_decoding_gives_back_the_golden_texts(real: Yuan2Tokenizer, case: dict[str, Any]) -> None:
    assert real.decode(case["ids_tf4_36"]) == case["text"]


def test_control_tokens_without_a_piece_follow_the_pieces_in_their_fixed_order(toy: Yuan2Tokenizer) -> None:
    assert toy.convert_tokens_to_ids(ABSENT) == list(range(toy.vocab_size, toy.vocab_size + 5))
    assert len(toy) == toy.vocab_size + 5


def test_control_tokens_with_a_piece_keep_its_id(toy: Yuan2Tokenizer) -> None:
    first = toy.vocab_size - len(PRESENT)
    names = [name for name in PRESENT if name != "<n>"]
    assert [toy.convert_tokens_to_ids(name) for name in names] == [first + PRESENT.index(name) for name in names]


def test_every_control_token_is_special_and_is_found_in_a_text_of_transformers(toy: Yuan2Tokenizer) -> None:
    for name in CONTROL_TOKENS:
        assert name in toy.all_special_tokens
        assert toy(name)["input_ids"] == [toy.convert_tokens_to_ids(name)]


def test_no_token_is_named_as_a_beginning_but_its_sign_is_found_as_by_the_official_loader(toy: Yuan2Tokenizer) -> None:
    assert toy.bos_token is None
    assert toy("<s>")["input_ids"] == [1]


def test_the_named_tokens(toy: Yuan2Tokenizer) -> None:
    assert toy.special_tokens_map == {
        "eos_token": "<eod>",
        "unk_token": "<unk>",
        "sep_token": "<sep>",
        "pad_token": "<pad>",
        "eod_token": "<eod>",
    }


FRAGMENTS = ["<", ">", "</", "s>", "eod", "eod>", "<e", "sep>", "<n>", "pad", "unk", "0x0A", "▁", " ", "\n", "a", "好"]
MIXTURES = st.lists(st.sampled_from([*FRAGMENTS, *CONTROL_TOKENS, "<s>", "</s>", "<unk>"]), max_size=8).map("".join)
TEXTS = st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]), max_size=30)
EXAMPLES = settings(max_examples=150, deadline=None, derandomize=True)


@EXAMPLES
@given(text=MIXTURES | TEXTS, is_continued=st.booleans())
def test_no_text_becomes_a_control_token(tokenizer: Yuan2Tokenizer, text: str, is_continued: bool) -> None:
    assert not control_ids(tokenizer) & set(encode_text(tokenizer, text, is_continued=is_continued))


@EXAMPLES
@given(text=MIXTURES.map(lambda text: text.replace("▁", "_")) | TEXTS)
def test_decoding_gives_back_what_was_encoded(tokenizer: Yuan2Tokenizer, text: str) -> None:
    assert tokenizer.decode(encode_text(tokenizer, text, is_continued=False)) == text
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@EXAMPLES
@given(text=TEXTS.filter(bool))
def test_a_space_stands_in_front_unless_other_text_does(tokenizer: Yuan2Tokenizer, text: str) -> None:
    for is_continued, front in ((False, " "), (True, "")):
        ids = encode_text(tokenizer, text, is_continued=is_continued)
        # Behind a character, so that nothing is taken away.
        (before,) = encode_text(tokenizer, "a", is_continued=True)
        assert tokenizer.decode([before, *ids]) == f"a{front}{text}"


def test_text_behind_other_text_has_the_ids_that_it_has_inside_a_longer_one(toy: Yuan2Tokenizer) -> None:
    assert encode_text(toy, "好", is_continued=True) == encode_text(toy, "a好", is_continued=False)[1:]


def test_nothing_is_put_before_or_behind_a_text(toy: Yuan2Tokenizer) -> None:
    text = "The dog"
    assert toy(text)["input_ids"] == toy(text, add_special_tokens=False)["input_ids"]
    assert toy(text)["input_ids"] == encode_text(toy, text, is_continued=False)


def test_skipping_special_tokens_leaves_the_texts_between_them(toy: Yuan2Tokenizer) -> None:
    assert toy.decode(toy("The<sep>dog<eod>")["input_ids"], skip_special_tokens=True) == "Thedog"


def test_tokens_and_ids_decode_alike(toy: Yuan2Tokenizer) -> None:
    text = "The dog\n<sep> sleeps 😀"
    assert toy.convert_tokens_to_string(toy.tokenize(text)) == text


def test_ids_of_rows_without_a_token_decode_to_the_unknown_token(toy: Yuan2Tokenizer) -> None:
    assert toy.decode([len(toy), len(toy) + 7]) == "<unk><unk>"


def test_another_tokenizer_is_refused_by_encode_text() -> None:
    with pytest.raises(AssertionError, match="must be a Yuan2Tokenizer, but is a "):
        encode_text(object(), "a", is_continued=False)  # type: ignore[arg-type]  # the point of the test


def dialogue_of(identity: str) -> Dialogue:
    (conversation,) = (one for one in read_conversations(GOLDEN / "conversations.json") if one.identity == identity)
    dialogue, _ = normalise(conversation)
    assert isinstance(dialogue, Dialogue)
    return dialogue


LossMode = Literal["last_response", "split_example", "efficient"]
OPTIONS = {
    "last_response": LayoutOptions(10**6, "last_response"),
    "split": LayoutOptions(10**6, "split_example"),
    "efficient": LayoutOptions(10**6, "efficient"),
    "efficient_fastchat_layout": LayoutOptions(10**6, "efficient", "fastchat"),
}


def samples(dialogue: Dialogue, tokenizer: Yuan2Tokenizer, mode: str) -> list[tuple[list[int], list[int]]]:
    """Give the ids and labels of every sample as training has them."""
    measure = partial(count_tokens, tokenizer=tokenizer, encode_text=encode_text)

    def example(draft: Draft) -> tuple[list[int], list[int]]:
        done = encode(draft, tokenizer=tokenizer, encode_text=encode_text, max_tokens=10**6)
        return list(done.input_ids), list(done.labels)

    return [example(draft) for draft in lay_out(dialogue, OPTIONS[mode], measure).drafts]


def supervised(ids: Sequence[int], labels: Sequence[int], tokenizer: Yuan2Tokenizer) -> Iterator[str]:
    """Decode every stretch of supervised tokens, without the space that encoding puts behind `<sep>`."""
    before = None
    for is_loss, run in groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != IGNORE_INDEX):
        pairs = list(run)
        if is_loss:
            assert all(token == label for token, label in pairs)
            (front,) = encode_text(tokenizer, "a", is_continued=True)
            text = str(tokenizer.decode([front, *(label for _, label in pairs)]))[1:]
            yield text.removeprefix(" ") if before == tokenizer.sep_token_id else text
        before = pairs[-1][0]


ROWS = [row for row in golden("expected_semantics_yuan2.json") if not row["rejected"] and not row["max_len"]]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['id']}-{row['mode']}")
def test_the_supervised_tokens_are_the_texts_that_the_oracle_supervises(
    tokenizer: Yuan2Tokenizer, row: dict[str, Any]
) -> None:
    found = [list(supervised(*one, tokenizer)) for one in samples(dialogue_of(row["id"]), tokenizer, row["mode"])]
    assert found == [sample["supervised"] for sample in row["samples"]]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['id']}-{row['mode']}")
def test_the_control_tokens_of_a_sample_are_those_of_its_layout(tokenizer: Yuan2Tokenizer, row: dict[str, Any]) -> None:
    due = [[one["text"] for one in sample["segments"] if one["kind"] in ("sep", "eod")] for sample in row["samples"]]
    control = control_ids(tokenizer)
    found = [
        [tokenizer.convert_ids_to_tokens(one) for one in ids if one in control]
        for ids, _ in samples(dialogue_of(row["id"]), tokenizer, row["mode"])
    ]
    assert found == due


@needs_real
@pytest.mark.parametrize(
    "row", golden("fastchat_yuan2_outputs.json"), ids=lambda row: f"{row['id']}-{row['mode']}-{row['sample']}"
)
def test_the_ids_of_a_sample_are_those_of_fastchat(real: Yuan2Tokenizer, row: dict[str, Any]) -> None:
    ids, _ = samples(dialogue_of(row["id"]), real, row["mode"])[row["sample"]]
    assert ids == row["input_ids"]


def prompts(dialogue: Dialogue, tokenizer: Yuan2Tokenizer) -> list[list[int]]:
    """Give the ids that stand before each answer in training."""
    split = samples(dialogue, tokenizer, "split")
    return [[one for one, label in zip(*sample, strict=True) if label == IGNORE_INDEX] for sample in split]


def chat_prompts(dialogue: Dialogue, tokenizer: Yuan2Tokenizer) -> list[list[int]]:
    """Give the ids of each question as a program that answers gets them."""
    messages = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
    found: list[Any] = []
    for exchange in dialogue.exchanges:
        messages = [*messages, {"role": "user", "content": exchange.question}]
        found.append(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        messages = [*messages, {"role": "assistant", "content": exchange.answer}]
    return found


def prompt_texts(dialogue: Dialogue) -> list[str]:
    system = f"{dialogue.system}\n" if dialogue.system else ""
    told = [f"{one.question}<n>{one.answer}<n>" for one in dialogue.exchanges]
    return [f"{system}{''.join(told[:index])}{one.question}<sep>" for index, one in enumerate(dialogue.exchanges)]


# A chat template finds control tokens in messages, and training never does.
SPELLS_CONTROL = {"v10", "v20"}
IDENTITIES = sorted({row["id"] for row in ROWS} - SPELLS_CONTROL)


@pytest.mark.parametrize("identity", IDENTITIES)
def test_the_prompt_of_training_is_the_prompt_of_the_chat_template(tokenizer: Yuan2Tokenizer, identity: str) -> None:
    dialogue = dialogue_of(identity)
    assert prompts(dialogue, tokenizer) == chat_prompts(dialogue, tokenizer)


@pytest.mark.parametrize("identity", IDENTITIES)
def test_the_prompt_of_training_has_the_ids_of_its_text(tokenizer: Yuan2Tokenizer, identity: str) -> None:
    dialogue = dialogue_of(identity)
    assert prompts(dialogue, tokenizer) == [tokenizer(text)["input_ids"] for text in prompt_texts(dialogue)]


PLAIN = st.text(alphabet="ab<n> \n▁好😀", min_size=1, max_size=10).filter(lambda text: text.strip() != "")


@EXAMPLES
@given(st.builds(Dialogue, st.none() | PLAIN, st.lists(st.builds(Exchange, PLAIN, PLAIN), min_size=1, max_size=4)))
def test_the_prompts_agree_on_any_text_without_control_tokens(toy: Yuan2Tokenizer, dialogue: Dialogue) -> None:
    assert prompts(dialogue, toy) == chat_prompts(dialogue, toy)


def test_a_chat_that_spells_control_tokens_agrees_with_training_when_it_is_sanitised(toy: Yuan2Tokenizer) -> None:
    dialogue = Dialogue(None, (Exchange("a<eod>b", "c"),))
    ids = toy.apply_chat_template(
        [{"role": "user", "content": "a<eod>b"}],
        add_generation_prompt=True,
        return_dict=False,
        sanitize_control_tokens=True,
    )
    assert prompts(dialogue, toy) == [ids]


def write_config(folder: Path, **content: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast", "YuanTokenizer", "PreTrainedTokenizerFast"])
def test_a_folder_that_names_another_class_gives_ours_and_one_warning(
    toy_folder: Path, toy: Yuan2Tokenizer, caplog: LogRecords, name: str
) -> None:
    write_config(
        toy_folder,
        tokenizer_class=name,
        add_bos_token=True,
        add_eos_token=True,
        eos_token="</s>",
        pad_token=None,
        additional_special_tokens=["<s>", "</s>", "<sep>"],
        auto_map={"AutoTokenizer": ["tokenization_yuan.YuanTokenizer", None]},
    )
    with caplog.at_level(logging.INFO, logger="ds_sft"):
        loaded = load_tokenizer(toy_folder)
    assert type(loaded) is Yuan2Tokenizer
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"tokenizer_class: {name} -> Yuan2Tokenizer, because transformers 5 gives " in record.getMessage()
    text = "The dog<sep>a</s>"
    assert loaded(text)["input_ids"] == toy(text)["input_ids"]
    assert loaded.get_added_vocab() == toy.get_added_vocab()
    assert loaded.special_tokens_map == toy.special_tokens_map


def test_a_folder_with_only_the_model_is_read_without_a_warning(toy_folder: Path, caplog: LogRecords) -> None:
    with caplog.at_level(logging.INFO, logger="ds_sft"):
        assert load_tokenizer(toy_folder).decode([260]) != ""
    assert caplog.records == []


def test_a_folder_of_ours_is_read_without_a_warning_and_gives_the_same_ids(
    toy: Yuan2Tokenizer, tmp_path: Path, caplog: LogRecords
) -> None:
    toy.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="ds_sft"):
        loaded = load_tokenizer(tmp_path)
    assert caplog.records == []
    text = "The dog<sep> sleeps <mask><FIM_MIDDLE>好<eod>"
    assert loaded(text)["input_ids"] == toy(text)["input_ids"]
    assert loaded.get_added_vocab() == toy.get_added_vocab()
    assert loaded.all_special_tokens == toy.all_special_tokens


def test_saving_what_was_saved_gives_the_same_bytes(toy: Yuan2Tokenizer, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    toy.save_pretrained(first)
    load_tokenizer(first).save_pretrained(second)
    names = sorted(file.name for file in first.iterdir())
    assert names == ["added_tokens.json", "chat_template.jinja", "tokenizer.model", "tokenizer_config.json"]
    assert [(second / name).read_bytes() for name in names] == [(first / name).read_bytes() for name in names]


def test_the_saved_folder_carries_the_chat_template_and_names_our_class(toy: Yuan2Tokenizer, tmp_path: Path) -> None:
    toy.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == CHAT_TEMPLATE
    assert json.loads((tmp_path / "tokenizer_config.json").read_bytes())["tokenizer_class"] == "Yuan2Tokenizer"
    assert load_tokenizer(tmp_path).chat_template == CHAT_TEMPLATE


def test_a_chat_template_that_training_does_not_follow_is_replaced_with_a_warning(
    toy_folder: Path, caplog: LogRecords
) -> None:
    write_config(toy_folder, chat_template="{{ messages[0]['content'].strip() }}<sep>")
    with caplog.at_level(logging.INFO, logger="ds_sft"):
        loaded = load_tokenizer(toy_folder)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "chat template is replaced" in caplog.records[0].getMessage()
    assert loaded.chat_template == CHAT_TEMPLATE


def test_a_tokenizer_json_beside_the_model_changes_nothing(toy_folder: Path, toy: Yuan2Tokenizer) -> None:
    write_config(toy_folder, tokenizer_class="LlamaTokenizer")
    added = [{"id": 0, "content": "<unk>", "special": True}, {"id": 2, "content": "</s>", "special": True}]
    content = {"version": "1.0", "added_tokens": added, "model": {"type": "BPE", "vocab": {}, "merges": []}}
    (toy_folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    loaded = load_tokenizer(toy_folder)
    text = "The dog<sep>sleeps</s>"
    assert loaded(text)["input_ids"] == toy(text)["input_ids"]
    assert loaded.get_added_vocab() == toy.get_added_vocab()


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.deepcopy])
def test_copies_encode_alike_also_behind_other_text(toy: Yuan2Tokenizer, duplicate: Any) -> None:
    made = duplicate(toy)
    copied = pickle.loads(made) if isinstance(made, bytes) else made  # noqa: S301  # our own bytes
    for is_continued in (False, True):
        assert encode_text(copied, "The 好", is_continued=is_continued) == encode_text(
            toy, "The 好", is_continued=is_continued
        )
    assert copied("a<sep>b")["input_ids"] == toy("a<sep>b")["input_ids"]


def test_adding_the_control_tokens_again_adds_nothing(toy_folder: Path) -> None:
    loaded = load_tokenizer(toy_folder)
    before = loaded.get_added_vocab() | {}
    assert loaded.add_special_tokens({"pad_token": "<pad>"}) == 0
    assert loaded.add_tokens([AddedToken(name, normalized=False) for name in CONTROL_TOKENS]) == 0
    assert loaded.get_added_vocab() == before


def entry(content: str, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": content, "special": special, **flags}


def test_tokens_that_a_user_added_keep_their_ids_through_saving(toy_folder: Path, toy: Yuan2Tokenizer) -> None:
    first = toy.vocab_size + 5
    decoder = {str(first): entry("[tool]", special=True), str(first + 1): entry("colour", special=False)}
    decoder["2"] = entry("</s>", special=True)
    write_config(toy_folder, added_tokens_decoder=decoder, extra_special_tokens=["[tool]"])
    load_tokenizer(toy_folder).save_pretrained(toy_folder / "again")
    for folder in (toy_folder, toy_folder / "again"):
        loaded = load_tokenizer(folder)
        assert loaded.convert_tokens_to_ids(["[tool]", "colour"]) == [first, first + 1]
        assert len(loaded) == first + 2
        assert loaded.get_added_vocab().keys() - toy.get_added_vocab().keys() == {"[tool]", "colour"}


def test_ordinary_tokens_that_a_user_added_are_found_in_text_and_special_ones_are_not(
    toy_folder: Path, toy: Yuan2Tokenizer
) -> None:
    first = toy.vocab_size + 5
    decoder = {str(first): entry("[tool]", special=True), str(first + 1): entry("colour", special=False)}
    write_config(toy_folder, added_tokens_decoder=decoder)
    loaded = load_tokenizer(toy_folder)
    for is_continued in (False, True):
        due = encode_text(toy, "a [tool] ", is_continued=is_continued)
        due += [first + 1, *encode_text(toy, "s", is_continued=False)]
        assert encode_text(loaded, "a [tool] colours", is_continued=is_continued) == due
    assert loaded("a colours")["input_ids"] == encode_text(loaded, "a colours", is_continued=False)


def test_tokens_of_an_old_folder_are_read_from_added_tokens_json(toy_folder: Path, toy: Yuan2Tokenizer) -> None:
    ids = {name: toy.vocab_size + index for index, name in enumerate([*ABSENT, "colour"])}
    (toy_folder / "added_tokens.json").write_text(json.dumps(ids), encoding="utf-8")
    loaded = load_tokenizer(toy_folder)
    assert loaded.get_added_vocab() == {**toy.get_added_vocab(), "colour": toy.vocab_size + 5}


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ({"<mask>": 1, "<predict>": 0}, "added token '<predict>' must have id {1}, but has {0}"),
        ({"colour": 0}, "added token 'colour' must have id {5}, but has {0}"),
        ({"colour": 7}, "added token 'colour' must have id {5}, but has {7}"),
    ],
)
def test_ids_that_are_not_the_official_ones_are_refused(
    toy_folder: Path, toy: Yuan2Tokenizer, ids: dict[str, int], told: str
) -> None:
    placed = {name: toy.vocab_size + index for name, index in ids.items()}
    (toy_folder / "added_tokens.json").write_text(json.dumps(placed), encoding="utf-8")
    expected = told.format(*range(toy.vocab_size, toy.vocab_size + 8))
    with pytest.raises(ModelError) as caught:
        load_tokenizer(toy_folder)
    assert str(caught.value) == f"{toy_folder}: tokenizer files must be Yuan2's, but: {expected}; restore them"


def test_a_folder_that_makes_one_token_of_the_turn_sign_is_refused(toy_folder: Path, toy: Yuan2Tokenizer) -> None:
    decoder = {str(toy.convert_tokens_to_ids("<n>")): entry("<n>", special=True)}
    write_config(toy_folder, added_tokens_decoder=decoder)
    with pytest.raises(ModelError, match="'<n>' must be ordinary text, as in the published models, but is an added"):
        load_tokenizer(toy_folder)


def test_a_folder_without_the_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value) == (
        f"model_name_or_path: folder must hold tokenizer.model, but {tmp_path} has none; copy it there"
    )


def test_an_empty_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(ModelError) as caught:
        load_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.model"
    assert str(caught.value) == f"{file}: must be Yuan2's SentencePiece model, but is empty; restore it"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\noid sha256:5e7c\nsize 2155861\n"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
        ("added_tokens.json", b"[1]"),
        ("tokenizer.json", b"{}"),
    ],
)
def test_a_broken_file_is_told(toy_folder: Path, name: str, content: bytes) -> None:
    (toy_folder / name).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(toy_folder)
    told = str(caught.value)
    assert told.startswith(f"{toy_folder}: tokenizer files must be Yuan2's, but: ")
    assert told.endswith("; restore them")
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"kind": "unigram"}, "tokenizer.model must be a BPE model, but is of another type"),
        ({"control_type": 4}, "tokenizer.model must not make <sep> of ordinary text, but has pieces that join to it"),
        ({"more": ["<eo", "d>"]}, "tokenizer.model must not make <eod> of ordinary text, but has pieces that join to"),
    ],
)
def test_a_model_that_could_make_control_tokens_of_text_is_refused(
    tmp_path: Path, model: dict[str, Any], told: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model_bytes(**model))
    with pytest.raises(ModelError, match=told):
        load_tokenizer(tmp_path)


CONFIG = {
    "model_type": "yuan",
    "tokenizer_class": "YuanTokenizer",
    "auto_map": {
        "AutoConfig": "configuration_yuan.YuanConfig",
        "AutoModelForCausalLM": "yuan_hf_model.YuanForCausalLM",
    },
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 135040,
}


@pytest.fixture
def registered() -> None:
    """What importing the package does once transformers' auto classes are loaded."""
    configuration.register(configuration_auto)
    register(tokenization_auto)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["LlamaTokenizer", "YuanTokenizer", "LlamaTokenizerFast", None])
def test_auto_tokenizer_reads_a_published_folder_with_our_class_and_says_so(
    toy_folder: Path, caplog: LogRecords, name: str | None
) -> None:
    (toy_folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    if name:
        write_config(toy_folder, tokenizer_class=name, add_bos_token=True)
    with caplog.at_level(logging.INFO, logger="ds_sft"):
        loaded = AutoTokenizer.from_pretrained(toy_folder)
    assert type(loaded) is Yuan2Tokenizer
    assert [record.levelname for record in caplog.records] == (["WARNING"] if name else [])


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("has_config", [True, False])
def test_auto_tokenizer_reads_a_folder_of_ours(toy: Yuan2Tokenizer, tmp_path: Path, has_config: bool) -> None:
    toy.save_pretrained(tmp_path)
    if has_config:
        (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    loaded: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is Yuan2Tokenizer
    assert loaded.chat_template == CHAT_TEMPLATE
    assert loaded("The<sep>dog")["input_ids"] == toy("The<sep>dog")["input_ids"]


def test_nothing_is_lost_where_bytes_stand_for_unknown_characters(toy: Yuan2Tokenizer) -> None:
    text = "a\u3000b\u00a0c\t\n 😀"
    assert toy.decode(encode_text(toy, text, is_continued=False)) == text
