"""Every shipped recipe is a run that could start, and `init` copies one that works from any folder."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ds_sft.config.parse import parse
from ds_sft.errors import SaveError, UsageError
from ds_sft.families import family_of
from ds_sft.model.folder import find_model_folder
from ds_sft.tools.recipes import init, recipes, shipped_recipes
from ds_sft.training.preflight import check
from tests.conftest import CONFIGS, ROOT

FILES = sorted((CONFIGS / "recipes").glob("*.yaml"))
NUM_GPUS = {recipe.name: recipe.num_gpus for recipe in shipped_recipes()}
TINY = {"flan": "tiny_checkpoint", "yuan2": "tiny_yuan2"}
LONGEST = 40


def test_every_size_and_way_that_is_promised_is_shipped() -> None:
    flan = {f"flan-t5-{size}-{way}" for size in ("small", "base", "xl", "xxl") for way in ("full", "lora")}
    yuan = {f"yuan2-{size}-{way}" for size in ("2b", "51b", "102b") for way in ("full", "lora", "qlora")}
    assert set(NUM_GPUS) == flan | yuan


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_recipe_passes_the_checks_before_a_run(
    file: Path,
    request: pytest.FixtureRequest,
    conversations_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # a copy works from any folder
    init(file.stem, Path("my.yaml"))
    model = request.getfixturevalue(TINY[file.stem.split("-")[0]])
    given = {"model_name_or_path": model, "data_path": conversations_file, "output_dir": tmp_path / "out"}
    settings = parse(["my.yaml", *(word for name, value in given.items() for word in (f"--{name}", str(value)))])
    folder = find_model_folder(str(model), cache_dir=None)
    family = family_of(folder.config, folder=folder.path)
    config = check(settings, family=family, folder=folder, world_size=NUM_GPUS[file.stem])
    assert settings.notes == ()
    assert settings.training["bf16"] is True
    assert settings.lora.is_asked == ("lora" in file.stem)
    assert settings.lora.q_lora == ("qlora" in file.stem)
    assert (config is not None) == (settings.training["deepspeed"] is not None)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_step_that_a_recipe_tells_is_the_one_it_gives(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    found = re.search(r"# a step: up to (\d+) (?:source )?tokens = (\d+) x (\d+) x (\d+) GPUs\n", text)
    assert found is not None
    total, micro, accumulation, num_gpus = map(int, found.groups())
    content = yaml.safe_load(text)
    assert micro == content["per_device_train_batch_size"] * content["model_max_length"]
    assert f"= {micro} tokens a micro-batch" in text
    assert (accumulation, num_gpus) == (content["gradient_accumulation_steps"], NUM_GPUS[file.stem])
    assert total == micro * accumulation * num_gpus


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_is_short_and_its_run_is_named_after_it(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert yaml.safe_load(text)["output_dir"] == f"runs/{file.stem}"


def test_the_list_has_one_line_or_object_for_each() -> None:
    assert [line.split()[0] for line in recipes(is_json=False)] == [file.stem for file in FILES]
    told = [json.loads(line) for line in recipes(is_json=True)]
    assert told[FILES.index(CONFIGS / "recipes" / "yuan2-51b-full.yaml")] == {
        "name": "yuan2-51b-full",
        "about": "Yuan2-51B, 51.8 B parameters: all weights",
        "place": "4 nodes of 8 GPUs",
        "num_gpus": 32,
    }


def test_a_copy_differs_from_its_recipe_in_the_place_of_the_deepspeed_file_only(tmp_path: Path) -> None:
    init("flan-t5-xl-full", tmp_path / "my.yaml")
    old = (CONFIGS / "recipes" / "flan-t5-xl-full.yaml").read_text(encoding="utf-8").splitlines()
    new = (tmp_path / "my.yaml").read_text(encoding="utf-8").splitlines()
    assert [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]] == [
        ("deepspeed: ds_configs/zero2.json", f'deepspeed: "{CONFIGS / "zero2.json"}"')
    ]


@pytest.mark.parametrize(
    ("asked", "hint"),
    [("flan-t5-xl-lorra", "did you mean flan-t5-xl-lora?"), ("\x1b[31m", "see: ds-sft recipes")],
)
def test_an_unknown_recipe_is_one_line_with_the_nearest_name(asked: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        init(asked, tmp_path / "my.yaml")
    assert str(raised.value) == f"recipe: must be one that `ds-sft recipes` lists, but is {asked!r}; {hint}"
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_exists_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("mine")
    with pytest.raises(SaveError, match=r"output: must not exist, but .*my\.yaml does"):
        init("flan-t5-xl-full", tmp_path / "my.yaml")
    assert (tmp_path / "my.yaml").read_text() == "mine"


def test_recipes_and_deepspeed_files_are_inside_the_installed_package(tmp_path: Path) -> None:
    build = ["egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run([sys.executable, "setup.py", "-q", *build], cwd=ROOT, check=True, capture_output=True)
    program = "from ds_sft.tools.recipes import *; print(config_folder(), len(shipped_recipes()))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "lib", check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(tmp_path / "lib" / "ds_sft" / "ds_configs"), str(len(FILES))]
    assert (tmp_path / "lib" / "ds_sft" / "ds_configs" / "zero3.json").is_file()
