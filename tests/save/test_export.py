"""What is exported is what was trained, and plain transformers loads every key of it."""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5ForConditionalGeneration

from ds_sft.config.arguments import DataArguments
from ds_sft.contracts import LayoutOptions
from ds_sft.data.datasets import build_dataset
from ds_sft.data.draft import Encoder
from ds_sft.errors import SaveError
from ds_sft.families import family_named
from ds_sft.save import export
from ds_sft.save.export import Finished, export_model, write_tokenizer
from ds_sft.save.manifest import MANIFEST, faults_of, read_manifest
from ds_sft.zero import gather
from tests.conftest import CONFIGS
from tests.jobs import main_flags, read_json, train_and_log
from tests.ranks import run_ranks
from tests.reference import reference_model, summed_loss

NUM_SAMPLES = 4
RATE = 0.5
STAGES: dict[str, tuple[int, dict[str, Any]]] = {
    "no DeepSpeed": (1, {"per_device_train_batch_size": 4}),
    "ZeRO-3": (2, {"per_device_train_batch_size": 2, "deepspeed": CONFIGS / "zero3.json"}),
}


@dataclass(frozen=True)
class Exported:
    """A run's folder and the weights it must hold."""

    folder: Path
    expected: dict[str, torch.Tensor]
    before: dict[str, torch.Tensor]
    used_rows: set[int]


@pytest.fixture(scope="module", params=STAGES)
def exported(
    request: pytest.FixtureRequest,
    tiny_checkpoint: Path,
    conversations_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Exported:
    """One SGD step over the first four samples, exported in fp32; and the same step by hand."""
    world_size, changes = STAGES[request.param]
    folder = tmp_path_factory.mktemp("exported")
    flags = main_flags(
        tiny_checkpoint,
        conversations_file,
        folder,
        num_data=NUM_SAMPLES,
        max_steps=1,
        optim="sgd",
        learning_rate=RATE,
        max_grad_norm=0,
        **changes,
    )
    run_ranks(train_and_log, flags, world_size=world_size)
    return Exported(folder, *_one_step_by_hand(tiny_checkpoint, conversations_file))


def _one_step_by_hand(
    checkpoint: Path, conversations: Path
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], set[int]]:
    family = family_named("flan_t5")
    tokenizer = family.load_tokenizer(checkpoint)
    data = DataArguments(data_path=str(conversations), num_data=NUM_SAMPLES)
    samples = build_dataset(conversations, data=data, encoder=Encoder(family, tokenizer, LayoutOptions(2048)))
    rows = [{name: ids.tolist() for name, ids in samples[index].items()} for index in range(len(samples))]
    model = reference_model(checkpoint, num_rows=len(tokenizer))
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    total, num_tokens = summed_loss(model, rows)
    (total / num_tokens).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    after = {
        name: (tensor - RATE * tensor.grad).detach()
        for name, tensor in model.named_parameters()
        if tensor.grad is not None
    }
    decoder_start = {0}
    used = decoder_start.union(*(set(row["input_ids"]) | set(row["labels"][:-1]) for row in rows))
    return after, before, used


def test_every_weight_is_what_one_step_by_hand_gives(exported: Exported) -> None:
    stored = load_file(exported.folder / "model.safetensors")
    shared = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert set(stored) == set(exported.expected) - shared
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, exported.expected[name], atol=2e-6, rtol=1e-5, msg=name)


def test_the_head_was_trained_as_its_own_parameter(exported: Exported) -> None:
    stored = load_file(exported.folder / "model.safetensors")
    assert not torch.equal(stored["lm_head.weight"], stored["shared.weight"])
    assert not torch.equal(stored["lm_head.weight"], exported.before["lm_head.weight"])


def test_rows_of_tokens_that_no_sample_uses_stay_bit_equal(exported: Exported) -> None:
    stored = load_file(exported.folder / "model.safetensors")["shared.weight"]
    num_old = len(exported.before["shared.weight"]) - 10
    unused = [row for row in range(num_old) if row not in exported.used_rows]
    assert len(unused) > len(exported.used_rows)
    assert torch.equal(stored[unused], exported.before["shared.weight"][unused])


