"""The tiny checkpoint is a hub folder of Yuan2 in small, the same on every machine."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor

from ds_sft.families.yuan2.tiny import write_tiny_checkpoint
from ds_sft.families.yuan2.tokenizer import load_tokenizer

TEXTS = ["What is it? A tiny model.", "好的。 It learns {code} < 3\nand more."]


def test_the_folder_holds_what_a_hub_folder_holds(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "new" / "tiny", TEXTS)
    assert sorted(file.name for file in (tmp_path / "new" / "tiny").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
    ]


def test_two_folders_are_equal_byte_for_byte(tmp_path: Path) -> None:
    for name in ("one", "two"):
        torch.manual_seed(ord(name[0]))
        write_tiny_checkpoint(tmp_path / name, TEXTS)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_weights_have_the_official_names_and_the_tied_head_is_stored_once(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, TEXTS)
    names = set(load_file(tmp_path / "model.safetensors"))
    # The list of spec and paper: 14 weights a layer, embedding and final norm.
    layer = ["q_proj", "k_proj", "v_proj", "o_proj", "lf_gate.output_layernorm"]
    expected = {f"self_attn.{name}.weight" for name in layer}
    expected |= {f"self_attn.lf_gate.{conv}.{part}" for conv in ("conv1", "conv2") for part in ("weight", "bias")}
    expected |= {f"mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")}
    expected |= {"input_layernorm.weight", "post_attention_layernorm.weight"}
    assert len(expected) == 14
    per_layer = {f"model.layers.{number}.{name}" for number in (0, 1) for name in expected}
    assert names == per_layer | {"model.embed_tokens.weight", "model.norm.weight"}


def test_the_table_has_no_row_for_the_tokens_that_the_model_has_no_piece_for(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, TEXTS)
    pieces = SentencePieceProcessor(str(tmp_path / "tokenizer.model")).get_piece_size()
    assert load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"].shape[0] == pieces
    assert len(load_tokenizer(tmp_path)) == pieces + 5


def test_the_config_names_the_control_tokens_as_the_published_ones_do(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, TEXTS)
    config = json.loads((tmp_path / "config.json").read_text())
    pieces = SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    end = pieces.piece_to_id("<eod>")
    assert {config[name] for name in ("eos_token_id", "bos_token_id", "pad_token_id", "eod_token")} == {end}
    assert config["sep_token"] == pieces.piece_to_id("<sep>")


def test_no_text_reaches_a_control_token(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, TEXTS)
    pieces = SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    ids = pieces.encode("<eod> <sep><pad> a<eod>b")
    assert not {pieces.piece_to_id(name) for name in ("<eod>", "<sep>", "<pad>")} & set(ids)
