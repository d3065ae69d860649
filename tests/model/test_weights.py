"""The weight files of a folder are read by name and shape, and nothing unsafe or foreign is read at all."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ds_sft.errors import ModelError
from ds_sft.model.weights import stored_dtypes, stored_shapes, stored_weight


def stored_fault(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        stored_shapes(folder)
    assert caught.value.exit_code == 65
    return str(caught.value)


def write_index(folder: Path, content: object) -> Path:
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps(content))
    return file


def test_the_names_and_shapes_of_one_file_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(())}, tmp_path / "model.safetensors")
    assert stored_shapes(tmp_path) == {"a": (2, 3), "b": ()}


def test_number_formats_are_read_of_safetensors_and_pickles(tmp_path: Path) -> None:
    weights = {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.zeros((), dtype=torch.int64)}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert stored_dtypes(tmp_path) == {"a": torch.bfloat16, "b": torch.int64}
    save_file({name: weight.to(torch.float16) for name, weight in weights.items()}, tmp_path / "model.safetensors")
    assert stored_dtypes(tmp_path) == {"a": torch.float16, "b": torch.float16}


def test_the_files_of_an_index_are_read_together_and_no_others(tmp_path: Path) -> None:
    for name, weight in (("one", "a"), ("two", "b"), ("stray", "c")):
        save_file({weight: torch.zeros(len(name))}, tmp_path / f"{name}.safetensors")
    write_index(tmp_path, {"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    assert stored_shapes(tmp_path) == {"a": (3,), "b": (3,)}


def test_the_names_and_shapes_of_pickled_weights_are_read(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2, 3)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(4)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    names = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert stored_shapes(tmp_path) == {"a": (2, 3), "b": (4,)}
    assert torch.equal(stored_weight(tmp_path, "b"), torch.zeros(4))


def test_pickled_weights_of_old_torch_are_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert stored_shapes(tmp_path) == {"a": (2,)}
    assert torch.equal(stored_weight(tmp_path, "a"), torch.ones(2))


def test_safetensors_go_before_pickles(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert stored_shapes(tmp_path) == {"a": (1,)}


class _Attack:
    """A pickle that makes a file when somebody runs it."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, (f"touch {self._canary}",))


@pytest.mark.parametrize("content", ["attack", "attack among tensors", "old attack", "junk", "nothing", "a list"])
def test_pickles_with_anything_but_tensors_are_refused_and_not_run(tmp_path: Path, content: str) -> None:
    file, canary = tmp_path / "pytorch_model.bin", tmp_path / "canary"
    attack = _Attack(canary)
    if content == "junk":
        file.write_bytes(b"junk")
    elif content == "nothing":
        file.write_bytes(b"")
    elif content == "old attack":
        file.write_bytes(pickle.dumps(attack))
    else:
        saved = {"attack": attack, "attack among tensors": {"a": torch.zeros(1), "b": attack}, "a list": [1]}
        torch.save(saved[content], file)
    told = stored_fault(tmp_path)
    assert told.startswith(f"{file}: must ")
    assert "weights_only" not in told
    assert not canary.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    elsewhere, folder = tmp_path / "secret", tmp_path / "model"
    elsewhere.write_bytes(b"x")
    folder.mkdir()
    (folder / name).symlink_to(elsewhere)
    told = stored_fault(folder)
    assert told == f"{folder / name}: must lie in its folder, but is a link to {elsewhere}; copy the file there"


def test_the_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1234", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"a": torch.zeros(1)}, blobs / "5678")
    (snapshot / "model.safetensors").symlink_to(blobs / "5678")
    assert stored_shapes(snapshot) == {"a": (1,)}


def test_a_pickle_that_pretends_to_be_safetensors_is_refused(tmp_path: Path) -> None:
    file, canary = tmp_path / "model.safetensors", tmp_path / "canary"
    torch.save({"a": _Attack(canary)}, file)
    assert stored_fault(tmp_path).startswith(f"{file}: must be a whole safetensors file, but: ")
    assert not canary.exists()


@pytest.mark.parametrize("num_bytes", [0, 7, 60, -1])
def test_a_cut_safetensors_file_is_refused_by_name(tmp_path: Path, num_bytes: int) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, file)
    file.write_bytes(file.read_bytes()[:num_bytes])
    told = stored_fault(tmp_path)
    assert told.startswith(f"{file}: must be a whole safetensors file, but: ")
    assert told.endswith("; fetch it again")


def test_a_file_that_the_index_names_but_is_missing_is_told(tmp_path: Path) -> None:
    write_index(tmp_path, {"metadata": {}, "weight_map": {"a": "gone.safetensors"}})
    assert stored_fault(tmp_path).startswith(f"{tmp_path}/gone.safetensors: must be a whole safetensors file, but: ")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/model.safetensors", "sub/model.safetensors"])
def test_an_index_must_not_name_files_outside_of_the_folder(tmp_path: Path, name: str) -> None:
    file = write_index(tmp_path, {"metadata": {}, "weight_map": {"a": name}})
    assert stored_fault(tmp_path) == (f"{file}: weight_map must name files of this folder, but names {name!r}; mend it")


@pytest.mark.parametrize(("content", "kind"), [({}, "NoneType"), ({"weight_map": ["a"]}, "list")])
def test_an_index_without_a_map_is_refused(tmp_path: Path, content: object, kind: str) -> None:
    file = write_index(tmp_path, content)
    assert stored_fault(tmp_path) == f"{file}: weight_map must map weights to files, but is {kind}; restore it"


def test_a_broken_index_is_refused_by_name(tmp_path: Path) -> None:
    file = write_index(tmp_path, [])
    assert stored_fault(tmp_path) == f"{file}: must be a JSON object, but is a list; restore the file"


def test_an_index_without_metadata_is_refused_because_transformers_would_fall_over_it(tmp_path: Path) -> None:
    file = write_index(tmp_path, {"weight_map": {"a": "one.safetensors"}})
    assert stored_fault(tmp_path) == (
        f"{file}: metadata must be an object, as transformers asks for it, but is NoneType; restore it"
    )