def test_plain_transformers_loads_it_with_no_key_missing_and_none_left_over(exported: Exported) -> None:
    model, found = AutoModelForSeq2SeqLM.from_pretrained(exported.folder, output_loading_info=True)
    assert {name: found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")} == {
        "missing_keys": set(),
        "unexpected_keys": set(),
        "mismatched_keys": set(),
    }
    torch.testing.assert_close(model.lm_head.weight.detach(), exported.expected["lm_head.weight"], atol=2e-6, rtol=1e-5)
    assert model.encoder.embed_tokens.weight is model.shared.weight


def test_config_says_untied_and_nothing_of_this_machine(exported: Exported) -> None:
    config = read_json(exported.folder / "config.json")
    assert config["tie_word_embeddings"] is False
    assert config["architectures"] == ["T5ForConditionalGeneration"]
    assert config["dtype"] == "float32"
    assert config["use_cache"] is True
    assert "_name_or_path" not in config


def test_no_file_is_narrower_than_the_umask_and_none_is_a_pickle(exported: Exported) -> None:
    current = os.umask(0)
    os.umask(current)
    files = [file for file in exported.folder.iterdir() if file.is_file()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~current}
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".jinja", ".md", ".yaml", ".jsonl", ".lock"}


def test_the_folder_holds_what_users_expect(exported: Exported) -> None:
    names = {file.name for file in exported.folder.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
        "trainer_state.json",
        "ds_sft.resolved.yaml",
    }


def test_the_manifest_holds_every_file_that_loading_needs(exported: Exported) -> None:
    assert faults_of(exported.folder) == []
    manifest = read_manifest(exported.folder)
    of_the_run = {"MANIFEST.json", "trainer_state.json", "train_results.json", "all_results.json"}
    of_the_run |= {"ds_sft.resolved.yaml", "ds_sft.resolved.deepspeed.json", "data_counters.json", ".ds_sft.lock"}
    of_the_run |= {"events.jsonl"}
    assert set(manifest.files) == {file.name for file in exported.folder.iterdir() if file.is_file()} - of_the_run
    assert (manifest.step, sorted(manifest.facts)) == (1, ["asked", "fingerprint", "resumable", "versions"])


def test_the_saved_tokenizer_gives_the_same_ids_and_the_text_back(exported: Exported, tiny_checkpoint: Path) -> None:
    text = "def f(x):\n\treturn {x: [1]}  # `a` \\ ^ <b>"
    ours = family_named("flan_t5").load_tokenizer(tiny_checkpoint)
    saved = AutoTokenizer.from_pretrained(exported.folder)
    assert saved(text)["input_ids"] == ours(text)["input_ids"]
    known = "Write {a}\n\tto `b`  <c>"
    assert saved.decode(saved(known)["input_ids"], skip_special_tokens=True) == known


