"""Training state comes back bit equal, to any split of it, without a pickle; what is missing is told."""

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ds_sft.errors import ConfigError, ModelError, NumericsError
from ds_sft.save import state
from ds_sft.save.files import fact_of
from ds_sft.save.state import own_of, read_own, read_state, write_state
from ds_sft.zero.state import Block, Span

Optimize = Callable[[Sequence[torch.Tensor]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimize] = {
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=0.1),
    "AdamW, fused": lambda weights: torch.optim.AdamW(weights, lr=0.1, fused=True),
    "AdamW, foreach": lambda weights: torch.optim.AdamW(weights, lr=0.1, foreach=True),
    "AdamW, amsgrad": lambda weights: torch.optim.AdamW(weights, lr=0.1, amsgrad=True),
    "SGD": lambda weights: torch.optim.SGD(weights, lr=0.1),
    "SGD, momentum": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    "SGD, momentum, fused": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, fused=True),
}
STEPS = 3


class Tiny(nn.Module):
    """A table, a vector, a single number, a parameter that is never used, and a frozen one."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(4, 3, generator=draw, dtype=dtype))
        self.vector = nn.Parameter(torch.randn(3, generator=draw, dtype=dtype))
        self.one = nn.Parameter(torch.randn(1, generator=draw, dtype=dtype))
        self.unused = nn.Parameter(torch.randn(2, generator=draw, dtype=dtype))
        self.frozen = nn.Parameter(torch.randn(2, generator=draw, dtype=dtype), requires_grad=False)

    def forward(self) -> torch.Tensor:
        return (self.table @ self.vector + self.one).square().sum()


def trained(
    optimize: Optimize, *, seed: int = 0, steps: int = STEPS, dtype: torch.dtype = torch.float32
) -> tuple[Tiny, torch.optim.Optimizer]:
    model = Tiny(seed, dtype)
    optimizer = optimize([weight for weight in model.parameters() if weight.requires_grad])
    for _ in range(steps):
        train_on(model, optimizer)
    return model, optimizer


def train_on(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model().backward()
    optimizer.step()


def write(folder: Path, model: nn.Module, optimizer: Any, **changes: Any) -> Path:
    given = {"own": {}, "rank": 0, "world_size": 1, "has_weights": True, **changes}
    write_state(folder, model=model, optimizer=optimizer, **given)
    return folder


def assert_same(one: nn.Module, other: nn.Module) -> None:
    trainable = {name: weight for name, weight in one.named_parameters() if weight.requires_grad}
    assert all(torch.equal(weight, other.get_parameter(name)) for name, weight in trainable.items())


def assert_same_state(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    left, right = one.state_dict()["state"], other.state_dict()["state"]
    # A parameter that never had a gradient may have an empty state or none.
    assert {number: set(known) for number, known in left.items() if known} == {
        number: set(known) for number, known in right.items() if known
    }
    for number, known in left.items():
        for name, value in known.items():
            assert (value.dtype, value.shape) == (right[number][name].dtype, right[number][name].shape), name
            assert torch.equal(value, right[number][name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_averages_and_counted_steps_come_back_bit_equal(
    tmp_path: Path, optimizer: str, dtype: torch.dtype
) -> None:
    model, living = trained(OPTIMIZERS[optimizer], dtype=dtype)
    other, fresh = trained(OPTIMIZERS[optimizer], seed=1, steps=0, dtype=dtype)
    read_state(write(tmp_path, model, living), model=other, optimizer=fresh)
    assert_same(model, other)
    assert_same_state(living, fresh)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_next_step_is_the_one_that_would_have_been_made(tmp_path: Path, optimizer: str) -> None:
    model, living = trained(OPTIMIZERS[optimizer])
    other, fresh = trained(OPTIMIZERS[optimizer], seed=1, steps=0)
    read_state(write(tmp_path, model, living), model=other, optimizer=fresh)
    for one, its in ((model, living), (other, fresh)):
        train_on(one, its)
    assert_same(model, other)


def test_a_state_that_went_on_is_put_back_in_place(tmp_path: Path) -> None:
    model, living = trained(OPTIMIZERS["AdamW"])
    checkpoint = write(tmp_path, model, living)
    expected, known = trained(OPTIMIZERS["AdamW"])
    places = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    train_on(model, living)
    read_state(checkpoint, model=model, optimizer=living)
    assert_same(expected, model)
    assert_same_state(known, living)
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == places


def test_a_state_from_before_the_first_step_comes_back(tmp_path: Path) -> None:
    model, living = trained(OPTIMIZERS["AdamW"], steps=0)
    other, fresh = trained(OPTIMIZERS["AdamW"], seed=1, steps=0)
    read_state(write(tmp_path, model, living), model=other, optimizer=fresh)
    for one, its in ((model, living), (other, fresh)):
        train_on(one, its)
    assert_same(model, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD, momentum"])
def test_a_parameter_without_dimensions_comes_back_bit_equal(
    tmp_path: Path, optimizer: str, dtype: torch.dtype
) -> None:
    one, other = (nn.ParameterDict({"scale": torch.tensor(number, dtype=dtype)}) for number in (0.3, 0.7))
    living, fresh = (OPTIMIZERS[optimizer](list(model.parameters())) for model in (one, other))
    one["scale"].square().backward()
    living.step()
    read_state(write(tmp_path, one, living), model=other, optimizer=fresh)
    assert torch.equal(one["scale"], other["scale"])
    assert_same_state(living, fresh)


def test_weights_alone_leave_the_optimizer_as_it_is(tmp_path: Path) -> None:
    model, living = trained(OPTIMIZERS["AdamW"])
    other, its = trained(OPTIMIZERS["AdamW"], seed=1, steps=1)
    _, untouched = trained(OPTIMIZERS["AdamW"], seed=1, steps=1)
    read_state(write(tmp_path, model, living), model=other, optimizer=its, only_weights=True)
    assert_same(model, other)
    assert_same_state(untouched, its)


def test_a_frozen_weight_is_neither_written_nor_touched(tmp_path: Path) -> None:
    model, living = trained(OPTIMIZERS["AdamW"])
    checkpoint = write(tmp_path, model, living)
    other, fresh = trained(OPTIMIZERS["AdamW"], seed=1, steps=0)
    read_state(checkpoint, model=other, optimizer=fresh)
    assert not [name for name in load_file(checkpoint / "state" / "rank-0-of-1.safetensors") if "frozen" in name]
    assert torch.equal(other.frozen, Tiny(seed=1).frozen)


def test_every_file_is_told_as_it_is(tmp_path: Path) -> None:
    model, living = trained(OPTIMIZERS["AdamW"])
    told = write_state(tmp_path, model=model, optimizer=living, own={}, rank=1, world_size=2, has_weights=True)
    assert sorted(told) == ["state/rank-1-of-2.json", "state/rank-1-of-2.safetensors"]
    assert told == {name: fact_of(tmp_path / name) for name in told}


def test_there_is_no_pickle(tmp_path: Path) -> None:
    model, living = trained(OPTIMIZERS["AdamW"])
    write(tmp_path, model, living, own={"random": {"torch": "AAAA"}})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in files) == [".json", ".safetensors"]
    assert sorted(json.loads((tmp_path / "state" / "rank-0-of-1.json").read_text())) == ["numbers", "own", "starts"]


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("unpickled")

    model, living = trained(OPTIMIZERS["AdamW"])
    other, fresh = trained(OPTIMIZERS["AdamW"], seed=1, steps=0)
    write(tmp_path, model, living)
    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    read_state(tmp_path, model=other, optimizer=fresh)
    assert (read_own(tmp_path), own_of(tmp_path, rank=0, world_size=1)) == ([{}], {})
    assert_same(model, other)


def test_a_rank_whose_weights_another_one_writes_tells_only_what_it_alone_knew(tmp_path: Path) -> None:
    model, living = trained(OPTIMIZERS["AdamW"])
    for rank in (0, 1):
        write(tmp_path, model, living, rank=rank, world_size=2, has_weights=rank == 0, own={"loss": rank})
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == [
        "rank-0-of-2.json",
        "rank-0-of-2.safetensors",
        "rank-1-of-2.json",
    ]
    other, fresh = trained(OPTIMIZERS["AdamW"], seed=1, steps=0)
    read_state(tmp_path, model=other, optimizer=fresh)
    assert_same(model, other)


def test_what_each_rank_alone_knew_comes_in_the_order_of_the_ranks(tmp_path: Path) -> None:
    model, living = trained(OPTIMIZERS["SGD"])
    for rank in (10, 2, 0):
        write(tmp_path, model, living, rank=rank, world_size=11, has_weights=False, own={"tokens": [rank, 0.5, None]})
    assert read_own(tmp_path) == [{"tokens": [rank, 0.5, None]} for rank in (0, 2, 10)]


def test_what_a_rank_alone_knew_is_given_to_it_only_by_as_many_ranks(tmp_path: Path) -> None:
    model, living = trained(OPTIMIZERS["SGD"])
    write(tmp_path, model, living, rank=1, world_size=2, own={"loss": 0.5})
    assert own_of(tmp_path, rank=1, world_size=2) == {"loss": 0.5}
    assert own_of(tmp_path, rank=1, world_size=4) is None
    assert own_of(tmp_path, rank=0, world_size=2) is None


@pytest.mark.parametrize("place", ["weight/table", "exp_avg/table"])
def test_a_number_that_is_not_finite_is_never_written(tmp_path: Path, place: str) -> None:
    model, living = trained(OPTIMIZERS["AdamW"])
    array = model.table.data if place == "weight/table" else living.state[model.table]["exp_avg"]
    array[2, 1] = float("nan")
    with pytest.raises(NumericsError, match=f"^{place}: must be finite numbers"):
        write(tmp_path, model, living)


def test_an_optimizer_that_keeps_less_than_a_number_for_each_weight_is_refused(tmp_path: Path) -> None:
    model = Tiny(0)
    living = torch.optim.Adafactor([model.table, model.vector], lr=0.1)
    train_on(model, living)
    with pytest.raises(ConfigError, match=r"^optim: must keep one number for each weight"):
        write(tmp_path, model, living)


def stored_without(folder: Path, name: str, keep: int) -> Path:
    """Write a state in which only the first numbers of one parameter are left."""
    model, living = trained(OPTIMIZERS["AdamW"])
    file = write(folder, model, living) / "state" / "rank-0-of-1.safetensors"
    arrays = load_file(file)
    left = {key: array[:keep] if key.endswith(f"/{name}") else array for key, array in arrays.items()}
    save_file({key: array for key, array in left.items() if len(array)}, file)
    return folder


@pytest.mark.parametrize("only_weights", [True, False])
@pytest.mark.parametrize("keep", [0, 7])
def test_numbers_that_are_in_no_file_are_told(tmp_path: Path, keep: int, only_weights: bool) -> None:
    checkpoint = stored_without(tmp_path, "table", keep)
    other, fresh = trained(OPTIMIZERS["AdamW"], seed=1, steps=0)
    with pytest.raises(ModelError) as caught:
        read_state(checkpoint, model=other, optimizer=fresh, only_weights=only_weights)
    assert caught.value.exit_code == 65
    assert f"of table, but {12 - keep} of 12 numbers are in no file of this disk" in str(caught.value)
    assert str(caught.value).startswith(f"{checkpoint}: must hold ")


# Two parameters of 5 and 4 numbers, one behind the other, split over ranks as ZeRO does: rank -> spans, and numbers
# of the block with its padding.
SPLITS: dict[int, list[tuple[tuple[Span, ...], int]]] = {
    1: [((Span("a", 0, 5, 0), Span("b", 0, 4, 5)), 9)],
    2: [((Span("a", 0, 5, 0),), 5), ((Span("b", 0, 4, 0),), 5)],
    3: [
        ((Span("a", 0, 3, 0),), 3),
        ((Span("a", 3, 2, 0), Span("b", 0, 1, 2)), 3),
        ((Span("b", 1, 3, 0),), 3),
    ],
}
VALUES = {"a": torch.arange(5.0), "b": torch.arange(10.0, 14.0)}
PADDING = -1.0


class Split:
    """The blocks of one rank, instead of an engine's."""

    def __init__(self, world_size: int, rank: int, monkeypatch: pytest.MonkeyPatch, *, is_filled: bool) -> None:
        self.rank, self.world_size, self._patch = rank, world_size, monkeypatch
        self.spans, size = SPLITS[world_size][rank]
        self.weights, self.averages = torch.full((size,), PADDING), torch.full((size,), PADDING)
        if is_filled:
            for span in self.spans:
                wanted = VALUES[span.name][span.start : span.start + span.numel]
                self.weights[span.offset : span.offset + span.numel] = wanted
                self.averages[span.offset : span.offset + span.numel] = wanted * 2
        self.state: dict[str, Any] = {"step": 3, "exp_avg": self.averages}

    def use(self) -> dict[str, Any]:
        def blocks(*_: object) -> Iterator[Block]:
            yield Block(self.weights, self.state, self.spans, {}, counts_in_tensors=False)

        self._patch.setattr(state, "blocks", blocks)
        # A torch optimizer: nothing has to be brought up to date behind the blocks.
        return {"model": nn.Module(), "optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1)}


def write_split(folder: Path, world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in range(world_size):
        split = Split(world_size, rank, monkeypatch, is_filled=True)
        write(folder, **split.use(), rank=rank, world_size=world_size)


@pytest.mark.parametrize("before", SPLITS)
@pytest.mark.parametrize("after", SPLITS)
def test_any_number_of_ranks_reads_what_any_other_wrote(
    tmp_path: Path, before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_split(tmp_path, before, monkeypatch)
    for rank in range(after):
        expected, found = (Split(after, rank, monkeypatch, is_filled=is_filled) for is_filled in (True, False))
        found.state["step"] = 0
        read_state(tmp_path, **found.use())
        assert found.weights.tolist() == expected.weights.tolist()
        assert found.averages.tolist() == expected.averages.tolist()
        assert found.state["step"] == 3
        assert isinstance(found.state["step"], int)


def test_averages_are_found_behind_a_parameter_that_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without DeepSpeed, a parameter that never had a gradient has no averages; ZeRO lays it in front of one that has.
    unused, used = (Split(2, rank, monkeypatch, is_filled=True) for rank in (0, 1))
    unused.state = {}
    for rank, split in enumerate((unused, used)):
        write(tmp_path, **split.use(), rank=rank, world_size=2)
    found = Split(1, 0, monkeypatch, is_filled=False)
    found.state = {}
    read_state(tmp_path, **found.use())
    assert found.state["exp_avg"].tolist() == [0] * 5 + [20, 22, 24, 26]
    assert found.state["step"] == 3


def test_padding_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split(tmp_path, 2, monkeypatch)
    arrays = load_file(tmp_path / "state" / "rank-1-of-2.safetensors")
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "weight/b": [10, 11, 12, 13],
        "exp_avg/b": [20, 22, 24, 26],
    }


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_needs_a_file_of_another_disk_is_told_so(
    tmp_path: Path, rank: int, lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_split(tmp_path, 2, monkeypatch)
    for file in (tmp_path / "state").glob(f"rank-{lost}-of-2.*"):
        file.unlink()
    split = Split(3, rank, monkeypatch, is_filled=False)
    if "ab"[lost] in {span.name for span in split.spans}:
        with pytest.raises(ModelError, match=f"of {'ab'[lost]}, but"):
            read_state(tmp_path, **split.use())
    else:
        read_state(tmp_path, **split.use())
        assert split.weights.tolist() == Split(3, rank, monkeypatch, is_filled=True).weights.tolist()
