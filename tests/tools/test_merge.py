"""A merged model answers like the adapted one, and an adapter goes onto no other model."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ds_sft.errors import ConfigError, DsSftError, MissingInputError, ModelError, SaveError
from ds_sft.save.files import fact_of
from ds_sft.save.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from ds_sft.tools.asking import Asking
from ds_sft.tools.generate import Request as Asked
from ds_sft.tools.generate import generate
from ds_sft.tools.merge import Request, Rounding, merge
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
    "EVA": {"lora_init": "eva"},
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


def test_an_adapter_answers_like_the_merged_model(run: Path, conversations_file: Path, tmp_path: Path) -> None:
    list(merge(Request(run, tmp_path / "merged")))
    rows = []
    for model in (run, tmp_path / "merged"):
        output = tmp_path / f"{model.name}.jsonl"
        list(generate(Asked(str(model), conversations_file, output, Asking(max_new_tokens=8), num_data=6)))
        rows.append(output.read_text())
    assert rows[0] == rows[1]


def test_an_adapter_answers_on_no_other_model(
    run: Path, tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    asking = Asking(base=str(with_tied_head(tiny_checkpoint, tmp_path / "other")))
    with pytest.raises(ConfigError, match="must go onto the model it was trained on"):
        list(generate(Asked(str(run), conversations_file, tmp_path / "o", asking)))


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
    named = re.findall(r"`(\S+\.(?:yaml|json))`", (tmp_path / "merged" / "README.md").read_text())
    assert all((tmp_path / "merged" / name).is_file() for name in named)


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


Spoil = Callable[[Path], None]
QUERY = "base_model.model.encoder.block.0.layer.0.SelfAttention.q"


def _config(file: str, **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / file).write_text(json.dumps({**read_json(folder / file), **changes}))

    return spoil


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    return spoil


def _spoilt(run: Path, into: Path, spoil: Spoil) -> Path:
    """Copy an adapter, change something, and let the manifest say that this is what was written."""
    shutil.copytree(run, into)
    spoil(into)
    manifest = read_manifest(into)
    (into / MANIFEST).unlink()
    files = {name: fact_of(into / name) for name in manifest.files if (into / name).is_file()}
    write_manifest(into, Manifest(manifest.format, manifest.step, 1, files, manifest.facts))
    return into


@pytest.mark.parametrize(
    ("spoil", "kind", "told"),
    [
        (_config("adapter_config.json", r=8), ModelError, "must have shape [8, 128], but has [4, 128]"),
        (_config("adapter_config.json", target_modules=["q"]), ModelError, "must not hold "),
        (_config("adapter_config.json", use_dora=True), ModelError, "lora_magnitude_vector, but does not"),
        (_config("adapter_config.json", trainable_token_indices=None), ModelError, "must give shared.weight the shape"),
        (
            _config("adapter_config.json", trainable_token_indices={"shared": [740], "lm_head": [740]}),
            ModelError,
            "trainable_token_indices must be {'decoder.embed_tokens'",
        ),
        (_tensors(lambda t: t.pop(f"{QUERY}.lora_B.weight")), ModelError, f"must hold {QUERY}.lora_B.weight, but"),
        (_tensors(lambda t: t.update(x=torch.ones(1))), ModelError, "must not hold x, which the model has no place"),
        (_tensors(lambda t: t[f"{QUERY}.lora_B.weight"].fill_(torch.nan)), ModelError, "must hold finite floating"),
        (
            _tensors(lambda t: t.update({f"{QUERY}.lora_A.weight": torch.ones(4, 128, dtype=torch.int32)})),
            ModelError,
            f"{QUERY}.lora_A.weight must hold finite floating-point numbers, but does not (torch.int32)",
        ),
        (lambda folder: (folder / "model_config.json").unlink(), MissingInputError, "must hold model_config.json"),
        (_config("model_config.json", d_model="x"), ModelError, "must describe a model, but"),
        (_config("model_config.json", num_layers=9), ModelError, "must describe a model of the same weights, but"),
        (_config("model_config.json", vocab_size=10**12), ModelError, "must give shared.weight the shape [741, 128]"),
        (_config("model_config.json", model_type="bert"), ModelError, "model_type must be t5, but is 'bert'"),
    ],
)
def test_a_folder_whose_parts_do_not_fit_is_one_line_and_leaves_no_folder(
    spoil: Spoil, kind: type[DsSftError], told: str, run: Path, tmp_path: Path
) -> None:
    adapter = _spoilt(run, tmp_path / "adapter", spoil)
    with pytest.raises(kind) as caught:
        list(merge(Request(adapter, tmp_path / "merged")))
    (line,) = caught.value.faults
    assert told in line
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


def test_names_of_code_do_not_reach_the_merged_config(run: Path, tmp_path: Path) -> None:
    adapter = _spoilt(run, tmp_path / "adapter", _config("model_config.json", auto_map={"AutoConfig": "evil.Evil"}))
    list(merge(Request(adapter, tmp_path / "merged")))
    assert "auto_map" not in read_json(tmp_path / "merged" / "config.json")


def test_a_merge_that_failed_while_writing_does_not_block_the_next(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr("ds_sft.save.shards.shutil.disk_usage", lambda _path: SimpleNamespace(free=0))
        with pytest.raises(SaveError):
            list(merge(Request(run, tmp_path / "merged")))
    assert list(tmp_path.iterdir()) == []
    list(merge(Request(run, tmp_path / "merged")))
    assert (tmp_path / "merged" / MANIFEST).is_file()


def test_a_size_that_is_none_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_shard_size: must be a size such as 5GB or 500MB, but is 'abc'"):
        list(merge(Request(run, tmp_path / "merged", max_shard_size="abc")))


def test_the_card_counts_rows_that_modules_share_once(run: Path) -> None:
    tensors = load_file(run / "adapter_model.safetensors")
    pairs = sum(tensor.numel() for name, tensor in tensors.items() if "lora_" in name)
    # Ten rows in the shared input table, and ten in the head.
    assert f"{pairs + 2 * 10 * 128:,} parameters of LoRA adapters" in (run / "README.md").read_text()


def test_rounding_is_measured_against_what_the_adapter_found() -> None:
    rounding = Rounding()
    base, exact = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.5], [2.0**-9 + 1, 0.0]])
    rounding.note(base, exact, dtype=torch.bfloat16)
    # bf16 has 8 bits, so the grown row's 1 + 2^-9 becomes 1; the change is 0.5 and that row.
    assert rounding.share == pytest.approx(((2.0**-18) / (0.25 + (2.0**-9 + 1) ** 2)) ** 0.5)
