"""Whatever operation meets a fault, a whole checkpoint is left, and the same command ends as if nothing had been.

The method is SQLite's: the fault moves from operation to operation until a run ends without meeting it. After each
run the folder is judged by code that is not the product's, and a run without faults goes on from what is left.
"""

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import CONFIGS
from tests.faults import shim, tree
from tests.faults.runner import Fault, FaultyRanks, log_of
from tests.jobs import Trained, is_left_alone, main_flags, train_and_log
from tests.ranks import run_ranks

STRIDE = 10
NUM_RANDOM_KILLS = 100
SCENES: dict[str, dict[str, Any]] = {
    "ZeRO-2": {"deepspeed": CONFIGS / "zero2.json"},
    "ZeRO-3": {"deepspeed": CONFIGS / "zero3.json"},
    "ZeRO-2, adapters": {"deepspeed": CONFIGS / "zero2.json", "lora_r": 4},
    "ZeRO-3, adapters": {"deepspeed": CONFIGS / "zero3.json", "lora_r": 4},
}
MODES = {"kill": shim.Mode.KILL, "ENOSPC": shim.Mode.ENOSPC, "EIO": shim.Mode.EIO}
RARE_MODES = {"EDQUOT": shim.Mode.EDQUOT, "EROFS": shim.Mode.EROFS, "short write": shim.Mode.SHORT}
ALL_MODES = MODES | RARE_MODES


@dataclass(frozen=True)
class Scene:
    """A run that stands at its second of four steps, and what it must end with.

    Args:
        flags: Of the run; the output folder comes last.
        begun: An output folder with the checkpoint of step 2.
        losses: Of the uninterrupted run.
        weights: Of the uninterrupted run.
        operations: That rank zero does from step 2 to the end.
    """

    flags: list[str]
    begun: Path
    trained: Trained
    weights: dict[str, torch.Tensor]
    operations: list[shim.Operation]

    def flags_for(self, output: Path) -> list[str]:
        return [*self.flags, "--output_dir", str(output)]


@pytest.fixture(scope="module", params=SCENES)
def scene(
    request: pytest.FixtureRequest,
    faulty_ranks: FaultyRanks,
    tiny_checkpoint: Path,
    conversations_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Scene:
    """Train four steps; take what was there after two of them."""
    folder = tmp_path_factory.mktemp("scene")
    flags = main_flags(
        *(tiny_checkpoint, conversations_file, folder / "whole"),
        max_steps=4,
        per_device_train_batch_size=2,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=2,
        **SCENES[request.param],
    )
    trained = run_ranks(train_and_log, flags, world_size=2)[0]
    begun = folder / "begun"
    begun.mkdir()
    shutil.copytree(folder / "whole" / "checkpoint-2", begun / "checkpoint-2")
    # From here on only one checkpoint stays, so that a removal is among the operations.
    flags += ["--save_total_limit", "1"]
    counted = folder / "counted"
    shutil.copytree(begun, counted)
    fault = Fault(counted, log=folder / "log")
    ends = faulty_ranks(train_and_log, [*flags, "--output_dir", str(counted)], world_size=2, fault=fault)
    assert ends[0] == trained
    operations = shim.read_log(log_of(fault, 0))
    return Scene(flags, begun, trained, _exported(folder / "whole"), operations)


def _exported(output: Path) -> dict[str, torch.Tensor]:
    (file,) = output.glob("*model.safetensors")
    return load_file(file)


def _some(scene: Scene, *, first: int) -> Iterator[int]:
    """Give every tenth operation of the save and of the removal behind it, and every fortieth of the others."""
    of_the_save = (".staging-4", ".trash-")
    saved = [
        number for number, done in enumerate(scene.operations, 1) if any(name in done.path for name in of_the_save)
    ]
    others = [number for number in range(1, len(scene.operations) + 2) if number not in saved]
    yield from sorted([*saved[first::STRIDE], *others[first :: 4 * STRIDE]])


@pytest.mark.parametrize("mode", [*MODES, *(pytest.param(mode, marks=pytest.mark.slow) for mode in RARE_MODES)])
def test_every_tenth_operation_of_a_save_may_fail(
    mode: str, scene: Scene, faulty_ranks: FaultyRanks, tmp_path: Path
) -> None:
    # Another first operation for each mode, so that together they meet more of them.
    for number in _some(scene, first=3 * list(ALL_MODES).index(mode) % STRIDE):
        _try(scene, faulty_ranks, tmp_path / str(number), at=number, mode=ALL_MODES[mode], ranks=(0,))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("mode", ALL_MODES)
def test_every_operation_may_fail(
    mode: str, ranks: tuple[int, ...], scene: Scene, faulty_ranks: FaultyRanks, tmp_path: Path
) -> None:
    for number in range(1, len(scene.operations) + 2):
        _try(scene, faulty_ranks, tmp_path / str(number), at=number, mode=ALL_MODES[mode], ranks=ranks)


@pytest.mark.slow
def test_a_run_may_be_killed_anywhere_from_its_first_step_on(
    scene: Scene, faulty_ranks: FaultyRanks, tmp_path: Path
) -> None:
    chance = random.Random(20261124)  # its seed; the operations are told where one fails
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    for trial in range(NUM_RANDOM_KILLS):
        at = chance.randrange(1, 2 * len(scene.operations))
        ranks = chance.choice([(0,), (1,), (0, 1)])
        begun = replace(scene, begun=nothing)
        _try(begun, faulty_ranks, tmp_path / str(trial), at=at, mode=shim.Mode.KILL, ranks=ranks)


def _try(
    scene: Scene, faulty_ranks: FaultyRanks, output: Path, *, at: int, mode: shim.Mode, ranks: tuple[int, ...]
) -> None:
    shutil.copytree(scene.begun, output)
    ends = faulty_ranks(
        train_and_log,
        scene.flags_for(output),
        world_size=2,
        fault=Fault(output, at=at, mode=mode, ranks=ranks),
        patience_seconds=5.0,
    )
    told = f"operation {at}, {mode.name}, ranks {ranks}: {ends}"
    assert tree.violations(output) == [], told
    assert tree.checkpoints(output) or not tree.checkpoints(scene.begun), told
    if (output / "MANIFEST.json").exists():
        assert run_ranks(is_left_alone, scene.flags_for(output), world_size=2) == [True, True], told
    else:
        assert run_ranks(train_and_log, scene.flags_for(output), world_size=2)[0] == scene.trained, told
    assert tree.violations(output) == [], told
    assert tree.leftovers(output) == [], told
    weights = _exported(output)
    assert all(torch.equal(weights[name], tensor) for name, tensor in scene.weights.items()), told
    shutil.rmtree(output)
