"""A merged model answers like the adapted one, and an adapter goes onto no other model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ds_sft.errors import ConfigError, ModelError
from ds_sft.tools.merge import Request, merge
from tests.jobs import main_flags, read_json
from tests.lora_jobs import plain_scores, train_adapters, with_tied_head
from tests.ranks import run_ranks

NEW_OF_T5, NEW_OF_YUAN2 = range(731, 741), range(999, 1004)
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rank-stabilised": {"use_rslora": True},
    "DoRA on all layers": {"use_dora": True, "lora_target_modules": "all-linear"},
    "PiSSA": {"lora_init": "pissa"},
    "OLoRA, rank-stabilised": {"lora_init": "olora", "use_rslora": True},
    "4 bits": {"q_lora": True},
    "4 bits, LoftQ": {"q_lora": True, "lora_init": "loftq"},
}


def _adapted(model: Path, data: Path, output: Path, new: range, **flags: Any) -> tuple[list[float], list[int]]:
    given = main_flags(model, data, output, max_steps=2, learning_rate=1e-2, lora_r=4, **flags)
    tokens = [5, 9, 200, *new]
    return run_ranks(train_adapters, given, tokens, world_size=1)[0].scores, tokens


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_t5_scores_like_the_adapted_one(
    kind: str, tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    if "q_lora" in KINDS[kind]:
        pytest.importorskip("bitsandbytes")
    scores, tokens = _adapted(tiny_checkpoint, conversations_file, tmp_path / "run", NEW_OF_T5, **KINDS[kind])
    list(merge(Request(tmp_path / "run", tmp_path / "merged")))
    assert plain_scores(tmp_path / "merged", None, tokens, is_pair=True) == pytest.approx(scores, abs=1e-5)


def test_a_merged_tied_t5_stays_tied(tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path) -> None:
    model = with_tied_head(tiny_checkpoint, tmp_path / "model")
    scores, tokens = _adapted(model, conversations_file, tmp_path / "run", NEW_OF_T5)
    list(merge(Request(tmp_path / "run", tmp_path / "merged")))
    assert plain_scores(tmp_path / "merged", None, tokens, is_pair=True) == pytest.approx(scores, abs=1e-5)
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")


def test_a_merged_yuan2_scores_like_the_adapted_one(tiny_yuan2: Path, conversations_file: Path, tmp_path: Path) -> None:
    flags = {"lora_bias": "all", "max_shard_size": "100KB"}
    scores, tokens = _adapted(tiny_yuan2, conversations_file, tmp_path / "run", NEW_OF_YUAN2, **flags)
    list(merge(Request(tmp_path / "run", tmp_path / "merged", max_shard_size="200KB")))
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 1
    assert plain_scores(tmp_path / "merged", None, tokens, is_pair=False) == pytest.approx(scores, abs=1e-5)


@pytest.fixture(scope="module")
def run(tiny_checkpoint: Path, conversations_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with adapters."""
    output = tmp_path_factory.mktemp("run") / "out"
    _adapted(tiny_checkpoint, conversations_file, output, NEW_OF_T5)
    return output


def test_what_rounding_loses_is_told(run: Path, tmp_path: Path) -> None:
    (told,) = merge(Request(run, tmp_path / "merged", save_dtype="bf16", is_json=True))
    content = json.loads(told)
    assert content["changed_weights"] == 8
    # A bf16 number has 8 bits: the error is far from nothing, and far from the change itself.
    assert 1e-4 < content["lost_by_rounding"] < 1
    assert {weight.dtype for weight in load_file(tmp_path / "merged" / "model.safetensors").values()} == {
        torch.bfloat16
    }
    assert read_json(tmp_path / "merged" / "config.json")["dtype"] == "bfloat16"


def test_another_model_is_refused(run: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = with_tied_head(tiny_checkpoint, tmp_path / "other")
    with pytest.raises(ConfigError, match="must be merged into the model it was trained on") as caught:
        list(merge(Request(run, tmp_path / "merged", model=str(other))))
    assert str(other) in str(caught.value)
    assert not (tmp_path / "merged").exists()


def test_a_model_that_has_moved_is_found_by_its_flag(run: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_checkpoint, tmp_path / "moved")
    list(merge(Request(run, tmp_path / "merged", model=str(moved))))
    assert (tmp_path / "merged" / "MANIFEST.json").is_file()


def test_an_adapter_that_was_changed_is_refused(run: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(run, tmp_path / "changed")
    with (changed / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(ModelError, match="its hash differs"):
        list(merge(Request(changed, tmp_path / "merged")))


def test_a_folder_with_files_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="output_dir: must be empty or absent"):
        list(merge(Request(run, tmp_path)))
