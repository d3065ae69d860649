"""The flags of FastChat's trainers are there, with the defaults that we promise."""

from dataclasses import fields
from typing import Any

import pytest
import transformers

from ds_sft.config.arguments import DataArguments, LoraArguments, ModelArguments, TrainingArguments


def defaults(kind: Any) -> dict[str, Any]:
    return {field.name: field.default for field in fields(kind)}


def test_the_model_flags_and_their_defaults() -> None:
    assert list(defaults(ModelArguments).items())[1:] == [
        ("trust_remote_code", False),
        ("padding_side", "right"),
        ("attn_implementation", "sdpa"),
    ]


def test_the_data_flags_and_their_defaults() -> None:
    assert list(defaults(DataArguments).items())[1:] == [
        ("eval_data_path", None),
        ("lazy_preprocess", False),
        ("num_data", -1),
        ("preprocessed_path", None),
        ("strict_data", False),
        ("last_response_loss", False),
        ("split_example_loss", False),
        ("efficient_loss", False),
        ("layout", "native"),
    ]


def test_the_lora_flags_and_their_defaults() -> None:
    assert defaults(LoraArguments) == {
        "lora_r": None,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_target_modules": None,
        "lora_weight_path": None,
        "lora_bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "lora_init": None,
        "q_lora": False,
    }


def test_the_training_flags_that_differ_from_those_of_transformers() -> None:
    theirs, ours = defaults(transformers.TrainingArguments), defaults(TrainingArguments)
    assert {name: value for name, value in ours.items() if name not in theirs or theirs[name] != value} == {
        "allow_resume_mismatch": False,
        "nan_policy": "skip",
        "on_save_error": "warn",
        "cache_dir": None,
        "model_max_length": 2048,
        "save_dtype": None,
        "packing": True,
        "predict_with_generate": False,
        "num_predict": 64,
        "predict_max_new_tokens": 128,
        "tokens_per_batch": None,
        "target_tokens_per_batch": None,
        "share_prefixes": None,
        "max_shard_size": "5GB",
        "report_to": "tensorboard",
        "logging_steps": 10,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "save_total_limit": 3,
        "log_level_replica": "error",
        "ddp_find_unused_parameters": False,
    }


def test_every_flag_of_ours_has_a_help_text_that_is_a_sentence() -> None:
    added = {field.name for field in fields(transformers.TrainingArguments)}
    ours = [
        field
        for kind in (ModelArguments, DataArguments, LoraArguments, TrainingArguments)
        for field in fields(kind)
        if kind is not TrainingArguments or field.name not in added
    ]
    assert [field.name for field in ours if not str(field.metadata.get("help", "")).endswith(".")] == []


@pytest.mark.parametrize(
    ("given", "modes"),
    [
        ({}, ()),
        ({"efficient_loss": True}, ("efficient",)),
        ({"split_example_loss": True, "last_response_loss": True}, ("last_response", "split_example")),
    ],
)
def test_loss_modes_are_those_asked_for_in_the_order_of_the_flags(
    given: dict[str, bool], modes: tuple[str, ...]
) -> None:
    assert (
        DataArguments(
            data_path="d",
            last_response_loss=given.get("last_response_loss", False),
            split_example_loss=given.get("split_example_loss", False),
            efficient_loss=given.get("efficient_loss", False),
        ).loss_modes()
        == modes
    )
