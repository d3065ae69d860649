"""A command line becomes settings, or one UsageError with a line for each fault."""

import os
from pathlib import Path

import pytest

from ds_sft.config.parse import build_training_arguments, parse
from ds_sft.errors import ConfigError, UsageError

NEEDED = ["--model_name_or_path", "m", "--data_path", "d", "--output_dir", "o"]


def faults(arguments: list[str]) -> tuple[str, ...]:
    with pytest.raises(UsageError) as caught:
        parse(arguments)
    assert caught.value.exit_code == 2
    return caught.value.faults


def test_flags_end_in_their_group_with_their_type() -> None:
    settings = parse(
        [
            *NEEDED,
            "--padding_side",
            "left",
            "--num_data",
            "5",
            "--lora_alpha",
            "32",
            "--learning_rate",
            "1e-4",
            "--bf16",
        ]
    )
    assert (settings.model.model_name_or_path, settings.model.padding_side) == ("m", "left")
    assert (settings.data.data_path, settings.data.num_data) == ("d", 5)
    assert settings.lora.lora_alpha == 32
    assert (settings.training["learning_rate"], settings.training["bf16"]) == (0.0001, True)
    assert settings.output_dir == Path("o")


def test_dashes_and_equals_signs_are_read_as_well() -> None:
    settings = parse([*NEEDED, "--learning-rate=0.5", "--lazy-preprocess"])
    assert (settings.training["learning_rate"], settings.data.lazy_preprocess) == (0.5, True)


def test_old_flags_are_translated_and_noted() -> None:
    settings = parse([*NEEDED, "--evaluation_strategy", "epoch"])
    assert settings.training["eval_strategy"] == "epoch"
    assert settings.notes == (
        "--evaluation_strategy epoch: read as --eval_strategy epoch, because transformers renamed it",
    )


def test_logging_dir_ends_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "before")
    parse([*NEEDED, "--logging_dir", "logs"])
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "logs"


def test_flags_win_over_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model_name_or_path: m\ndata_path: d\noutput_dir: o\nseed: 1\nmax_steps: 5\n")
    settings = parse([str(recipe), "--seed", "2"])
    assert (settings.training["seed"], settings.training["max_steps"]) == (2, 5)


def test_a_recipe_without_a_value_is_a_recipe_all_the_same(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("{}\n")
    assert parse([str(recipe), *NEEDED]) == parse(NEEDED)


def test_a_flag_that_does_not_exist_is_told_with_the_nearest_one() -> None:
    assert faults([*NEEDED, "--lerning_rate", "1", "--zzzzzz"]) == (
        "--lerning_rate: flag must exist, but does not; did you mean --learning_rate?",
        "--zzzzzz: flag must exist, but does not; see --help",
    )


def test_flags_are_never_guessed_from_their_beginning() -> None:
    assert faults([*NEEDED, "--learning", "1"]) == (
        "--learning: flag must exist, but does not; did you mean --learning_rate?",
    )


def test_a_value_without_a_flag_is_told() -> None:
    assert faults([*NEEDED, "--seed", "3", "stray"]) == (
        "command line: every value must follow a flag, but 'stray' does not; name its flag",
    )


@pytest.mark.parametrize("missing", ["model_name_or_path", "data_path"])
def test_a_missing_flag_is_told_by_name(missing: str) -> None:
    at = NEEDED.index(f"--{missing}")
    (told,) = faults(NEEDED[:at] + NEEDED[at + 2 :])
    assert told.startswith("command line: the following arguments are required: ")
    assert f"--{missing}" in told
    assert told.endswith("; see --help")


def test_a_missing_output_dir_is_told() -> None:
    assert faults(NEEDED[:4]) == ("output_dir: must be given, but is not; add --output_dir DIR",)


@pytest.mark.parametrize(
    ("flag", "value", "rule"),
    [
        ("seed", "x", "invalid int value: 'x'"),
        ("learning_rate", "fast", "invalid float value: 'fast'"),
        ("bf16", "perhaps", "Truthy value expected: got perhaps"),
        ("padding_side", "up", "invalid choice: 'up'"),
        ("save_dtype", "int8", "invalid choice: 'int8'"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_with_flag_rule_and_value(flag: str, value: str, rule: str) -> None:
    (told,) = faults([*NEEDED, f"--{flag}", value])
    assert told.startswith(f"command line: argument --{flag}")
    assert rule in told
    assert told.endswith("; see --help")


def test_help_is_printed_and_ends_without_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    assert "ShareGPT conversations: a JSON array or one JSON object a line." in " ".join(
        capsys.readouterr().out.split()
    )


def test_secrets_are_not_shown() -> None:
    shown = parse([*NEEDED, "--hub_token", "hf_secret"]).as_dict()
    assert shown["hub_token"] == "***"
    assert "hf_secret" not in str(shown)


def test_what_is_no_secret_is_shown() -> None:
    shown = parse(NEEDED).as_dict()
    assert (shown["hub_token"], shown["model_name_or_path"], shown["lora_alpha"]) == (None, "m", 16)


def test_a_tilde_in_output_dir_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse([*NEEDED, "--output_dir", "~/run"]).output_dir == tmp_path / "run"


def test_training_arguments_hold_the_values_of_the_flags(tmp_path: Path) -> None:
    settings = parse([*NEEDED, "--output_dir", str(tmp_path), "--use_cpu", "--seed", "9", "--report_to", "none"])
    args = build_training_arguments(settings)
    assert (args.seed, args.output_dir, args.model_max_length, args.save_dtype) == (9, str(tmp_path), 2048, None)


def test_what_transformers_refuses_is_a_config_fault(tmp_path: Path) -> None:
    settings = parse([*NEEDED, "--output_dir", str(tmp_path), "--use_cpu", "--load_best_model_at_end"])
    with pytest.raises(ConfigError) as caught:
        build_training_arguments(settings)
    assert caught.value.exit_code == 64
    assert str(caught.value).startswith("training arguments: ")
    assert "load_best_model_at_end" in str(caught.value)
    assert str(caught.value).endswith("; change that flag")


def test_a_recipe_stands_first_also_behind_the_rank_of_deepspeeds_launcher(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model_name_or_path: m\ndata_path: d\noutput_dir: o\nlearning_rate: 1e-3\n")
    settings = parse(["--local_rank=1", str(recipe), "--data_path", "other"])
    assert settings.model.model_name_or_path == "m"
    assert settings.data.data_path == "other"
    assert settings.training["learning_rate"] == 1e-3
    assert settings.training["local_rank"] == 1
