"""The pages hold together: order, links, proofs and the figures beside other trainers."""

import os
import re

import pytest

from ds_sft.tools.recipes import shipped_recipes
from ds_sft.training import preflight
from tests.conftest import ROOT
from tests.jobs import read_json
from tests.pages import PAGES, blocks, links, section, table_rows, text_of

README = "README.md"
BESIDE = table_rows(section(README, "Beside other trainers"))


def first_column(text: str) -> set[str]:
    """Give the names in the first cells of all tables."""
    return {name for row in table_rows(text) for name in re.findall(r"`([^` ]+)", row[0])}


def test_the_page_of_launchers_names_every_file_function_and_variable_of_theirs() -> None:
    folder, page = ROOT / "launchers", "launchers/README.md"
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.suffix not in {".md", ".pyc"}}
    assert {name for name in files if (folder / name).is_file()} <= first_column(text_of(page))
    functions = re.findall(r"^(\w+)\(\)", (folder / "env.sh").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(functions) <= first_column(section(page, "What `env.sh` gives"))
    scripts = "".join(file.read_text(encoding="utf-8") for file in folder.iterdir() if "sh" in file.suffix)
    variables = {name for name in re.findall(r"\$\{([A-Z_]+):-", scripts) if not name.startswith("SLURM")}
    assert variables <= first_column(section(page, "Variables"))


def test_the_page_of_configs_names_every_recipe() -> None:
    told = [[row[0].strip("`"), *row[1:]] for row in table_rows(section("ds_configs/README.md", "Recipes"))]
    assert told == [[recipe.name, recipe.place, recipe.about] for recipe in shipped_recipes()]


def test_the_two_commands_come_first() -> None:
    before, after = text_of(README).split("\n## ", 1)
    assert len(before.splitlines()) < 10
    assert after.startswith("Two commands\n")
    assert [block.strip() for block in blocks(after.split("\n## ")[0], "bash")] == [
        "bash launchers/quickstart.sh",
        "bash tests/run.sh",
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    assert [str(target) for target in links(page) if not target.exists()] == []


def test_the_readme_links_to_every_page() -> None:
    linked = {os.path.relpath(target, ROOT) for target in links(README)}
    others = {page for page in PAGES if not page.startswith("tests/")} - {README}
    assert others - linked == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_calls_a_proof_exists(page: str) -> None:
    named = re.findall(r"`((?:tests|benchmarks)/[\w/]+\.(?:py|json))`", text_of(page))
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_row_beside_other_trainers_names_its_proof() -> None:
    assert len(BESIDE) > 9
    assert [row[0] for row in BESIDE if not re.search(r"`(?:tests|benchmarks)/[\w/]+\.(?:py|json)`", row[-1])] == []


def test_the_measured_rows_beside_other_trainers_are_those_of_the_results() -> None:
    results = ROOT / "benchmarks" / "results"
    workloads = read_json(results / "training_cpu.json")["workloads"]
    for row, name in zip(BESIDE[-3:], ("yuan-vocab", "yuan-share", "t5-small"), strict=True):
        found = {each["variant"]: each for each in workloads[name]["rows"]}
        told = [found[variant] for variant in ("fastchat", "hf_grouped", "ours")]
        assert row[1:4] == [f"{each['sup_tok_s']:.0f}, {each['peak_mib']}" for each in told]
    medians = read_json(results / "export.json")["medians"]
    assert [row[2:4] for row in BESIDE if "export.json" in row[-1]] == [
        [
            f"{medians['deepspeed']['rank_0_mib']:.0f} MiB (DeepSpeed's gathering)",
            f"{medians['ours']['rank_0_mib']:.0f} MiB",
        ]
    ]


def test_every_argument_of_transformers_that_is_refused_is_named() -> None:
    told = section(README, "Flags").split("\n\n")[0]
    assert set(re.findall(r"`--(\w+)`", told)) == set(preflight._REFUSED)
