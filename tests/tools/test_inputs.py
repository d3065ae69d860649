"""A verb reads the flags and the recipe of training, and tells what it does not use or cannot use."""

import json
from pathlib import Path

import pytest

from ds_sft.errors import ConfigError, DataError, DsSftError, MissingInputError, UsageError
from ds_sft.tools.inputs import read_inputs, say_next


@pytest.fixture
def named(tiny_checkpoint: Path, conversations_file: Path) -> list[str]:
    """The two flags that nothing can be done without."""
    return ["--model_name_or_path", str(tiny_checkpoint), "--data_path", str(conversations_file)]


def faults(arguments: list[str], kind: type[DsSftError]) -> tuple[str, ...]:
    with pytest.raises(kind) as caught:
        read_inputs(arguments, verb="preview")
    return caught.value.faults


def test_flags_are_those_of_training_with_dashes_too(named: list[str]) -> None:
    inputs = read_inputs(
        [*named, "--model-max-length=99", "--split_example_loss", "--num-data", "7", "--strict_data", "True"],
        verb="preview",
    )
    assert (inputs.encoder.options.max_tokens, inputs.encoder.options.loss_mode) == (99, "split_example")
    assert (len(inputs.records), inputs.is_strict) == (7, True)


def test_the_defaults_are_those_of_training(named: list[str], conversations_file: Path) -> None:
    inputs = read_inputs(named, verb="preview")
    assert (inputs.encoder.options.max_tokens, inputs.encoder.options.loss_mode) == (2048, "efficient")
    assert len(inputs.records) == len(json.loads(conversations_file.read_text(encoding="utf-8")))


def test_a_recipe_comes_first_and_flags_win(named: list[str], tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"data_path: {named[3]}\nnum_data: 4\nmodel_max_length: 50\nbf16: true\nlazy_preprocess: true\n")
    inputs = read_inputs([str(recipe), *named[:2], "--num_data", "5"], verb="preview")
    assert (len(inputs.records), inputs.encoder.options.max_tokens) == (5, 50)
    assert told.messages[0] == f"{recipe}: no effect on samples, so not read: bf16, lazy_preprocess"


def test_a_flag_of_training_without_effect_on_samples_is_said(named: list[str], told: pytest.LogCaptureFixture) -> None:
    read_inputs([*named, "--lazy_preprocess"], verb="preview")
    assert told.messages == ["--lazy_preprocess: ignored, because it has no effect on samples"]


def test_a_flag_that_does_not_exist_is_told_with_the_nearest_one(named: list[str]) -> None:
    assert faults([*named, "--model_max_lenght", "9"], UsageError) == (
        "--model_max_lenght: flag must exist, but does not; did you mean --model_max_length?",
    )


def test_a_missing_flag_is_told() -> None:
    (fault,) = faults(["--data_path", "x"], UsageError)
    assert "--model_name_or_path" in fault


def test_contradicting_losses_and_impossible_numbers_are_told_at_once(named: list[str]) -> None:
    flags = ["--efficient_loss", "--last_response_loss", "--num_data", "0", "--model_max_length", "1"]
    assert faults([*named, *flags], ConfigError) == (
        "model_max_length: must be at least 2, but is 1; give another value",
        "num_data: must be -1 (all) or at least 1, but is 0; give one of those",
        "loss mode: at most one may be given, but there are --last_response_loss and --efficient_loss; keep one",
    )


def test_a_model_folder_that_is_not_there_is_told(named: list[str], tmp_path: Path) -> None:
    (fault,) = faults(["--model_name_or_path", str(tmp_path / "no"), *named[2:]], MissingInputError)
    assert fault.startswith("model_name_or_path: folder must exist")


def test_a_model_folder_needs_config_and_tokenizer_only(
    named: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "spiece.model"):
        (tmp_path / name).write_bytes((tiny_checkpoint / name).read_bytes())
    assert len(read_inputs(["--model_name_or_path", str(tmp_path), *named[2:]], verb="preview").records) > 10


def test_a_file_without_conversations_is_told(named: list[str], tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text("[]")
    (fault,) = faults([*named[:3], str(tmp_path / "d.json")], DataError)
    assert fault == f"{tmp_path / 'd.json'}: must hold at least one conversation, but has 0; add some"


def test_the_next_command_can_be_pasted(told: pytest.LogCaptureFixture) -> None:
    say_next("preview", ["--data_path", "my data.json"])
    assert told.messages == ["next: ds-sft preview --data_path 'my data.json'"]
