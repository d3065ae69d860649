"""The names of FastChat's Yuan2 trainer are here, and give the samples of the main job."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from ds_sft.config.sources import DataArguments
from ds_sft.data.datasets import build_dataset
from ds_sft.data.draft import Encoder
from ds_sft.families import yuan2
from ds_sft.families.yuan2.family import FAMILY
from tests.conftest import ROOT

NAMES = [
    *("DataArguments", "LazySupervisedDataset", "ModelArguments", "SupervisedDataset", "TrainingArguments"),
    *("make_supervised_data_module", "preprocess", "train", "trainer_save_model_safe"),
]
MODES: list[dict[str, Any]] = [
    {"last_response_loss": True},
    {"split_example_loss": True},
    {"efficient_loss": True},
    {"efficient_loss": True, "layout": "fastchat"},
]


@pytest.fixture(scope="module")
def tokenizer(tiny_yuan2: Path) -> PreTrainedTokenizerBase:
    """The tiny model's, with a limit that cuts the longest conversations."""
    loaded = FAMILY.load_tokenizer(tiny_yuan2)
    loaded.model_max_length = 40
    return loaded


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tokenised samples apart from those of the user."""
    monkeypatch.setenv("DS_SFT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", NAMES)
def test_every_documented_name_is_importable(name: str) -> None:
    assert getattr(yuan2, name).__name__ == name


def test_a_name_that_is_not_documented_is_refused() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = yuan2.nothing


def test_importing_the_family_loads_neither_torch_nor_transformers() -> None:
    program = "import sys, ds_sft.families.yuan2; print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("lazy", [False, True])
def test_the_samples_are_those_of_the_main_job(
    mode: dict[str, Any], lazy: bool, tokenizer: PreTrainedTokenizerBase, conversations_file: Path
) -> None:
    data = DataArguments(data_path=str(conversations_file), lazy_preprocess=lazy, **mode)
    encoder = Encoder(FAMILY, tokenizer, data.layout_options(max_tokens=40))
    expected = build_dataset(conversations_file, data=data, encoder=encoder)
    sources = [one["conversations"] for one in json.loads(conversations_file.read_text(encoding="utf-8"))]
    found = yuan2.preprocess(sources, tokenizer, data)
    made = yuan2.make_supervised_data_module(tokenizer, data)
    rows = [expected[index] for index in range(len(expected))]
    assert len(rows) > 40
    for column in ("input_ids", "labels"):
        assert found[column] == [list(row[column]) for row in rows]
        assert found[column] == [list(made["train_dataset"][index][column]) for index in range(len(rows))]
    assert found["attention_mask"] == [[1] * len(ids) for ids in found["input_ids"]]
    assert made["eval_dataset"] is None
    batch = made["data_collator"]([made["train_dataset"][index] for index in (0, 1)])
    assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape
