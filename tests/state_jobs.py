"""What ranks do in tests of checkpoints: save together, fail together, and look at what ZeRO gives each of them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ds_sft.config.parse import Settings
from ds_sft.errors import DsSftError, NumericsError
from ds_sft.model.folder import ModelFolder
from ds_sft.reporting import rank
from ds_sft.save import staging
from ds_sft.save.files import FileFact, NewFile
from ds_sft.save.staging import Disk, newest_whole, publish, retain, verify
from ds_sft.training.numerics import on_any_rank
from ds_sft.training.resume import where_to_begin
from ds_sft.zero import distributed
from ds_sft.zero.gather import gathered
from ds_sft.zero.state import WEIGHT, blocks, rewritten

FAILURES: dict[str, Exception] = {
    "disk": OSError(28, "No space left on device", "state/rank-1"),
    "numbers": NumericsError("lm_head.weight: must be finite numbers"),
}


@dataclass(frozen=True)
class Told:
    """An error as one rank saw it."""

    kind: str
    code: int
    lines: str


@dataclass(frozen=True)
class Hosts:
    """What a rank of two hosts with disks of their own saw."""

    members: tuple[int, ...]
    published: str
    newest: list[str | None]
    told: Told
    faults: list[str]


def write_one(folder: Path) -> dict[str, FileFact]:
    """Write a file that only this rank writes."""
    name = f"rank-{rank()}"
    file = NewFile(folder / name)
    file.write(name.encode())
    return {name: file.finish()}


def publish_together(folder: Path) -> tuple[Disk, Path]:
    """Publish a checkpoint in a folder that all ranks see; rank zero's step counts."""
    _start()
    disk = Disk.find(folder)
    return disk, publish(disk, step=3 + rank(), facts={}, write=write_one)


def publish_with_a_failure(folder: Path, failing: int, failure: str) -> Told:
    """Publish while one rank cannot write."""
    _start()

    def write(into: Path) -> dict[str, FileFact]:
        if rank() == failing:
            raise FAILURES[failure]
        return write_one(into)

    disk = Disk.find(folder)
    return _told(lambda: publish(disk, step=3, facts={}, write=write))


def retain_with_a_failure(folder: Path) -> Told | None:
    """Publish twice, and keep one, while rank zero cannot remove the other."""
    _start()
    disk = Disk.find(folder)
    for step in (1, 2):
        publish(disk, step=step, facts={}, write=write_one)
    setattr(staging, "sync_folder", _fail)  # noqa: B010  # a module's function must not be assigned, says mypy
    try:
        retain(disk, step=2, newest=1, best=None)
    except DsSftError as error:
        return Told(type(error).__name__, error.exit_code, str(error))
    return None


def verify_together(folder: Path) -> tuple[list[str], str | None]:
    """Look for faults and for the newest whole checkpoint in a folder that all ranks see."""
    _start()
    disk = Disk.find(folder)
    return verify(disk, folder / "checkpoint-3"), _name(newest_whole(disk))


def publish_on_two_hosts(folder: Path) -> Hosts:
    """Publish in a relative folder from different working folders; then damage one, lose one, and fail on one."""
    _start()
    home = folder / f"host-{rank()}"
    home.mkdir()
    os.chdir(home)
    disk = Disk.find(Path("run"))
    newest = [newest_whole(disk)]
    for step in (1, 2, 3):
        published = publish(disk, step=step, facts={}, write=write_one)
        newest.append(newest_whole(disk))
    if rank() == 1:
        (published / "rank-1").write_bytes(b"rank-2")
        setattr(staging, "write_manifest", _fail)  # noqa: B010  # a module's function must not be assigned, says mypy
    newest.append(newest_whole(disk))
    told = _told(lambda: publish(disk, step=4, facts={}, write=write_one))
    newest.append(newest_whole(disk))
    faults = verify(disk, Path("run") / "checkpoint-3")
    return Hosts(disk.members, str(published), [_name(found) for found in newest], told, faults)


def _start() -> None:
    torch.distributed.init_process_group("gloo")


def _name(checkpoint: Path | None) -> str | None:
    return None if checkpoint is None else checkpoint.name


def _fail(*_: Any) -> None:
    raise OSError(5, "Input/output error", "run/.staging-4/MANIFEST.json")


def _told(act: Callable[[], object]) -> Told:
    try:
        act()
    except DsSftError as error:
        return Told(type(error).__name__, error.exit_code, str(error))
    raise AssertionError("nothing was told")


