"""New rows are the mean, old rows are untouched, nothing shrinks, and what was tied stays tied: at every stage."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import CONFIGS
from tests.jobs import Grown, grow_vocabulary
from tests.ranks import run_ranks

NEW = ["<one>", "<two>", "<three>"]
STAGES = {"no DeepSpeed": (None, 1), "ZeRO-2": (CONFIGS / "zero2.json", 2), "ZeRO-3": (CONFIGS / "zero3.json", 2)}
# T5 lacks ten tokens, which loading its tokenizer adds; three more are asked for.
NUM_ADDED = 10 + len(NEW)


@pytest.fixture(scope="module")
def tied_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint without its head: a T5 of the first generation."""
    folder = tmp_path_factory.mktemp("tied")
    shutil.copy(tiny_checkpoint / "spiece.model", folder)
    weights = load_file(tiny_checkpoint / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return folder


@pytest.fixture(scope="module", params=STAGES)
def grown(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Grown]:
    """The untied checkpoint after growing, as each rank sees it."""
    config, world_size = STAGES[request.param]
    output = tmp_path_factory.mktemp("grown")
    return run_ranks(grow_vocabulary, tiny_checkpoint, config, output, NEW, 3, world_size=world_size)


def test_one_row_is_added_for_each_new_token(grown: list[Grown]) -> None:
    assert grown[0].num_added == NUM_ADDED
    assert len(grown[0].new_input) == len(grown[0].new_output) == len(grown[0].old_input) + NUM_ADDED


def test_old_rows_of_both_embeddings_stay_bit_equal(grown: list[Grown]) -> None:
    assert grown[0].new_input[:-NUM_ADDED] == grown[0].old_input
    assert grown[0].new_output[:-NUM_ADDED] == grown[0].old_output


def test_old_rows_are_those_of_the_file(grown: list[Grown], tiny_checkpoint: Path) -> None:
    stored = load_file(tiny_checkpoint / "model.safetensors")
    assert grown[0].old_input == stored["shared.weight"].tolist()
    assert grown[0].old_output == stored["lm_head.weight"].tolist()


def test_new_rows_are_the_mean_of_the_old_ones(grown: list[Grown]) -> None:
    for old, new in ((grown[0].old_input, grown[0].new_input), (grown[0].old_output, grown[0].new_output)):
        mean = torch.tensor(old, dtype=torch.float64).mean(dim=0)
        rows = torch.tensor(new[-NUM_ADDED:], dtype=torch.float64)
        torch.testing.assert_close(rows, mean.expand_as(rows), atol=1e-6, rtol=0)


def test_ranks_that_draw_different_random_numbers_hold_the_same_rows(grown: list[Grown]) -> None:
    assert all(other.new_input == grown[0].new_input for other in grown)
    assert all(other.new_output == grown[0].new_output for other in grown)


def test_an_untied_head_stays_untied_and_the_encoder_shares_the_input_table(grown: list[Grown]) -> None:
    assert not grown[0].is_tied
    assert grown[0].is_encoder_tied
    assert grown[0].new_input != grown[0].new_output


@pytest.mark.parametrize("stage", ["no DeepSpeed", "ZeRO-3"])
def test_a_tied_head_stays_tied(stage: str, tied_checkpoint: Path, tmp_path: Path) -> None:
    config, world_size = STAGES[stage]
    grown = run_ranks(grow_vocabulary, tied_checkpoint, config, tmp_path, NEW, 3, world_size=world_size)[0]
    assert grown.is_tied
    assert grown.is_encoder_tied
    assert grown.new_input == grown.new_output
    assert grown.new_input[:-NUM_ADDED] == grown.old_input


def test_a_table_with_rows_to_spare_keeps_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    roomy = tmp_path / "roomy"
    shutil.copytree(tiny_checkpoint, roomy)
    weights = load_file(roomy / "model.safetensors")
    num_rows = len(weights["shared.weight"]) + 64
    for name in ("shared.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.ones(64, weights[name].shape[1])])
    save_file(weights, roomy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((roomy / "config.json").read_text())
    (roomy / "config.json").write_text(json.dumps(config | {"vocab_size": num_rows}))
    grown = run_ranks(grow_vocabulary, roomy, None, tmp_path / "out", NEW, 3, world_size=1)[0]
    assert grown.num_added == 0
    assert grown.new_input == grown.old_input
    assert len(grown.new_input) == num_rows
