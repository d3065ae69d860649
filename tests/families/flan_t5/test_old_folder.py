"""Folders of transformers before 4.34 give the ids that their checkpoint was trained with, in every process."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from ds_sft.errors import ModelError
from ds_sft.families.flan_t5.template import OTHER_TOKENS
from ds_sft.families.flan_t5.tiny import write_tiny_checkpoint
from ds_sft.families.flan_t5.tokenizer import encode_text, load_tokenizer

TEN = ["[PAD]", *OTHER_TOKENS]
SENTINELS = [f"<extra_id_{index}>" for index in range(100)]
TEXT = "a\n\tb  c{d}\\`^<\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A SentencePiece model with pieces for a few letters."""
    folder = tmp_path_factory.mktemp("letters")
    write_tiny_checkpoint(folder, [f"a{letter}b {letter} c{letter}" for letter in "abcdefixq"])
    return (folder / "spiece.model").read_bytes()


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory, model: bytes) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder with the model alone."""
    folder = tmp_path_factory.mktemp("new")
    (folder / "spiece.model").write_bytes(model)
    return load_tokenizer(folder)


@pytest.fixture
def old(tmp_path: Path, model: bytes, new: PreTrainedTokenizerBase) -> Path:
    """A folder as transformers 4.31 saved it."""
    (tmp_path / "spiece.model").write_bytes(model)
    first = len(new) - len(TEN)
    write(tmp_path, "added_tokens.json", {token: first + index for index, token in enumerate(TEN)})
    roles = {"additional_special_tokens": SENTINELS, "eos_token": "</s>", "unk_token": "<unk>"}
    write(tmp_path, "special_tokens_map.json", {**roles, "pad_token": "[PAD]"})
    settings = {"clean_up_tokenization_spaces": True, "extra_ids": 100, "model_max_length": 512, "sp_model_kwargs": {}}
    write(
        tmp_path, "tokenizer_config.json", {**roles, **settings, "pad_token": "<pad>", "tokenizer_class": "T5Tokenizer"}
    )
    return tmp_path


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("attempt", range(4))
def test_an_old_folder_gives_the_ids_of_a_new_one(old: Path, new: PreTrainedTokenizerBase, attempt: int) -> None:
    loaded = load_tokenizer(old)
    assert len(loaded) == len(new)
    assert loaded.convert_tokens_to_ids(TEN) == list(range(len(new) - 10, len(new)))
    assert encode_text(loaded, TEXT) == encode_text(new, TEXT)
    assert (loaded.pad_token, loaded.eos_token, loaded.unk_token) == ("[PAD]", "</s>", "<unk>")
    assert loaded.decode(encode_text(loaded, TEXT)) == TEXT


def test_every_process_gives_the_same_ids(old: Path, new: PreTrainedTokenizerBase) -> None:
    program = (
        "import sys; from pathlib import Path;"
        "from ds_sft.families.flan_t5.tokenizer import encode_text, load_tokenizer;"
        f"print(encode_text(load_tokenizer(Path(sys.argv[1])), {TEXT!r}))"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(old)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            cwd=Path(__file__).parents[3],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(3)
    ]
    assert [json.loads(one.communicate()[0]) for one in started] == [encode_text(new, TEXT)] * 3


def test_one_line_says_what_was_found_and_done(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ds_sft"):
        load_tokenizer(old)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"{old / 'added_tokens.json'}: found 10 added tokens without their flags ")
    assert "built the tokenizer anew from spiece.model and kept their ids" in record.getMessage()


def test_a_folder_that_says_how_tokens_are_found_is_read_as_it_is(
    old: Path, new: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word", "special"), False)
    decoder = {token_id: {"content": token, **flags} for token, token_id in read(old, "added_tokens.json").items()}
    write(old, "tokenizer_config.json", {**read(old, "tokenizer_config.json"), "added_tokens_decoder": decoder})
    with caplog.at_level(logging.INFO, logger="ds_sft"):
        loaded = load_tokenizer(old)
    assert caplog.records == []
    assert encode_text(loaded, TEXT) == encode_text(new, TEXT)


def test_tokens_of_another_order_keep_the_ids_that_they_were_trained_with(old: Path) -> None:
    ids = read(old, "added_tokens.json")
    ids["<"], ids["{"] = ids["{"], ids["<"]
    write(old, "added_tokens.json", ids)
    loaded = load_tokenizer(old)
    assert {token: loaded.convert_tokens_to_ids(token) for token in ids} == ids


def test_tokens_that_a_user_added_keep_their_ids_and_are_found_as_they_are_written(
    old: Path, new: PreTrainedTokenizerBase
) -> None:
    ids = {**read(old, "added_tokens.json"), "ﬁx": len(new), "[tool]": len(new) + 1}
    write(old, "added_tokens.json", ids)
    roles = read(old, "special_tokens_map.json")
    tool = {"content": "[tool]", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    write(old, "special_tokens_map.json", {**roles, "additional_special_tokens": [*SENTINELS, tool]})
    loaded = load_tokenizer(old)
    assert {token: loaded.convert_tokens_to_ids(token) for token in ids} == ids
    assert encode_text(loaded, "aﬁx")[-1] == len(new)
    # T5's normaliser makes `fi` of the ligature; a token looked for in normalised text would be found here too.
    assert len(new) not in encode_text(loaded, "afix")
    assert len(new) + 1 not in encode_text(loaded, "[tool]")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"more": 11}, "'more' must have id {10}, but has {11}"),
        ({"more": 9}, "'more' must have id {10}, but has {9}"),
        ({"</s>": 10}, "'</s>' must have id 1, but has {10}"),
    ],
)
def test_an_id_that_cannot_be_had_is_refused(
    old: Path, new: PreTrainedTokenizerBase, change: dict[str, int], told: str
) -> None:
    first = len(new) - len(TEN)
    added = {token: first + index for token, index in change.items()}
    write(old, "added_tokens.json", {**read(old, "added_tokens.json"), **added})
    with pytest.raises(ModelError) as caught:
        load_tokenizer(old)
    reason = told.format(*range(first, first + 12))
    assert str(caught.value) == f"{old}: tokenizer files must be T5's, but: added_tokens.json: {reason}; restore them"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], "added_tokens.json must hold an object, but holds []"),
        ({"<": "32101"}, "added_tokens.json must map tokens to whole numbers, but does not"),
    ],
)
def test_a_list_of_tokens_that_is_none_is_refused(old: Path, content: Any, told: str) -> None:
    write(old, "added_tokens.json", content)
    with pytest.raises(ModelError, match=told.replace("[", r"\[")):
        load_tokenizer(old)
