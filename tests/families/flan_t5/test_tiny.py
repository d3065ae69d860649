"""The tiny checkpoint is a hub folder of Flan-T5 in small, the same on every machine."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import T5Tokenizer

from ds_sft.families.flan_t5.tiny import write_tiny_checkpoint

TEXTS = ["What is it? A tiny model.", "好的。 It learns {code} < 3\nand more."]


def test_the_folder_holds_what_a_hub_folder_holds(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "new" / "tiny", TEXTS)
    assert sorted(file.name for file in (tmp_path / "new" / "tiny").iterdir()) == [
        "config.json",
        "model.safetensors",
        "spiece.model",
    ]


def test_two_folders_are_equal_byte_for_byte(tmp_path: Path) -> None:
    for name in ("one", "two"):
        torch.manual_seed(ord(name[0]))
        write_tiny_checkpoint(tmp_path / name, TEXTS)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_the_config_says_that_the_head_is_untied(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, TEXTS)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"], config["tie_word_embeddings"]) == (
        "t5",
        ["T5ForConditionalGeneration"],
        False,
    )


def test_the_stored_head_differs_from_the_embeddings_and_shared_tables_are_stored_once(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, TEXTS)
    weights = load_file(tmp_path / "model.safetensors")
    assert not torch.equal(weights["lm_head.weight"], weights["shared.weight"])
    assert [name for name in weights if name.endswith("embed_tokens.weight")] == []


def test_the_embeddings_have_no_row_to_spare(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, TEXTS)
    num_rows = load_file(tmp_path / "model.safetensors")["shared.weight"].shape[0]
    assert num_rows == len(T5Tokenizer.from_pretrained(tmp_path))
    assert num_rows == json.loads((tmp_path / "config.json").read_text())["vocab_size"]


def test_the_tokenizer_has_t5s_ids_for_padding_end_and_unknown(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, TEXTS)
    tokenizer = T5Tokenizer.from_pretrained(tmp_path)
    assert [tokenizer.convert_tokens_to_ids(name) for name in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]


def test_every_character_of_the_texts_has_a_piece_but_those_that_the_family_adds(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, TEXTS)
    tokenizer = T5Tokenizer.from_pretrained(tmp_path)
    unknown = {
        character
        for character in "".join(TEXTS)
        if tokenizer.unk_token_id in tokenizer(character, add_special_tokens=False)["input_ids"]
    }
    assert unknown == set("{}<")
