"""Adapters learn the same on any engine, nothing else moves, and plain peft answers like the run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import CONFIGS
from tests.jobs import main_flags
from tests.lora_jobs import Adapted, facts_of, plain_scores, train_adapters, with_rows_in_reserve, with_tied_head
from tests.ranks import run_ranks

BATCH = 4
ROWS = "token_adapter.trainable_tokens_delta"
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
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


@pytest.mark.parametrize("layout", ["ZeRO-2", "ZeRO-3"])
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


def test_every_pair_of_adapters_and_the_new_rows_move(runs: Runs) -> None:
    tensors = runs.tensors("ZeRO-3")
    assert all(float(tensor.abs().max()) > 0 for tensor in tensors.values())
    rows = {name: tensor for name, tensor in tensors.items() if name.endswith(ROWS)}
    beginning = load_file(runs.model / "model.safetensors")
    assert rows
    for name, tensor in rows.items():
        table = (
            "lm_head.weight"
            if "lm_head" in name
            else next(iter(set(beginning) & {"shared.weight", "model.embed_tokens.weight"}))
        )
        ids = facts_of(runs.folders["ZeRO-3"])["trainable_token_indices"][
            name.split("base_model.model.")[1].split(f".{ROWS}")[0]
        ]
        mean = beginning[table].float().mean(dim=0)
        first = torch.stack([beginning[table][i] if i < len(beginning[table]) else mean for i in ids])
        moved = (tensor - first).abs().amax(dim=1)
        assert int((moved > 1e-3).sum()) >= len(ids) // 4, name


def test_the_file_holds_adapters_and_new_rows_alone(runs: Runs) -> None:
    names = set(runs.tensors("ZeRO-3"))
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight", ROWS)) for name in names)
    assert len(runs.tokens) - 4 == len(next(iter(facts_of(runs.folders["ZeRO-3"])["trainable_token_indices"].values())))
