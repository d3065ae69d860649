"""The settings a run really has are shown where they differ, and kept as a recipe that repeats it."""

from pathlib import Path

import pytest
import yaml

from ds_sft.config.parse import parse
from ds_sft.config.resolved import show_settings, write_settings

NEEDED = ["--model_name_or_path", "m", "--data_path", "d", "--output_dir", "o"]
MANY = [
    *NEEDED,
    *["--bf16", "--learning_rate", "1e-4", "--max_steps", "7", "--lora_target_modules", "q", "v"],
    *["--lr_scheduler_kwargs", '{"num_cycles": 2}', "--run_name", "é: 1", "--eval_strategy", "steps"],
    *["--report_to", "none", "--warmup_steps", "0.1", "--save_total_limit", "1"],
]


def test_only_settings_that_are_not_at_their_default_are_shown(told: pytest.LogCaptureFixture) -> None:
    show_settings(parse([*NEEDED, "--seed", "0", "--lazy_preprocess", "--disable_tqdm", "False"]))
    assert told.messages == [
        "  model_name_or_path: m",
        "  data_path: d",
        "  lazy_preprocess: True",
        "  output_dir: o",
        "  disable_tqdm: False",
        "  seed: 0",
    ]


@pytest.mark.parametrize("arguments", [NEEDED, MANY], ids=["defaults", "many flags"])
def test_the_written_recipe_repeats_the_run(tmp_path: Path, arguments: list[str]) -> None:
    settings = parse(arguments)
    again = parse([str(write_settings(settings, into=tmp_path))])
    assert again.as_dict() == settings.as_dict()


def test_the_recipe_is_a_file_of_its_own_name_with_plain_values(tmp_path: Path) -> None:
    file = write_settings(parse(MANY), into=tmp_path)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert file == tmp_path / "ds_sft.resolved.yaml"
    assert content["lora_target_modules"] == ["q", "v"]
    assert (content["eval_strategy"], content["warmup_steps"], content["model_max_length"]) == ("steps", 0.1, 2048)
    assert list(content) == sorted(content)


def test_secrets_and_the_rank_are_not_written(tmp_path: Path) -> None:
    text = write_settings(parse([*NEEDED, "--hub_token", "hf_secret", "--local_rank", "1"]), into=tmp_path).read_text()
    assert "hf_secret" not in text
    assert "hub_token" not in text
    assert "local_rank" not in text


def test_the_settings_take_the_place_of_a_planted_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("old")
    (tmp_path / "ds_sft.resolved.yaml").symlink_to(tmp_path / "victim")
    assert not write_settings(parse(MANY), into=tmp_path).is_symlink()
    assert (tmp_path / "victim").read_text() == "old"
