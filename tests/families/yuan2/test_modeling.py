"""Official folders are read without their code, exactly or not at all, and what we save is official again."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from ds_sft.errors import ModelError
from ds_sft.families.yuan2.modeling import Yuan2ForCausalLM, Yuan2Model, published_config
from tests.families.yuan2.native.golden import GOLDEN, LOGITS, cases, difference, logits

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NORM = "model.layers.1.self_attn.lf_gate.output_layernorm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An official folder: weights with an inv_freq a layer, a head stored twice, and code that config.json names."""
    path = tmp_path / "official"
    path.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, path)
    canary = f"import pathlib; pathlib.Path({str(tmp_path / 'canary')!r}).touch()"
    (path / "custom_generate").mkdir()
    for name in ("configuration_yuan.py", "yuan_hf_model.py", "custom_generate/generate.py"):
        (path / name).write_text(canary)
    return path


def load(folder: Path, **more: Any) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more)
    return model.eval()


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_shards(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = {f"pytorch_model-0000{part + 1}-of-00002.bin": list(weights)[part::2] for part in (0, 1)}
    for name, names in halves.items():
        torch.save({one: weights[one] for one in names}, folder / name)
    index = {"metadata": {}, "weight_map": {one: name for name, names in halves.items() for one in names}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def untie_and_forget(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=False)
    edit_weights(folder, lambda weights: weights.pop(HEAD))


def link_away(folder: Path) -> None:
    elsewhere = folder.parent / "model.safetensors"
    (folder / "model.safetensors").rename(elsewhere)
    (folder / "model.safetensors").symlink_to(elsewhere)


@pytest.mark.parametrize("stored", [None, as_pickle, as_shards], ids=["safetensors", "bin", "bin shards"])
def test_an_official_folder_is_read_by_the_auto_class_without_its_code(
    folder: Path, tmp_path: Path, stored: Callable[[Path], None] | None
) -> None:
    if stored:
        stored(folder)
    model = load(folder)
    assert type(model) is Yuan2ForCausalLM
    assert difference(logits(model, cases()["plain/input_ids"]), cases()["plain/logits_eval"]) < LOGITS
    assert not (tmp_path / "canary").exists()


def test_even_trust_remote_code_runs_no_code_of_the_folder(folder: Path, tmp_path: Path) -> None:
    model = Yuan2ForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(model) is Yuan2ForCausalLM
    assert not (tmp_path / "canary").exists()


def test_a_list_of_ends_and_a_beginning_of_its_own_stay_as_they_are(folder: Path) -> None:
    edit_config(folder, eos_token_id=[5, 3], bos_token_id=1)
    model = load(folder)
    published = published_config(model, json.loads(model.config.to_json_string(use_diff=True)))
    assert (published["eos_token_id"], published["bos_token_id"]) == ([5, 3], 1)
    (folder / "config.json").write_text(json.dumps(published))
    assert load(folder).config.bos_token_id == 1


def test_keys_that_the_config_computes_are_accepted(folder: Path) -> None:
    edit_config(folder, head_dim=16, layer_types=["full_attention"] * 3, number_of_conv_states=1)
    model = load(folder)
    assert (model.config.head_dim, model.config.layer_types, model.config.number_of_conv_states) == (
        16,
        ["hybrid"] * 3,
        2,
    )


def test_the_decoder_alone_is_read_by_its_auto_class(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(model) is Yuan2Model
    with torch.no_grad():
        found = model(cases()["plain/input_ids"]).last_hidden_state
    assert difference(found, cases()["plain/final_normed"]) < LOGITS


def test_the_head_is_tied_when_its_stored_values_are_the_embeddings(folder: Path) -> None:
    model = load(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    edit_weights(folder, lambda weights: weights.pop(HEAD))
    model = load(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_head_is_untied_when_its_stored_values_differ_whatever_the_config_says(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({HEAD: weights[TABLE] + 1}))
    model = load(folder)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight + 1)
    assert model.config.tie_word_embeddings is False
    model.save_pretrained(folder / "again")
    assert torch.equal(load(folder / "again").lm_head.weight, model.lm_head.weight)


def test_a_saved_model_has_the_official_names_and_shapes(folder: Path, tmp_path: Path) -> None:
    load(folder).save_pretrained(tmp_path / "saved")
    saved, official = (load_file(path / "model.safetensors") for path in (tmp_path / "saved", folder))
    computed = {name for name in official if name.endswith("inv_freq")}
    assert len(computed) == 3
    assert set(saved) == set(official) - computed - {HEAD}
    assert all(torch.equal(saved[name], official[name]) for name in saved)


def test_the_published_config_is_complete_for_the_official_code_and_names_no_code(folder: Path) -> None:
    official = json.loads((folder / "config.json").read_text())
    model = load(folder)
    model.config.pad_token_id = 77  # as Trainer does with the tokenizer's
    published = published_config(model, json.loads(model.config.to_json_string(use_diff=True)))
    left_out = {"auto_map", "tokenizer_class", "torch_dtype"}
    assert {name: published.get(name) for name in official if name not in left_out} == {
        name: value for name, value in official.items() if name not in left_out
    }
    assert not left_out & set(published)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "wrong head count": (lambda folder: edit_config(folder, num_attention_heads=5), "even multiple .* for 5 heads"),
    "mixture of experts": (
        lambda folder: edit_config(folder, use_moe=True, moe_config={"moe_num_experts": 32}),
        "moe_config, use_moe describe a mixture of experts",
    ),
    "missing weight": (
        lambda folder: edit_weights(folder, lambda weights: weights.pop(NORM)),
        f"weight {NORM} must be stored",
    ),
    "missing embedding": (
        lambda folder: edit_weights(folder, lambda weights: (weights.pop(TABLE), weights.pop(HEAD))),
        f"weight {TABLE} must be stored",
    ),
    "head of an untied model missing": (
        untie_and_forget,
        f"weight {HEAD} must be stored",
    ),
    "extra weight": (
        lambda folder: edit_weights(folder, lambda weights: weights.update(surplus=torch.zeros(1))),
        "weight surplus must belong to the model",
    ),
    "wrong shape": (
        lambda folder: edit_weights(folder, lambda weights: weights.update({NORM: torch.zeros(63)})),
        rf"weight {NORM} of shape \[63\] must have shape \[64\]",
    ),
    "truncated": (
        lambda folder: os.truncate(folder / "model.safetensors", 500_000),
        "model.safetensors: must be a whole safetensors file",
    ),
    "pickle as safetensors": (
        lambda folder: torch.save({"a": torch.zeros(1)}, folder / "model.safetensors"),
        "model.safetensors: must be a whole safetensors file",
    ),
    "index out of the folder": (
        lambda folder: (
            (folder / "model.safetensors").rename(folder.parent / "model.safetensors"),
            (folder / "model.safetensors.index.json").write_text(
                json.dumps({"metadata": {}, "weight_map": {TABLE: "../model.safetensors"}})
            ),
        ),
        r"weight_map must name files of this folder, but names '../model.safetensors'",
    ),
    "weights under a name of the config's": (
        lambda folder: edit_config(folder, transformers_weights="other.safetensors"),
        "transformers_weights must not be there, but names 'other.safetensors'",
    ),
    "link of another file out of the folder": (
        lambda folder: (folder / "other.bin").symlink_to(GOLDEN / "config.json"),
        "other.bin: must lie in its folder, but is a link",
    ),
    "kernel of somebody else": (
        lambda folder: edit_config(folder, attn_implementation="evil/kernel"),
        "must not name a kernel to fetch",
    ),
    "link out of the folder": (
        link_away,
        "must lie in its folder, but is a link",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_or_hostile_folder_ends_in_one_clear_error(folder: Path, name: str) -> None:
    spoil, told = BROKEN[name]
    spoil(folder)
    # A fault of config.json is told by the strict dataclasses of the hub's client, all else by us.
    with pytest.raises((ModelError, StrictDataclassError), match=f"(?s){told}"):
        load(folder)


def test_every_wrong_weight_is_told_at_once(folder: Path) -> None:
    edit_weights(folder, lambda weights: (weights.pop(NORM), weights.update(surplus=torch.zeros(1))))
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert str(caught.value).splitlines() == [
        f"{folder}: weight {NORM} must be stored, but does not; restore the files",
        f"{folder}: weight surplus must belong to the model, but does not; restore the files",
    ]
