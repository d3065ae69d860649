"""Families are found by their folders and by what a checkpoint says of itself."""

from dataclasses import fields
from pathlib import Path

import pytest

from ds_sft import families
from ds_sft.contracts import Family
from ds_sft.errors import ConfigError
from ds_sft.families import all_families, family_named, family_of
from tests.pages import section, table_rows, text_of

PAGE = "ds_sft/families/README.md"
FOLDERS = sorted(file.parent.name for file in Path(families.__file__).parent.glob("*/family.py"))


def test_every_folder_with_a_card_is_a_family_of_that_name() -> None:
    assert "flan_t5" in FOLDERS
    assert [family.name for family in all_families()] == FOLDERS


def test_no_model_type_belongs_to_two_families() -> None:
    kinds = [kind for family in all_families() for kind in family.model_types]
    assert sorted(set(kinds)) == sorted(kinds)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_family_is_found_by_its_name(name: str) -> None:
    found = family_named(name)
    assert isinstance(found, Family)
    assert found.name == name


def test_an_unknown_name_is_told_with_those_that_exist() -> None:
    with pytest.raises(ConfigError) as caught:
        family_named("gpt9")
    assert caught.value.exit_code == 64
    assert str(caught.value) == f"family: must be one of {', '.join(FOLDERS)}, but is 'gpt9'; pick one of those"


def test_a_checkpoint_is_known_by_its_model_type_and_not_by_its_path() -> None:
    assert family_of({"model_type": "t5"}, folder=Path("/models/yuan2-51b")).name == "flan_t5"


@pytest.mark.parametrize("found", ["llama", None, ["t5"], "T5"])
def test_an_unknown_model_type_is_told_with_those_that_exist(found: object) -> None:
    with pytest.raises(ConfigError) as caught:
        family_of({} if found is None else {"model_type": found}, folder=Path("/m"))
    told = str(caught.value)
    assert caught.value.exit_code == 64
    assert told.startswith("/m/config.json: model_type must be one of ")
    for family in all_families():
        for kind in family.model_types:
            assert f"{kind} ({family.name})" in told
    assert told.endswith(f", but is {found!r}; choose a checkpoint of one of these families")


def test_the_page_on_families_names_every_field_of_the_card_and_no_other() -> None:
    named = [row[0].strip("`") for row in table_rows(section(PAGE, "The card"))]
    assert named == [field.name for field in fields(Family)]


def test_the_page_on_families_names_the_files_that_all_of_them_have() -> None:
    named = {row[0].strip("`") for row in table_rows(text_of(PAGE).split("\n## ")[0])}
    folders = [Path(families.__file__).parent / name for name in FOLDERS]
    common = set.intersection(*({file.name for file in folder.glob("*.py")} for folder in folders))
    assert named == common - {"seeds.py"}
