"""Files are written as planned, piece by piece, and appear whole or not at all."""

import errno
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ds_sft.errors import SaveError
from ds_sft.save import tensors
from ds_sft.save.shards import Plan, plan_shards, shard_writer

WEIGHTS = {
    "table": torch.arange(40, dtype=torch.float32).view(10, 4),
    "norm": torch.tensor([1.5, -2.0]),
    "mask": torch.tensor([True, False, True]),
    "count": torch.tensor(7),
    "空": torch.zeros(0, 3),
}


def planned(dtype: torch.dtype = torch.float32, max_shard_size: str = "5GB") -> Plan:
    """Plan the weights above; integers stay integers."""
    wanted = {name: dtype if one.is_floating_point() else one.dtype for name, one in WEIGHTS.items()}
    metas = {name: torch.empty(one.shape, dtype=wanted[name], device="meta") for name, one in WEIGHTS.items()}
    return plan_shards(metas, max_shard_size=max_shard_size)


def write(plan: Plan, folder: Path, weights: Mapping[str, torch.Tensor] = WEIGHTS, *, breaks: bool = False) -> None:
    with shard_writer(plan, folder) as writer:
        for name, tensor in weights.items():
            writer.write(name, tensor)
        if breaks:
            raise RuntimeError("on the way")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("piece", [1, 3, 1 << 22])
def test_what_is_read_is_what_was_written_in_the_planned_dtype(
    dtype: torch.dtype, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "_PIECE", piece)
    write(planned(dtype), tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "model.safetensors"]
    assert set(found) == set(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        expected = tensor.to(dtype) if tensor.is_floating_point() else tensor
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected), name
    with safe_open(tmp_path / "model.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_the_plan_knows_size_and_number_of_parameters() -> None:
    plan = planned(torch.bfloat16)
    assert (plan.num_bytes, plan.num_parameters, plan.index) == ((40 + 2) * 2 + 3 + 8, 40 + 2 + 3 + 1, None)


def test_a_large_weight_gets_a_file_of_its_own_and_the_names_are_the_hubs(tmp_path: Path) -> None:
    plan = planned(max_shard_size="0.1KB")
    write(plan, tmp_path)
    assert plan.index is not None
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    where = plan.index["weight_map"]
    assert where["table"] not in {where[name] for name in WEIGHTS if name != "table"}
    for name, tensor in WEIGHTS.items():
        assert torch.equal(load_file(tmp_path / where[name])[name], tensor)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_get_the_mode_that_the_umask_asks_for(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write(planned(), tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == 0o666 & ~umask


def test_a_fault_on_the_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="on the way"):
        write(planned(), tmp_path, breaks=True)
    assert (tmp_path / "model.safetensors").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 10})
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage)
    with pytest.raises(SaveError) as caught:
        write(planned(), tmp_path)
    assert caught.value.exit_code == 74
    assert str(caught.value) == (
        f"{tmp_path}: weights need 179 bytes, but only 10 are free; free some space and resume"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_while_writing_ends_in_a_save_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_number: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SaveError, match=r"179 bytes of weights must be written there, but: Input/output error"):
        write(planned(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_a_weight_that_is_missing_or_has_another_shape_is_a_bug(tmp_path: Path, fault: str) -> None:
    weights: dict[str, Any] = dict(WEIGHTS)
    if fault == "missing":
        del weights["norm"]
    else:
        weights["norm"] = torch.zeros(3)
    with pytest.raises(AssertionError, match="norm"):
        write(planned(), tmp_path, weights)
    assert list(tmp_path.iterdir()) == []
