"""The card of Flan-T5 says what the rest of the house relies on, and its functions are the family's own."""

import json
from pathlib import Path

from ds_sft.contracts import Dialogue, Exchange, LayoutOptions
from ds_sft.families.flan_t5.family import FAMILY
from ds_sft.families.flan_t5.modeling import UntiedT5
from ds_sft.families.flan_t5.tokenizer import encode_text


def test_the_card_names_the_family_and_its_model_types() -> None:
    assert (FAMILY.name, FAMILY.model_types, FAMILY.is_encoder_decoder) == ("flan_t5", ("t5",), True)


def test_the_card_refuses_fp16_with_the_reason_and_nothing_else() -> None:
    assert FAMILY.refused_precisions == {
        "fp16": "T5's feed-forward outputs exceed 65504, the largest fp16 number, and become inf"
    }


def test_there_is_one_loss_only() -> None:
    assert FAMILY.loss_modes == ()


def test_the_card_tokenises_as_the_family_does(tiny_checkpoint: Path) -> None:
    tokenizer = FAMILY.load_tokenizer(tiny_checkpoint)
    assert tokenizer.pad_token == "[PAD]"
    assert FAMILY.encode_text(tokenizer, "a </s> b", is_continued=False) == encode_text(tokenizer, "a </s> b")


def test_the_card_lays_out_one_pair_for_every_answer() -> None:
    dialogue = Dialogue(None, (Exchange("q1", "a1"), Exchange("q2", "a2")))
    assert len(FAMILY.lay_out(dialogue, LayoutOptions(100), len).drafts) == 2


def test_the_card_picks_the_untied_class_for_its_own_tiny_checkpoint(tiny_checkpoint: Path) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    assert FAMILY.model_class(config, frozenset()) is UntiedT5
