"""The model card names model, tools and the way to load it, in the form that the hub reads."""

from dataclasses import replace

import yaml

from ds_sft import __version__
from ds_sft.families import family_named
from ds_sft.save.card import model_card

T5 = family_named("flan_t5")


def front_matter(card: str) -> object:
    _, text, _ = card.split("---\n", maxsplit=2)
    return yaml.safe_load(text)


def test_the_front_matter_is_what_the_hub_reads() -> None:
    assert front_matter(model_card(family=T5, num_parameters=1)) == {
        "library_name": "transformers",
        "pipeline_tag": "text2text-generation",
        "tags": ["ds_sft", "deepspeed", "flan_t5"],
    }


def test_a_decoder_only_family_gets_its_own_task_and_class_and_shows_only_the_answer() -> None:
    card = model_card(family=replace(T5, is_encoder_decoder=False), num_parameters=1)
    assert 'tokenizer.decode(written[prompt["input_ids"].shape[1] :], skip_special_tokens=True)' in card
    assert "pipeline_tag: text-generation\n" in card
    assert "model = AutoModelForCausalLM.from_pretrained" in card
    assert "Seq2Seq" not in card


def test_the_text_tells_size_and_version() -> None:
    card = model_card(family=T5, num_parameters=1234567)
    assert f"1,234,567 parameters, fine-tuned on conversations with ds_sft {__version__}." in card


def test_the_program_in_the_card_is_python() -> None:
    card = model_card(family=T5, num_parameters=1)
    program = card.split("```python\n")[1].split("```")[0]
    compile(program, "card", "exec")
    assert "from transformers import AutoTokenizer, AutoModelForSeq2SeqLM" in program
    assert '[{"role": "user", "content": "..."}]' in program


def test_a_family_that_transformers_has_not_needs_our_import() -> None:
    assert "import ds_sft" not in model_card(family=T5, num_parameters=1)
    card = model_card(family=family_named("yuan2"), num_parameters=1)
    compile(card.split("```python\n")[1].split("```")[0], "card", "exec")
    assert "\nimport ds_sft  # makes these classes know the model\n" in card
