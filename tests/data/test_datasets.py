"""Eager and lazy give the same samples; what became of the data is counted and told."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ds_sft.config.arguments import DataArguments
from ds_sft.contracts import LayoutOptions
from ds_sft.data.datasets import LazySupervisedDataset, SampleDataset, build_dataset, load_datasets
from ds_sft.data.draft import Encoder
from ds_sft.errors import DataError, SaveError
from ds_sft.families import family_named
from ds_sft.families.flan_t5.template import DEFAULT_SYSTEM

ANSWERED = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "It is a loss."}]
UNKNOWN_ROLE = [{"from": "robot", "value": "x"}]
ROBOT = "unknown_role: turn 1 has role 'robot'; known are human, user, gpt, assistant, chatgpt, system"


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint: Path) -> Encoder:
    """The tiny model's tokenizer, with a limit that no sample reaches."""
    family = family_named("flan_t5")
    return Encoder(family, family.load_tokenizer(tiny_checkpoint), LayoutOptions(512))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the package logs; other tests may have told its logger not to pass lines on."""
    monkeypatch.setattr(logging.getLogger("ds_sft"), "propagate", True)
    caplog.set_level(logging.INFO, logger="ds_sft")
    return caplog


def write(file: Path, *conversations: object) -> Path:
    file.write_text(json.dumps([{"conversations": one} for one in conversations]), encoding="utf-8")
    return file


def rows(dataset: SampleDataset) -> list[dict[str, list[int]]]:
    return [{name: list(ids) for name, ids in dataset[index].items()} for index in range(len(dataset))]


def build(file: Path, encoder: Encoder, **flags: Any) -> SampleDataset:
    return build_dataset(file, data=DataArguments(data_path=str(file), **flags), encoder=encoder)


def test_eager_and_lazy_give_the_same_samples_in_the_same_order(conversations_file: Path, encoder: Encoder) -> None:
    eager = build(conversations_file, encoder)
    lazy = build(conversations_file, encoder, lazy_preprocess=True)
    assert isinstance(lazy, LazySupervisedDataset)
    assert rows(eager) == rows(lazy)
    assert len({str(row) for row in rows(eager)}) > 10


def test_a_sample_holds_the_ids_of_question_and_answer(tmp_path: Path, encoder: Encoder) -> None:
    (row,) = rows(build(write(tmp_path / "d.json", ANSWERED), encoder))
    assert encoder.tokenizer.decode(row["labels"]) == "It is a loss.\n</s>"
    prompt = f"{DEFAULT_SYSTEM}\n\n### Human: What is it?\n### Assistant: "
    assert row["input_ids"] == encoder.tokenizer(prompt)["input_ids"]


def test_every_answer_of_a_conversation_is_a_sample(tmp_path: Path, encoder: Encoder) -> None:
    second = [{"from": "human", "value": "And then?"}, {"from": "gpt", "value": "A step."}]
    dataset = build(write(tmp_path / "d.json", ANSWERED + second), encoder)
    assert [encoder.tokenizer.decode(row["labels"]) for row in rows(dataset)] == [
        "It is a loss.\n</s>",
        "A step.\n</s>",
    ]


def test_num_data_takes_the_first_conversations(tmp_path: Path, encoder: Encoder) -> None:
    file = write(tmp_path / "d.json", *[[{"from": "human", "value": "q"}, {"from": "gpt", "value": a}] for a in "abc"])
    firsts = [encoder.tokenizer.decode(row["labels"][:-2]) for row in rows(build(file, encoder, num_data=2))]
    assert firsts == ["a", "b"]


def test_rejected_conversations_are_counted_and_named(
    tmp_path: Path, encoder: Encoder, told: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "d.json", UNKNOWN_ROLE, ANSWERED, [])
    assert len(build(file, encoder)) == 1
    assert told.messages == [
        f"{file}: 3 records, 1 rejected_unknown_role, 1 rejected_no_exchange, 1 samples",
        f"rejected {file}:record 1: {ROBOT}",
        f"rejected {file}:record 3: no_exchange: no question has an answer in 0 turns",
    ]


def test_only_the_first_ten_rejections_are_named(
    tmp_path: Path, encoder: Encoder, told: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "d.json", *[UNKNOWN_ROLE] * 12, ANSWERED)
    build(file, encoder)
    assert [line for line in told.messages if line.startswith("rejected")] == [
        f"rejected {file}:record {number}: {ROBOT}" for number in range(1, 11)
    ]


def test_strict_data_stops_at_the_first_rejected_conversation(tmp_path: Path, encoder: Encoder) -> None:
    file = write(tmp_path / "d.json", ANSWERED, UNKNOWN_ROLE, [])
    with pytest.raises(DataError) as caught:
        build(file, encoder, strict_data=True)
    assert caught.value.exit_code == 65
    assert str(caught.value) == (f"{file}:record 2: must be usable, but: {ROBOT}; mend it or drop --strict_data")


def test_data_that_teaches_nothing_is_refused_with_the_counts(tmp_path: Path, encoder: Encoder) -> None:
    file = write(tmp_path / "d.json", UNKNOWN_ROLE, [])
    with pytest.raises(DataError) as caught:
        build(file, encoder)
    assert str(caught.value) == (
        f"{file}: must hold at least one sample with an answer, but none of 2 records gave one "
        "(2 records, 1 rejected_unknown_role, 1 rejected_no_exchange); "
        "mend the records named above, or raise --model_max_length"
    )


def test_a_question_over_the_limit_gives_no_sample(tmp_path: Path, encoder: Encoder) -> None:
    file = write(tmp_path / "d.json", ANSWERED)
    with pytest.raises(DataError, match="1 records, 1 prompt_too_long"):
        build(file, replace(encoder, options=LayoutOptions(8)))


def test_both_datasets_are_loaded_when_both_files_are_given(tmp_path: Path, encoder: Encoder) -> None:
    train, evaluation = write(tmp_path / "t.json", ANSWERED, ANSWERED), write(tmp_path / "e.json", ANSWERED)
    data = DataArguments(data_path=str(train), eval_data_path=str(evaluation))
    loaded = load_datasets(data, encoder=encoder)
    assert [len(one) for one in loaded if one is not None] == [2, 1]
    assert load_datasets(DataArguments(data_path=str(train)), encoder=encoder)[1] is None


def test_a_tilde_in_data_path_is_the_home_folder(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "t.json", ANSWERED)
    assert len(load_datasets(DataArguments(data_path="~/t.json"), encoder=encoder)[0]) == 1


def test_preprocessed_samples_are_written_once_and_read_instead_of_the_data(
    tmp_path: Path, encoder: Encoder, told: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "made" / "samples.json"
    data = DataArguments(data_path=str(write(tmp_path / "t.json", ANSWERED)), preprocessed_path=str(cache))
    written, _ = load_datasets(data, encoder=encoder)
    (tmp_path / "t.json").unlink()
    again, _ = load_datasets(data, encoder=encoder)
    assert rows(again) == rows(written)
    assert told.messages[-1] == (
        f"read 1 samples from {cache}: data_path, num_data and model_max_length have no effect"
    )
    assert [file.name for file in cache.parent.iterdir()] == ["samples.json"]


@pytest.mark.parametrize("content", [b"", b"[", b'[{"labels": [1]}]', b'[{"input_ids": ["x"], "labels": []}]', b"\xff"])
def test_a_broken_file_of_samples_is_refused(tmp_path: Path, encoder: Encoder, content: bytes) -> None:
    cache = tmp_path / "samples.json"
    cache.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_datasets(DataArguments(data_path="unused", preprocessed_path=str(cache)), encoder=encoder)
    assert caught.value.exit_code == 65
    assert str(caught.value).startswith(f"{cache}: preprocessed_path must hold samples, but: ")
    assert str(caught.value).endswith("; delete the file")


def test_samples_that_cannot_be_written_end_in_a_save_error(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "file").write_text("x")
    cache = tmp_path / "file" / "samples.json"
    data = DataArguments(data_path=str(write(tmp_path / "t.json", ANSWERED)), preprocessed_path=str(cache))
    with pytest.raises(SaveError) as caught:
        load_datasets(data, encoder=encoder)
    assert caught.value.exit_code == 74
    assert f"preprocessed_path: must be writable, but {cache}" in str(caught.value)
    assert str(caught.value).endswith("; name another file")
