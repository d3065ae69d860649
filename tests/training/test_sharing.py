"""Samples share what they begin with where that changes no number: the same losses with and without, on any engine."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ds_sft.config.arguments import DataArguments
from ds_sft.config.parse import Settings, parse
from ds_sft.data.datasets import build_dataset
from ds_sft.data.draft import Encoder
from ds_sft.families import family_named
from ds_sft.training.sharing import with_sharing_settled
from ds_sft.training.step import step_facts
from tests.conftest import CONFIGS
from tests.jobs import evaluate, main_flags, tokens_seen, train_and_log
from tests.ranks import run_ranks

T5, YUAN2 = family_named("flan_t5"), family_named("yuan2")
WORDS = [
    "what",
    "is",
    "the",
    "loss",
    "of",
    "a",
    "step",
    "and",
    "why",
    "does",
    "it",
    "fall",
    "when",
    "we",
    "train",
    "on",
    "more",
    "text",
]
ONLY_SDPA = "attn_implementation is {}, and only sdpa follows branches"
DROPOUT = "lora_dropout is 0.05, which would fall alike on all samples; pass --lora_dropout 0 to share"
ALL_AT_ONCE = {"tokens_per_batch": 9999, "num_train_epochs": 2, "max_steps": -1}


def asked(*flags: str) -> Settings:
    return parse(
        ["--model_name_or_path", "m", "--data_path", "d", "--output_dir", "o", "--split_example_loss", "True", *flags]
    )


@pytest.mark.parametrize("flags", [(), ("--share_prefixes", "True"), ("--lora_r", "4", "--lora_dropout", "0")])
def test_split_samples_share_by_default(flags: tuple[str, ...], told: pytest.LogCaptureFixture) -> None:
    settled = with_sharing_settled(asked(*flags), family=YUAN2)
    assert settled.training["share_prefixes"] is True
    assert step_facts(settled.training, world_size=1)["share_prefixes"] is True
    assert told.messages == []


def test_they_do_not_where_that_was_asked_for(told: pytest.LogCaptureFixture) -> None:
    settled = with_sharing_settled(asked("--share_prefixes", "False"), family=YUAN2)
    assert settled.training["share_prefixes"] is False
    assert "share_prefixes" not in step_facts(settled.training, world_size=1)
    assert told.messages == []


REASONS: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "padded": (YUAN2, ("--packing", "False"), "packing is False"),
    "dropout": (YUAN2, ("--lora_r", "4"), DROPOUT),
    "eager": (YUAN2, ("--attn_implementation", "eager"), ONLY_SDPA.format("eager")),
    "flash": (YUAN2, ("--attn_implementation", "flash_attention_2"), ONLY_SDPA.format("flash_attention_2")),
    "encoder": (T5, (), "in flan_t5 what comes later changes the states of what came before"),
}


@pytest.mark.parametrize("is_given", [False, True])
@pytest.mark.parametrize("name", REASONS)
def test_where_it_would_not_be_exact_it_is_off_and_why_is_told(
    name: str, is_given: bool, told: pytest.LogCaptureFixture
) -> None:
    family, flags, reason = REASONS[name]
    given = ("--share_prefixes", "True") if is_given else ()
    settled = with_sharing_settled(asked(*flags, *given), family=family)
    assert settled.training["share_prefixes"] is False
    assert told.messages == [f"share_prefixes: {'True -> False' if is_given else 'off'}, because {reason}"]
    assert told.records[0].levelname == ("WARNING" if is_given else "INFO")


def test_the_dropout_of_an_adapter_that_goes_on_counts(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.2, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    settings = asked("--lora_weight_path", str(tmp_path), "--lora_dropout", "0")
    assert with_sharing_settled(settings, family=YUAN2).training["share_prefixes"] is False
    assert "because lora_dropout is 0.2, " in told.messages[0]


def test_nothing_is_said_where_no_samples_share(told: pytest.LogCaptureFixture) -> None:
    settings = asked()
    other = replace(settings, data=replace(settings.data, split_example_loss=False))
    assert with_sharing_settled(other, family=YUAN2).training["share_prefixes"] is False
    assert told.messages == []


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten conversations of one to five exchanges, each of its own words."""
    records = []
    for number in range(10):
        texts = [" ".join(WORDS[(number + at) % 9 :][: 2 + at % 5]) for at in range(2 * (1 + number % 5))]
        roles = ["human", "gpt"] * (len(texts) // 2)
        pairs = zip(roles, texts, strict=True)
        records.append({"conversations": [{"from": role, "value": text} for role, text in pairs]})
    file = tmp_path_factory.mktemp("talks") / "talks.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    return file


def flags_of(model: Path, data: Path, output: Path, *, shares: bool, **changes: Any) -> list[str]:
    return main_flags(model, data, output, packing=True, split_example_loss=True, share_prefixes=shares, **changes)


ENGINES: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "ZeRO-2": (2, {"deepspeed": CONFIGS / "zero2.json"}),
    "ZeRO-3, checkpointing": (2, {"deepspeed": CONFIGS / "zero3.json", "gradient_checkpointing": True}),
}


