"""The plan of a recipe: its table, what does not fit, the cheapest way that does, and that no torch is needed."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from ds_sft.config.arguments import TrainingArguments
from ds_sft.config.parse import parse
from ds_sft.errors import ConfigError, DsSftError, MissingInputError, SaveError, UsageError
from ds_sft.families import family_of
from ds_sft.model.folder import find_model_folder
from ds_sft.tools.plan.job import RunArguments
from ds_sft.tools.plan.plan import Machines, fit, plan, refuse_fit_without_size
from ds_sft.tools.recipes import shipped_recipes
from ds_sft.training.preflight import check
from tests.conftest import CONFIGS, ROOT

RECIPES = [recipe.name for recipe in shipped_recipes()]
GB = 1e9


def figures(*words: str, **machines: Any) -> dict[str, Any]:
    (line,) = plan(words, Machines(**machines), is_json=True)
    found: dict[str, Any] = json.loads(line)
    return found


def asked(found: dict[str, Any]) -> dict[str, Any]:
    (way,) = (way for way in found["ways"] if way["is_asked"])
    return dict(way)


def fault(kind: type[DsSftError], *words: str, **machines: Any) -> str:
    with pytest.raises(kind) as caught:
        list(plan(words, Machines(**machines), is_json=False))
    return str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_tells_the_memory_that_the_plan_foretells(name: str) -> None:
    told = re.search(
        r"^# memory  ([\d.]+) GB .* for (.+); computed",
        (CONFIGS / "recipes" / f"{name}.yaml").read_text(),
        re.MULTILINE,
    )
    assert told is not None
    found = figures(name)
    way = asked(found)
    if told[2] == "frozen weights":
        # What trains is in the weights too: 2 bytes each under DeepSpeed, 4 without, all of it or a share.
        size = (
            way["parameters"] - 4 * found["trained_parameters"] if way["name"] == "no DeepSpeed" else way["parameters"]
        )
    else:
        assert told[2] == "weights, gradients and optimizer states"
        size = way["parameters"] + way["gradients"] + way["optimizer"]
    # Small weights are not divided under ZeRO-3, which a recipe leaves out; it rounds to a tenth.
    assert size / GB == pytest.approx(float(told[1]), rel=0.02, abs=0.06)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_tells_the_ram_that_the_plan_foretells(name: str) -> None:
    text = (CONFIGS / "recipes" / f"{name}.yaml").read_text()
    for gpus, file, ram in re.findall(r"(\d+) GPUs?: (zero\d_offload\.json) \(.*?([\d.]+) GB of RAM\)", text):
        found = figures(name, "--deepspeed", str(CONFIGS / file), num_gpus=int(gpus))
        assert asked(found)["host_total"] / GB == pytest.approx(float(ram), rel=0.01)


def test_defaults_are_those_of_training() -> None:
    theirs = {flag.name: flag.default for flag in fields(TrainingArguments)}
    for flag in fields(RunArguments):
        if flag.name == "optim":
            continue  # transformers finds it out when it starts: fused where torch has it
        assert flag.default == theirs[flag.name], flag.name


def test_the_table_marks_the_stage_of_the_recipe_and_tells_what_fits() -> None:
    lines = list(plan(["yuan2-2b-full"], Machines(gpu_memory="24GB"), is_json=False))
    assert lines[0] == ("model: IEITYuan/Yuan2-2B-hf (yuan2), 2,088,724,480 of 2,088,724,480 parameters train (full)")
    assert lines[1] == "batch: 131,072 tokens at most = 8192 micro x 2 accumulate x 8 GPUs, gradient checkpointing on"
    rows = {
        line[2:28].strip(): line for line in lines if line[:1] in "> " and ("ZeRO" in line[:10] or "no Deep" in line)
    }
    assert list(rows) == [
        "no DeepSpeed", "ZeRO-1", "ZeRO-2", "ZeRO-3", "ZeRO-2, optimizer in RAM", "ZeRO-3, all in RAM",
    ]  # fmt: skip
    assert [name for name, line in rows.items() if line.startswith(">")] == ["ZeRO-2"]
    assert rows["ZeRO-2"].endswith("  fits")
    assert re.search(r"\d GB short$", rows["no DeepSpeed"])
    assert any(line.startswith("data: conversations.json is not there") for line in lines)


def test_four_bits_are_not_divided() -> None:
    assert not any("ZeRO-3" in way["name"] for way in figures("yuan2-51b-qlora")["ways"])


def test_steps_and_tokens_come_from_the_data_file(tiny_yuan2: Path, conversations_file: Path, tmp_path: Path) -> None:
    words = ["--model_name_or_path", str(tiny_yuan2), "--data_path", str(conversations_file)]
    words += ["--output_dir", str(tmp_path), "--num_train_epochs", "2", "--tokens_per_batch", "2048"]
    found = figures(*words)
    assert found["why_no_data"] is None
    told = "\n".join(plan(words, Machines(), is_json=False))
    tokens = int(re.search(r"samples, ([\d,]+) tokens an epoch", told)[1].replace(",", ""))  # type: ignore[index]  # it is there
    assert found["steps"] == 2 * -(-tokens // int(2048 * 0.97))
    assert found["hours"][0] * 5 == pytest.approx(found["hours"][1] * 2)


def test_a_plan_that_does_not_fit_is_one_line_with_what_is_missing_and_the_nearest_that_does() -> None:
    told = fault(ConfigError, "yuan2-2b-full", num_gpus=1, gpu_memory="24GB")
    short = asked(figures("yuan2-2b-full", num_gpus=1))["peak"] / GB + 1 - 24
    assert told == (
        f"gpu_memory: must hold the run, but ZeRO-2 needs {short + 23:.1f} GB and 1 GB of reserve, of 24 GB: "
        f"{short:.1f} GB short; nearest that fits: ZeRO-2, optimizer in RAM, 8192 tokens x 16 with gradient "
        "checkpointing (11.7 GB); --fit writes it"
    )


def test_where_nothing_fits_the_number_of_gpus_that_would_is_told() -> None:
    told = fault(ConfigError, "yuan2-102b-lora", num_gpus=1, gpu_memory="8GB")
    assert re.search(r"GB short; (nearest that fits: |no number of such GPUs)", told)
    with pytest.raises(ConfigError, match=r"fit: some way must fit, but the smallest, .* GB short; "):
        list(fit(["yuan2-102b-qlora"], Machines(gpu_memory="8GB"), output=None))


@pytest.mark.parametrize("size", ["24", "x", "-1GB", "0GB", "nanGB", "24TBB"])
def test_a_size_that_is_none_is_told(size: str) -> None:
    assert fault(ConfigError, "yuan2-2b-lora", gpu_memory=size) == (
        f"gpu_memory: must be a size such as 24GB or 80GiB, but is {size!r}; give one of those"
    )


def test_an_unknown_recipe_is_told_with_the_nearest_name() -> None:
    assert fault(UsageError, "yuan2-2b-lorra").endswith("but is 'yuan2-2b-lorra'; did you mean yuan2-2b-lora?")


def test_a_recipe_file_that_is_missing_is_told(tmp_path: Path) -> None:
    assert "file must exist" in fault(MissingInputError, str(tmp_path / "my.yaml"))


def test_gpus_must_be_a_multiple_of_hosts() -> None:
    assert fault(UsageError, "yuan2-2b-full", num_hosts=3) == (
        "hosts: must divide the GPUs, but 8 are not a multiple of 3; give others"
    )


def test_fitting_prefers_the_gpu_alone_then_a_low_stage_then_large_micro_batches() -> None:
    def first(*words: str, **machines: Any) -> list[str]:
        return list(fit(words, Machines(**machines), output=None))

    assert first("yuan2-2b-full", num_gpus=8, gpu_memory="80GB")[0].startswith("no DeepSpeed: ")
    assert first("yuan2-2b-full", num_gpus=8, gpu_memory="24GB")[0].startswith("ZeRO-1: ")
    assert first("yuan2-2b-full", num_gpus=8, gpu_memory="12GB")[0].startswith("ZeRO-3: ")
    alone = first("yuan2-2b-full", num_gpus=1, gpu_memory="24GB")
    assert alone[0].startswith("ZeRO-2, optimizer in RAM: ")
    assert alone[1] == "batch: 131,072 tokens at most = 8192 micro x 16 accumulate x 1 GPUs"
    assert alone[3].startswith("RAM: ")


def test_a_fitted_recipe_is_one_that_passes_the_checks_before_a_run(
    tiny_yuan2: Path, conversations_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "my.yaml"
    flags = ["--data_path", str(conversations_file), "--output_dir", str(tmp_path / "out"), "--learning-rate=1e-3"]
    list(fit(["yuan2-2b-full", *flags[:4]], Machines(1, "24GB"), output=file))
    content = yaml.safe_load(file.read_text())
    assert content["deepspeed"] == str(CONFIGS / "zero2_offload.json")
    assert (content["per_device_train_batch_size"], content["gradient_accumulation_steps"]) == (4, 16)
    assert content["data_path"] == str(conversations_file)
    assert not re.search("^# (memory|start|or) ", file.read_text(), re.MULTILINE)
    settings = parse([str(file), "--model_name_or_path", str(tiny_yuan2)])
    folder = find_model_folder(str(tiny_yuan2), cache_dir=None)
    assert check(settings, family=family_of(folder.config, folder=folder.path), folder=folder, world_size=1)
    assert asked(figures(str(file), num_gpus=1, gpu_memory="24GB"))["name"] == "ZeRO-2, optimizer in RAM"
    with pytest.raises(SaveError, match="output: must not exist"):
        list(fit(["yuan2-2b-full"], Machines(1, "24GB"), output=file))


def test_options_without_effect_are_refused_together() -> None:
    with pytest.raises(UsageError) as caught:
        refuse_fit_without_size("24GB", gpu_memory="80GB", output=None, is_json=True)
    assert [told.split(":")[0] for told in caught.value.faults] == ["gpu_memory", "json"]
    with pytest.raises(UsageError, match=r"^output: needs --fit, but only my\.yaml is given; add --fit 24GB$"):
        refuse_fit_without_size(None, gpu_memory=None, output=Path("my.yaml"), is_json=False)
    refuse_fit_without_size("24GB", gpu_memory=None, output=Path("my.yaml"), is_json=False)


def test_a_plan_loads_no_torch() -> None:
    program = (
        "import sys; from ds_sft.cli import app\n"
        "try: app()\nfinally: sys.exit(' '.join({'torch', 'deepspeed', 'peft'} & set(sys.modules)) or 0)"
    )
    words = ["plan", "flan-t5-xl-full", "--gpus", "8", "--gpu-memory", "80GB"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout[:6]) == (0, "model:")
