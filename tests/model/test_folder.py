"""A model folder is found and its names are read, or the message says which file is at fault."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

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


def stored_fault(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        ModelFolder(folder, {}).stored_shapes()
    assert caught.value.exit_code == 65
    return str(caught.value)


def write_index(folder: Path, content: object) -> Path:
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps(content))
    return file


def test_the_names_and_shapes_of_one_file_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(())}, tmp_path / "model.safetensors")
    assert ModelFolder(tmp_path, {}).stored_shapes() == {"a": (2, 3), "b": ()}


def test_the_files_of_an_index_are_read_together_and_no_others(tmp_path: Path) -> None:
    for name, weight in (("one", "a"), ("two", "b"), ("stray", "c")):
        save_file({weight: torch.zeros(len(name))}, tmp_path / f"{name}.safetensors")
    write_index(tmp_path, {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    assert ModelFolder(tmp_path, {}).stored_shapes() == {"a": (3,), "b": (3,)}


def test_a_folder_of_pickled_weights_has_no_names_to_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert ModelFolder(tmp_path, {}).stored_shapes() == {}


@pytest.mark.parametrize("num_bytes", [0, 7, 60, -1])
def test_a_cut_safetensors_file_is_refused_by_name(tmp_path: Path, num_bytes: int) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, file)
    file.write_bytes(file.read_bytes()[:num_bytes])
    told = stored_fault(tmp_path)
    assert told.startswith(f"{file}: must be a whole safetensors file, but: ")
    assert told.endswith("; fetch it again")


def test_a_file_that_the_index_names_but_is_missing_is_told(tmp_path: Path) -> None:
    write_index(tmp_path, {"weight_map": {"a": "gone.safetensors"}})
    assert stored_fault(tmp_path).startswith(f"{tmp_path}/gone.safetensors: must be a whole safetensors file, but: ")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/model.safetensors", "sub/model.safetensors"])
def test_an_index_must_not_name_files_outside_of_the_folder(tmp_path: Path, name: str) -> None:
    file = write_index(tmp_path, {"weight_map": {"a": name}})
    assert stored_fault(tmp_path) == (f"{file}: weight_map must name files of this folder, but names {name!r}; mend it")


@pytest.mark.parametrize(("content", "kind"), [({}, "NoneType"), ({"weight_map": ["a"]}, "list")])
def test_an_index_without_a_map_is_refused(tmp_path: Path, content: object, kind: str) -> None:
    file = write_index(tmp_path, content)
    assert stored_fault(tmp_path) == f"{file}: weight_map must map weights to files, but is {kind}; restore it"


def test_a_broken_index_is_refused_by_name(tmp_path: Path) -> None:
    file = write_index(tmp_path, [])
    assert stored_fault(tmp_path) == f"{file}: must be a JSON object, but is a list; restore the file"
