"""The card of Yuan2 says what the rest of the house relies on, and its functions are the family's own."""

import json
from pathlib import Path

from ds_sft.contracts import Dialogue, Exchange, LayoutOptions
from ds_sft.families import family_of
from ds_sft.families.yuan2.family import FAMILY
from ds_sft.families.yuan2.modeling import Yuan2ForCausalLM
from ds_sft.families.yuan2.tokenizer import Yuan2Tokenizer, encode_text

TWO = Dialogue(None, (Exchange("q1", "a1"), Exchange("q2", "a2")))


def test_the_card_names_the_family_and_its_model_types() -> None:
    assert (FAMILY.name, FAMILY.model_types, FAMILY.is_encoder_decoder) == ("yuan2", ("yuan",), False)
    assert family_of({"model_type": "yuan"}, folder=Path("m")) is FAMILY


def test_there_are_three_losses_and_no_precision_is_refused() -> None:
    assert FAMILY.loss_modes == ("last_response", "split_example", "efficient")
    assert FAMILY.refused_precisions == {}


def test_the_loss_mode_reaches_the_samples() -> None:
    counts = {
        mode: len(FAMILY.lay_out(TWO, LayoutOptions(100, loss_mode=mode), len).drafts) for mode in FAMILY.loss_modes
    }
    assert counts == {"last_response": 1, "split_example": 2, "efficient": 1}


def test_the_card_tokenises_as_the_family_does(tiny_yuan2: Path) -> None:
    tokenizer = FAMILY.load_tokenizer(tiny_yuan2)
    assert isinstance(tokenizer, Yuan2Tokenizer)
    for is_continued in (False, True):
        expected = encode_text(tokenizer, "a <eod> b", is_continued=is_continued)
        assert FAMILY.encode_text(tokenizer, "a <eod> b", is_continued=is_continued) == expected


def test_the_card_picks_the_native_class_whatever_code_the_folder_names(tiny_yuan2: Path) -> None:
    config = json.loads((tiny_yuan2 / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "yuan_hf_model.YuanForCausalLM"
    assert FAMILY.model_class(config, frozenset()) is Yuan2ForCausalLM
