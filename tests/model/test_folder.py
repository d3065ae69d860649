"""A model folder is found and its names are read, or the message says which file is at fault."""

from pathlib import Path

import pytest

from ds_sft.errors import MissingInputError, ModelError
from ds_sft.model.folder import ModelFolder, find_model_folder


def model_fault(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        find_model_folder(str(folder), cache_dir=None)
    assert caught.value.exit_code == 65
    return str(caught.value)


def test_a_folder_is_found_with_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert find_model_folder(str(tmp_path), cache_dir=None) == ModelFolder(tmp_path, {"model_type": "t5"})


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    assert find_model_folder("~/m", cache_dir=None).path == tmp_path / "m"


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as caught:
        find_model_folder(str(tmp_path), cache_dir=None)
    assert caught.value.exit_code == 66
    assert str(caught.value) == (
        f"model_name_or_path: folder must hold config.json, but {tmp_path} does not; name the folder of a checkpoint"
    )


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing"])
def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingInputError) as caught:
        find_model_folder(name, cache_dir=str(tmp_path))
    assert str(caught.value) == (f"model_name_or_path: folder must exist, but {Path(name)} does not; check the path")


@pytest.mark.parametrize("name", ["no/such-model"])
def test_what_is_neither_a_folder_nor_a_model_on_the_hub_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingInputError) as caught:
        find_model_folder(name, cache_dir=str(tmp_path))
    assert caught.value.exit_code == 66
    assert str(caught.value).startswith(
        f"model_name_or_path: must be a folder or a name on the hub, but {name!r} is no folder and the hub said: "
    )
    assert str(caught.value).endswith("; check the path")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"", "Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_a_broken_config_is_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert model_fault(tmp_path) == f"{tmp_path}/config.json: must be JSON, but: {reason}; restore the file"


def test_a_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    assert model_fault(tmp_path) == f"{tmp_path}/config.json: must be a JSON object, but is a list; restore the file"


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert model_fault(tmp_path).endswith("; restore the file")
