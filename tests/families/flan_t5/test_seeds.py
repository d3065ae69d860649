"""The old names give the samples of the main job."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from ds_sft.config.sources import DataArguments
from ds_sft.contracts import LayoutOptions
from ds_sft.data.datasets import build_dataset
from ds_sft.data.draft import Encoder
from ds_sft.families import flan_t5
from ds_sft.families.flan_t5.family import FAMILY
from ds_sft.families.flan_t5.template import DEFAULT_SYSTEM
from ds_sft.families.flan_t5.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[3]
TALK = [
    {"from": "human", "value": "What is it?"},
    {"from": "gpt", "value": "It is a loss."},
    {"from": "human", "value": "And then?"},
    {"from": "gpt", "value": "A step."},
]
NAMES = [
    "DataCollatorForSupervisedDataset",
    "SupervisedDataset",
    "_add_speaker_and_signal",
    "_form_qa",
    "_tokenize_fn",
    "make_supervised_data_module",
    "preprocess",
    "smart_tokenizer_and_embedding_resize",
    "train",
]


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> PreTrainedTokenizerBase:
    """The tiny model's tokenizer; it has no limit of its own."""
    return load_tokenizer(tiny_checkpoint)


def main_road(file: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[dict[str, list[int]]]:
    """Give the samples that the main job trains on."""
    encoder = Encoder(FAMILY, tokenizer, LayoutOptions(max_tokens))
    dataset = build_dataset(file, data=DataArguments(data_path=str(file)), encoder=encoder)
    return [{name: ids.tolist() for name, ids in dataset[index].items()} for index in range(len(dataset))]


@pytest.mark.parametrize("name", NAMES)
def test_a_documented_name_can_be_imported_from_the_family(name: str) -> None:
    assert getattr(flan_t5, name).__name__ == name


def test_another_name_is_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'preprocces'"):
        _ = flan_t5.preprocces


def test_importing_the_family_loads_no_torch() -> None:
    program = "import sys, ds_sft.families.flan_t5; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_preprocess_gives_the_samples_of_the_main_job(
    conversations_file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    sources = [record["conversations"] for record in json.loads(conversations_file.read_text(encoding="utf-8"))]
    samples = flan_t5.preprocess(sources, tokenizer)
    rows = main_road(conversations_file, tokenizer, 2048)
    assert len(rows) > 50
    assert samples == {name: [row[name] for row in rows] for name in ("input_ids", "labels")}


def test_preprocess_leaves_the_messages_as_they_are(tokenizer: PreTrainedTokenizerBase) -> None:
    source = [dict(message) for message in TALK]
    flan_t5.preprocess([source], tokenizer)
    flan_t5._add_speaker_and_signal("", source)
    assert source == TALK


def test_the_limit_is_the_one_of_the_tokenizer(tiny_checkpoint: Path) -> None:
    limited = load_tokenizer(tiny_checkpoint)
    limited.model_max_length = 5
    samples = flan_t5.preprocess([TALK], limited)
    assert samples == {"input_ids": [], "labels": []}
    limited.model_max_length = 300
    (labels,) = flan_t5.preprocess([[TALK[0], {"from": "gpt", "value": "It is " * 400}]], limited)["labels"]
    assert len(labels) == 300


def test_a_conversation_that_cannot_be_used_is_named_and_skipped(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    samples = flan_t5.preprocess([[{"from": "robot", "value": "x"}], TALK], tokenizer)
    assert len(samples["labels"]) == 2
    (message,) = caplog.messages
    assert message.startswith("rejected conversation 1: unknown_role")


def test_pairs_repeat_the_conversation_before_each_question() -> None:
    first = f"{DEFAULT_SYSTEM}\n\n### Human: What is it?\n### Assistant: "
    second = f"{first}It is a loss.\n### Human: And then?\n### Assistant: "
    assert flan_t5._form_qa([TALK, []]) == [(first, "It is a loss.\n"), (second, "A step.\n")]


def test_a_conversation_is_told_with_its_speakers() -> None:
    told = (
        "Hear:\n\n### Human: What is it?\n### Assistant: It is a loss.\n### Human: And then?\n### Assistant: A step.\n"
    )
    assert flan_t5._add_speaker_and_signal("Hear:\n\n", TALK) == told


def test_texts_are_tokenised_with_their_end_and_lengths(tokenizer: PreTrainedTokenizerBase) -> None:
    found = flan_t5._tokenize_fn(["A step.", "It is a loss."], tokenizer)
    expected = [tokenizer(text)["input_ids"] for text in ("A step.", "It is a loss.")]
    assert expected[0][-1] == 1
    assert [row.tolist() for row in found["input_ids"]] == expected
    assert [row.tolist() for row in found["labels"]] == expected
    assert found["input_ids_lens"] == found["labels_lens"] == [len(row) for row in expected]


def test_a_text_over_the_limit_is_cut_before_its_end(tiny_checkpoint: Path) -> None:
    limited = load_tokenizer(tiny_checkpoint)
    whole = flan_t5._tokenize_fn(["It is a loss."], limited)["input_ids"][0].tolist()
    limited.model_max_length = 4
    assert flan_t5._tokenize_fn(["It is a loss."], limited)["input_ids"][0].tolist() == [*whole[:3], 1]


@pytest.mark.parametrize("is_lazy", [False, True])
def test_the_data_module_holds_both_datasets_and_a_collator_that_pads_them(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, is_lazy: bool
) -> None:
    file = tmp_path / "d.json"
    file.write_text(json.dumps([{"conversations": TALK}]), encoding="utf-8")
    data = DataArguments(data_path=str(file), eval_data_path=str(file), lazy_preprocess=is_lazy)
    made: dict[str, Any] = flan_t5.make_supervised_data_module(tokenizer, data)
    name = "LazySupervisedDataset" if is_lazy else "SupervisedDataset"
    assert type(made["train_dataset"]) is getattr(import_module("ds_sft.data.datasets"), name)
    assert len(made["train_dataset"]) == len(made["eval_dataset"]) == 2
    batch = made["data_collator"]([made["train_dataset"][0], made["train_dataset"][1]])
    rows = main_road(file, tokenizer, 2048)
    assert batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist() == rows[0]["input_ids"]
    assert set(batch["input_ids"][0][~batch["attention_mask"][0].bool()].tolist()) == {tokenizer.pad_token_id}
    assert batch["decoder_input_ids"][:, 0].tolist() == [0, 0]
    assert torch.equal(batch["decoder_input_ids"][1, 1:3], batch["labels"][1, :2])


def test_without_evaluation_data_there_is_no_second_dataset(
    conversations_file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    made = flan_t5.make_supervised_data_module(tokenizer, DataArguments(data_path=str(conversations_file)))
    assert made["eval_dataset"] is None