def test_weights_are_16_bit_unless_asked_otherwise(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    flags = main_flags(tiny_checkpoint, conversations_file, tmp_path, num_data=2, max_steps=1)
    index = flags.index("--save_dtype")
    run_ranks(train_and_log, flags[:index] + flags[index + 2 :], world_size=1)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118
    assert read_json(tmp_path / "config.json")["dtype"] == "bfloat16"


def test_old_shards_leave_and_files_of_the_user_stay(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "model_backup.safetensors"):
        (tmp_path / name).write_text("{}")
    run_ranks(train_and_log, main_flags(tiny_checkpoint, conversations_file, tmp_path, max_steps=1), world_size=1)
    names = {file.name for file in tmp_path.glob("model*")}
    assert names == {"model.safetensors", "model_backup.safetensors"}


@pytest.mark.parametrize("world_size", [1, 2])
def test_many_weights_become_shards_with_an_index(
    world_size: int, tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    changes = {"max_steps": 1, "learning_rate": 0, "max_shard_size": "300KB", "deepspeed": CONFIGS / "zero3.json"}
    flags = main_flags(tiny_checkpoint, conversations_file, tmp_path, **changes)
    run_ranks(train_and_log, flags, world_size=world_size)
    index = read_json(tmp_path / "model.safetensors.index.json")
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert {file.name for file in tmp_path.glob("*.safetensors")} == files
    before = load_file(tiny_checkpoint / "model.safetensors")
    after = {name: load_file(tmp_path / file)[name] for name, file in index["weight_map"].items()}
    assert set(after) == set(before)
    assert all(torch.equal(after[name][: len(before[name])], before[name]) for name in before)
    assert index["metadata"]["total_size"] == sum(tensor.numel() * 4 for tensor in after.values())
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    torch.testing.assert_close(model.lm_head.weight.detach(), after["lm_head.weight"], atol=0, rtol=0)


def test_a_generation_config_that_transformers_would_not_save_is_kept(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    stored = {"temperature": 0.7, "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    (model / "generation_config.json").write_text(json.dumps(stored))
    flags = main_flags(model, conversations_file, tmp_path / "out", max_steps=1)
    run_ranks(train_and_log, flags, world_size=1)
    kept = read_json(tmp_path / "out" / "generation_config.json")
    assert kept["temperature"] == 0.7
    assert kept["decoder_start_token_id"] == 0


def test_a_checkpoint_without_a_start_token_learns_to_generate_from_the_one_it_was_trained_with(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    (model / "config.json").write_text(json.dumps(read_json(model / "config.json") | {"decoder_start_token_id": None}))
    flags = main_flags(model, conversations_file, tmp_path / "out", max_steps=1)
    run_ranks(train_and_log, flags, world_size=1)
    assert read_json(tmp_path / "out" / "generation_config.json")["decoder_start_token_id"] == 0


def export_tiny(checkpoint: Path, into: Path, *, finished: Finished | None = None) -> None:
    family = family_named("flan_t5")
    export_model(
        T5ForConditionalGeneration.from_pretrained(checkpoint),
        family=family,
        tokenizer=family.load_tokenizer(checkpoint),
        into=into,
        dtype=torch.float32,
        max_shard_size="300KB",
        is_writer=True,
        finished=finished,
    )


def test_an_export_of_several_files_is_whole(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export_tiny(tiny_checkpoint, tmp_path, finished=Finished(3, {"fingerprint": {"seed": 7}}))
    assert faults_of(tmp_path) == []
    manifest = read_manifest(tmp_path)
    assert set(manifest.files) == {file.name for file in tmp_path.iterdir()} - {MANIFEST}
    assert len([name for name in manifest.files if name.startswith("model-")]) > 2
    assert (manifest.step, manifest.world_size, manifest.facts) == (3, 1, {"fingerprint": {"seed": 7}})


def test_an_export_inside_a_checkpoint_leaves_the_manifest_to_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export_tiny(tiny_checkpoint, tmp_path)
    assert not (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize("operation", ["shard_writer", "_write_config", "model_card", "settled", "write_manifest"])
def test_an_export_that_is_interrupted_has_no_manifest(
    operation: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    export_tiny(tiny_checkpoint, tmp_path, finished=Finished(3, {}))
    monkeypatch.setattr(export, operation, fail)
    with pytest.raises(OSError, match="No space left"):
        export_tiny(tiny_checkpoint, tmp_path, finished=Finished(4, {}))
    assert faults_of(tmp_path) == ["MANIFEST.json is missing"]


@pytest.mark.parametrize("name", [MANIFEST, "model.safetensors.index.json", "README.md"])
def test_a_rank_that_cannot_write_takes_part_in_gathering_all_the_same(
    name: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Under ZeRO-3 the other ranks would wait for it for ever.
    gathered: list[str] = []

    def stream(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        for tensor in tensors.items():
            gathered.append(tensor[0])
            yield tensor

    monkeypatch.setattr(gather, "stream", stream)
    (tmp_path / name / "in the way").mkdir(parents=True)
    with pytest.raises((OSError, SaveError)):
        export_tiny(tiny_checkpoint, tmp_path, finished=Finished(3, {}))
    assert set(gathered) >= set(load_file(tiny_checkpoint / "model.safetensors"))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_the_tokenizer_takes_the_place_of_a_planted_link(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "victim").write_text("old")
    (tmp_path / "run" / name).symlink_to(tmp_path / "victim")
    names = write_tokenizer(AutoTokenizer.from_pretrained(tiny_checkpoint), tmp_path / "run")
    assert (tmp_path / "victim").read_text() == "old"
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == sorted(names)
    assert not (tmp_path / "run" / name).is_symlink()
