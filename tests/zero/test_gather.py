"""Parameters come together one at a time, whole and once, at every stage."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import CONFIGS
from tests.jobs import stream_checkpoint
from tests.ranks import run_ranks

STAGES = {"no DeepSpeed": (None, 1), "ZeRO-3": (CONFIGS / "zero3.json", 2)}


@pytest.fixture(scope="module", params=STAGES)
def streamed(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, tuple[list[int], list[int], list[float]]]]:
    """By rank: name -> shape before gathering, shape as if whole, values."""
    config, world_size = STAGES[request.param]
    return run_ranks(stream_checkpoint, tiny_checkpoint, config, tmp_path_factory.mktemp("out"), world_size=world_size)


def test_every_rank_sees_every_weight_of_the_file_bit_equal(
    streamed: list[dict[str, tuple[list[int], list[int], list[float]]]], tiny_checkpoint: Path
) -> None:
    stored = load_file(tiny_checkpoint / "model.safetensors")
    expected = {name: tensor.flatten().tolist() for name, tensor in stored.items()}
    for rank in streamed:
        assert {name: values for name, (_, _, values) in rank.items()} == expected


def test_shapes_are_known_before_gathering(
    streamed: list[dict[str, tuple[list[int], list[int], list[float]]]], tiny_checkpoint: Path
) -> None:
    stored = load_file(tiny_checkpoint / "model.safetensors")
    assert {name: whole for name, (_, whole, _) in streamed[0].items()} == {
        name: list(tensor.shape) for name, tensor in stored.items()
    }


def test_under_zero_3_a_rank_holds_no_whole_matrix(tiny_checkpoint: Path, tmp_path: Path) -> None:
    found = run_ranks(stream_checkpoint, tiny_checkpoint, CONFIGS / "zero3.json", tmp_path, world_size=2)[0]
    held, whole, _ = found["lm_head.weight"]
    assert held == [0]
    assert len(whole) == 2