def flags_of_all() -> list[bool]:
    """Raise one flag on each rank; the third one on none."""
    _start()
    return on_any_rank([rank() == 0, rank() == 1, False], device=torch.device("cpu"))


def begin_on_two_hosts(
    folder: Path, settings: Settings, model: ModelFolder, data: dict[str, str]
) -> tuple[bool, str | None]:
    """Ask where the run in a relative folder begins, from the working folder of a host."""
    _start()
    os.chdir(folder / f"host-{rank()}")
    begin = where_to_begin(settings, asked=settings, folder=model, data=data)
    return begin.is_finished, begin.checkpoint


class Net(nn.Module):
    """Two layers of odd sizes, a vector, and a frozen layer between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.ones(3))
        self.frozen = nn.Linear(3, 3).requires_grad_(requires_grad=False)
        self.last = nn.Linear(3, 7, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.last(self.frozen(self.first(inputs) * self.scale))
        return hidden


@dataclass(frozen=True)
class Owned:
    """What one rank of an engine saw; numbers are flat, by the name of their parameter.

    Args:
        optimizer: DeepSpeed's class.
        dtype: Of the model's weights.
        spans: Name, start and number of numbers.
        stepped: Span -> what the optimizer steps there, before anything was written.
        arrays: What has one number for each weight, after one step.
        numbers: What is counted.
        before: The model's own weights, whole.
        written: The same, after other values were written through the blocks.
        outputs: Of the model for one input, after that.
        kept: The model's own weights after a step at a rate of zero.
    """

    optimizer: str
    dtype: str
    spans: list[tuple[str, int, int]]
    stepped: list[list[float]]
    arrays: set[str]
    numbers: set[str]
    before: dict[str, list[float]]
    written: dict[str, list[float]]
    outputs: list[float]
    kept: dict[str, list[float]]


def other_values(name: str, numel: int) -> torch.Tensor:
    """Give values for a parameter that bf16 has to round."""
    return torch.arange(1, numel + 1) / 7 + len(name)


def own_and_rewrite(engines: dict[str, tuple[dict[str, Any], str]]) -> dict[str, Owned]:
    """Make each engine, step once at a rate of zero, and write other values through the blocks."""
    distributed.start(on_cpu=True)
    return {name: _own_and_rewrite(changes, precision) for name, (changes, precision) in engines.items()}


def _own_and_rewrite(changes: dict[str, Any], precision: str) -> Owned:
    import deepspeed

    torch.manual_seed(7)
    model = Net()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.0, "torch_adam": True}},
        "bf16": {"enabled": precision == "bf16"},
        **changes,
    }
    # Vectors get no decay, as in transformers' Trainer.
    groups = [{"params": [one for one in trained if (one.dim() > 1) is is_table]} for is_table in (True, False)]
    engine, optimizer, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=config)
    inputs = torch.ones(1, 5, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    _step(engine, inputs)
    before = _whole(engine.module)
    # ZeRO-3 keeps small weights whole after a step, though not after they were gathered for us.
    _step(engine, inputs)
    spans, stepped, arrays, numbers = [], [], set(), set()
    for block in blocks(engine.module, optimizer):
        arrays |= set(block.arrays())
        numbers |= set(block.numbers())
        for span in block.spans:
            spans.append((span.name, span.start, span.numel))
            stepped.append(block.arrays()[WEIGHT][span.offset : span.offset + span.numel].tolist())
    with rewritten(optimizer):
        for block in blocks(engine.module, optimizer):
            for span in block.spans:
                values = other_values(span.name, span.start + span.numel)[span.start :]
                block.arrays()[WEIGHT][span.offset : span.offset + span.numel] = values
    outputs = engine(inputs).float().flatten().tolist()
    written = _whole(engine.module)
    _step(engine, inputs)
    return Owned(
        type(optimizer).__name__,
        str(next(engine.module.parameters()).dtype),
        spans,
        stepped,
        arrays,
        numbers,
        before,
        written,
        outputs,
        _whole(engine.module),
    )


def _step(engine: Any, inputs: torch.Tensor) -> None:
    engine.backward(engine(inputs).sum())
    engine.step()


def _whole(model: nn.Module) -> dict[str, list[float]]:
    named = dict(model.named_parameters())
    with gathered(list(named.values())):
        return {name: weight.detach().float().flatten().tolist() for name, weight in named.items()}
