"""The rules of the house that no linter knows."""

import ast
import json
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ds_sft"
FILES = sorted(PACKAGE.rglob("*.py"))
FAMILIES = sorted(file.parent.name for file in PACKAGE.glob("families/*/family.py"))
CONFIGS = sorted((ROOT / "ds_configs").glob("*.json"))
# `deepspeed ds_sft/train.py` puts this folder in front of the import path.
NAMES = sorted({file.stem for file in PACKAGE.iterdir() if file.suffix == ".py" or (file / "__init__.py").is_file()})
LIGHT = ["ds_sft.contracts", "ds_sft.errors", "ds_sft.data.read", "ds_sft.data.normalise"]


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("__")])
def test_no_module_hides_an_installed_or_built_in_one(name: str) -> None:
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() not in {PACKAGE, ROOT}]
    assert name not in sys.stdlib_module_names
    assert PathFinder.find_spec(name, elsewhere) is None


@pytest.mark.parametrize(
    "module",
    [
        *LIGHT,
        "ds_sft.families",
        *(f"ds_sft.families.{name}.{part}" for name in FAMILIES for part in ("family", "template")),
    ],
)
def test_looking_at_data_and_cards_loads_neither_torch_nor_transformers(module: str) -> None:
    program = f"import sys, {module}; print(*sorted({{'torch', 'transformers', 'deepspeed'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_folder_of_a_family_knows_its_name(family: str) -> None:
    others = [file for file in FILES if (PACKAGE / "families" / family) not in file.parents]
    assert [name_of(file) for file in others if family in file.read_text(encoding="utf-8").lower()] == []
    assert len(others) > 20


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_module_says_what_it_owns(file: Path) -> None:
    told = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert told
    assert told.splitlines()[0].endswith((".", ":", ";", ","))


def test_every_folder_of_modules_is_a_package() -> None:
    assert [name_of(file) for file in FILES if not (file.parent / "__init__.py").is_file()] == []


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.name))
def test_shipped_configs_leave_batch_sizes_to_the_flags(file: Path) -> None:
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    sizes = ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"]
    assert {name: config[name] for name in sizes} == dict.fromkeys(sizes, "auto")


def test_the_configs_that_we_promise_are_shipped() -> None:
    promised = {"zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "zero3_nvme"}
    assert promised <= {file.stem for file in CONFIGS}