@pytest.fixture(scope="module")
def apart(tiny_yuan2: Path, talks: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two steps over all samples, which share nothing."""
    flags = flags_of(tiny_yuan2, talks, tmp_path_factory.mktemp("apart"), shares=False, **ALL_AT_ONCE)
    return run_ranks(train_and_log, flags, world_size=1)[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_losses_with_shared_beginnings_are_those_without(
    engine: str, apart: Any, tiny_yuan2: Path, talks: Path, tmp_path: Path
) -> None:
    world_size, changes = ENGINES[engine]
    flags = flags_of(tiny_yuan2, talks, tmp_path / "run", shares=True, **ALL_AT_ONCE, **changes)
    found = run_ranks(train_and_log, flags, world_size=world_size)[0]
    assert len(found.losses) == 2
    assert found.losses == pytest.approx(apart.losses, abs=1e-5)
    assert found.grad_norms == pytest.approx(apart.grad_norms, rel=1e-4)


def test_tokens_that_are_shared_are_computed_once(tiny_yuan2: Path, talks: Path, tmp_path: Path) -> None:
    once = {**ALL_AT_ONCE, "num_train_epochs": 1}
    apart, shared = (
        run_ranks(
            tokens_seen, flags_of(tiny_yuan2, talks, tmp_path / str(shares), shares=shares, **once), world_size=1
        )[0]
        for shares in (False, True)
    )
    data = DataArguments(data_path=str(talks), split_example_loss=True)
    encoder = Encoder(YUAN2, YUAN2.load_tokenizer(tiny_yuan2), data.layout_options(max_tokens=2048))
    samples = build_dataset(talks, data=data, encoder=encoder, counts_tokens=True)
    assert (apart, shared) == (samples.num_tokens().sum(), samples.num_tokens().sum() - samples.shared().sum())
    assert apart > 1.5 * shared


def test_a_run_with_shared_beginnings_goes_on_where_it_stopped_on_fewer_ranks(
    tiny_yuan2: Path, talks: Path, tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "deepspeed": CONFIGS / "zero2.json"}
    flags = flags_of(tiny_yuan2, talks, tmp_path / "run", shares=True, tokens_per_batch=150, **saving)
    whole = run_ranks(train_and_log, flags, world_size=2)[0]
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    (tmp_path / "run" / "MANIFEST.json").unlink()
    resumed = run_ranks(train_and_log, flags, world_size=1)[0]
    assert len(set(whole.losses)) == 4
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-5)


def test_an_evaluation_with_shared_beginnings_is_that_without(tiny_yuan2: Path, talks: Path, tmp_path: Path) -> None:
    asked = {"eval_data_path": talks, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1, "learning_rate": 0}
    apart, shared = (
        run_ranks(evaluate, flags_of(tiny_yuan2, talks, tmp_path / str(shares), shares=shares, **asked), world_size=1)[
            0
        ]
        for shares in (False, True)
    )
    assert shared["eval_num_tokens"] == apart["eval_num_tokens"]
    assert shared["eval_loss"] == pytest.approx(apart["eval_loss"], abs=1e-5)
