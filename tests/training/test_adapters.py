"""Adapters learn the same on any engine, nothing else moves, and plain peft answers like the run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ds_sft.errors import ConfigError
from ds_sft.families.flan_t5.modeling import UntiedT5
from ds_sft.train import train
from tests.conftest import CONFIGS
from tests.jobs import main_flags
from tests.lora_jobs import Adapted, facts_of, plain_scores, train_adapters, with_rows_in_reserve, with_tied_head
from tests.ranks import run_ranks

BATCH = 4
ROWS = "token_adapter.trainable_tokens_delta"
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "two ranks without DeepSpeed": (2, {}),
    "ZeRO-2": (2, {"deepspeed": CONFIGS / "zero2.json"}),
    "ZeRO-3": (2, {"deepspeed": CONFIGS / "zero3.json"}),
}
MODELS = {"untied T5": "decoder.embed_tokens", "tied T5": "shared", "Yuan2": "model.embed_tokens"}


@dataclass(frozen=True)
class Runs:
    """The same run on every engine.

    Args:
        model: Its checkpoint.
        is_pair: Whether it is an encoder-decoder.
        tokens: Old ones and all new ones.
        folders: Engine -> output folder.
        adapted: Engine -> what was left.
    """

    model: Path
    is_pair: bool
    tokens: list[int]
    folders: dict[str, Path]
    adapted: dict[str, Adapted]

    def tensors(self, layout: str) -> dict[str, torch.Tensor]:
        return load_file(self.folders[layout] / "adapter_model.safetensors")


@pytest.fixture(scope="module", params=MODELS)
def runs(
    request: pytest.FixtureRequest,
    tiny_checkpoint: Path,
    tiny_yuan2: Path,
    conversations_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Runs:
    """Three steps on every engine, with gradient checkpointing."""
    folder = tmp_path_factory.mktemp("adapters")
    if request.param == "Yuan2":
        model, new = tiny_yuan2, range(999, 1004)
    elif request.param == "tied T5":
        model, new = with_tied_head(tiny_checkpoint, folder / "model"), range(731, 741)
    else:
        model, new = with_rows_in_reserve(tiny_checkpoint, folder / "model", num_rows=768), range(731, 741)
    tokens = [5, 9, 200, *new, 17]
    folders = {layout: folder / layout for layout in LAYOUTS}
    adapted = {}
    for layout, (world_size, changes) in LAYOUTS.items():
        flags = main_flags(
            *(model, conversations_file, folders[layout]),
            max_steps=3,
            learning_rate=3e-3,
            per_device_train_batch_size=BATCH // world_size,
            gradient_checkpointing=True,
            lora_r=4,
            lora_dropout=0,
            **changes,
        )
        adapted[layout] = run_ranks(train_adapters, flags, tokens, world_size=world_size)[0]
    return Runs(model, request.param != "Yuan2", tokens, folders, adapted)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "one process"])
def test_losses_and_adapters_are_those_of_one_process(layout: str, runs: Runs) -> None:
    assert runs.adapted[layout].losses == pytest.approx(runs.adapted["one process"].losses, abs=1e-5)
    expected, found = runs.tensors("one process"), runs.tensors(layout)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_frozen_model_stays_bit_for_bit_what_it_was(layout: str, runs: Runs) -> None:
    assert runs.adapted[layout].changed == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plain_peft_scores_like_the_run(layout: str, runs: Runs) -> None:
    scores = plain_scores(runs.model, runs.folders[layout], runs.tokens, is_pair=runs.is_pair)
    assert scores == pytest.approx(runs.adapted[layout].scores, abs=1e-5)


def test_every_second_matrix_and_the_new_rows_move(runs: Runs) -> None:
    tensors = runs.tensors("ZeRO-3")
    # The second matrices begin at zero.
    second = [tensor for name, tensor in tensors.items() if "lora_B" in name]
    assert second
    assert all(float(tensor.abs().max()) > 0 for tensor in second)
    rows = {name: tensor for name, tensor in tensors.items() if name.endswith(ROWS)}
    assert rows
    for name, tensor in rows.items():
        first = _first_rows(runs, name.removeprefix("base_model.model.").removesuffix(f".{ROWS}"))
        moved = (tensor - first).abs().amax(dim=1)
        # Most of the tokens are in no sample; the others must have moved.
        assert int((moved > 1e-3).sum()) >= 2, name


def _first_rows(runs: Runs, path: str) -> torch.Tensor:
    """What the rows of a module were before training: stored, or the mean of those that are."""
    stored = load_file(runs.model / "model.safetensors")
    name = "lm_head.weight" if path == "lm_head" else "shared.weight" if runs.is_pair else "model.embed_tokens.weight"
    table = stored[name].float()
    ids = facts_of(runs.folders["ZeRO-3"])["trainable_token_indices"][path]
    return torch.stack([table[number] if number < len(table) else table.mean(dim=0) for number in ids])


def test_the_file_holds_adapters_and_new_rows_alone(runs: Runs) -> None:
    names = set(runs.tensors("ZeRO-3"))
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight", ROWS)) for name in names)
    assert len(runs.tokens) - 4 == len(next(iter(facts_of(runs.folders["ZeRO-3"])["trainable_token_indices"].values())))


def test_an_adapter_is_continued_from_its_values(tiny_yuan2: Path, conversations_file: Path, tmp_path: Path) -> None:
    # Its biases are the model's own, so ZeRO-3 has partitioned them already when the adapter is loaded.
    given = {"max_steps": 2, "lora_r": 4, "lora_bias": "all"}
    first = main_flags(tiny_yuan2, conversations_file, tmp_path / "first", **given)
    run_ranks(train_adapters, first, [1], world_size=1)
    still = {"max_steps": 1, "learning_rate": 0, "lora_weight_path": tmp_path / "first"}
    # ZeRO-3 would show values that were loaded into an empty part.
    zero3 = {"deepspeed": CONFIGS / "zero3.json"}
    second = main_flags(tiny_yuan2, conversations_file, tmp_path / "second", **still, **zero3)
    run_ranks(train_adapters, second, [1], world_size=2)
    expected, found = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "second"))
    assert any(name.endswith(".bias") for name in expected)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_an_adapter_of_another_model_is_one_error(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    first = main_flags(tiny_checkpoint, conversations_file, tmp_path / "first", max_steps=1, lora_r=4)
    run_ranks(train_adapters, first, [1], world_size=1)
    other = with_tied_head(tiny_checkpoint, tmp_path / "other")
    flags = main_flags(other, conversations_file, tmp_path / "second", lora_weight_path=tmp_path / "first")
    with pytest.raises(ConfigError) as caught:
        train(flags)
    assert caught.value.faults[0].startswith(
        f"lora_weight_path: {tmp_path / 'first'} must have been trained on {other}"
    )
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"lora_target_modules": "lm_head"}, "lora_target_modules: must not have the head where new tokens are added"),
        ({"lora_r": 129, "lora_init": "pissa"}, "lora_r: must be at most 128, the smaller side of encoder.block.0"),
    ],
)
def test_what_a_layer_cannot_have_is_told_before_weights_are_read(
    flags: dict[str, Any],
    told: str,
    tiny_checkpoint: Path,
    conversations_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(UntiedT5, "from_pretrained", None)
    with pytest.raises(ConfigError) as caught:
        train(main_flags(tiny_checkpoint, conversations_file, tmp_path, **{"lora_r": 4, **flags}))
    assert caught.value.faults[0].startswith(told)
    assert len(caught.value.faults) == 1


def test_a_target_that_the_model_lacks_is_told_with_those_it_has_before_weights_are_read(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UntiedT5, "from_pretrained", None)
    flags = main_flags(tiny_checkpoint, conversations_file, tmp_path, lora_r=4, lora_target_modules="q_proj")
    with pytest.raises(ConfigError) as caught:
        train(flags)
    (told,) = caught.value.faults
    assert told == (
        "lora_target_modules: every name must be a linear layer of the model, but 'q_proj' is none; there are k, "
        "lm_head, o, q, v, wi_0, wi_1, wo"
    )
