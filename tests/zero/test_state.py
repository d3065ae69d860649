"""Every engine is seen as stretches that cover each trained parameter once, and what is written there is trained on."""

from typing import Any

import pytest
import torch
from torch import nn

from ds_sft.errors import ConfigError
from ds_sft.zero.state import Block, Span, blocks, is_replicated, rewritten
from tests.ranks import run_ranks
from tests.state_jobs import Net, Owned, other_values, own_and_rewrite


def zero(stage: int, **changes: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **changes}}


ENGINES: dict[str, tuple[dict[str, Any], str, str]] = {
    "ZeRO-1": (zero(1), "fp32", "DeepSpeedZeroOptimizer"),
    "ZeRO-2": (zero(2), "fp32", "DeepSpeedZeroOptimizer"),
    "ZeRO-3": (zero(3), "fp32", "DeepSpeedZeroOptimizer_Stage3"),
    "ZeRO-1, bf16": (zero(1), "bf16", "DeepSpeedZeroOptimizer"),
    "ZeRO-1, bf16, gradients in fp32": (
        {**zero(1), "data_types": {"grad_accum_dtype": "fp32"}},
        "bf16",
        "BF16_Optimizer",
    ),
    "ZeRO-2, bf16": (zero(2), "bf16", "DeepSpeedZeroOptimizer"),
    "ZeRO-3, bf16": (zero(3), "bf16", "DeepSpeedZeroOptimizer_Stage3"),
    "ZeRO-2, round robin": (zero(2, round_robin_gradients=True), "fp32", "DeepSpeedZeroOptimizer"),
    "ZeRO-3, small groups, nothing kept whole": (
        zero(3, sub_group_size=20, stage3_param_persistence_threshold=0),
        "bf16",
        "DeepSpeedZeroOptimizer_Stage3",
    ),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIZES = {name: weight.numel() for name, weight in Net().named_parameters() if weight.requires_grad}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Owned]]:
    """What each of two ranks saw of every engine; one process for all of them, because starting it takes longest."""
    engines = {name: (changes, precision) for name, (changes, precision, _) in ENGINES.items()}
    return run_ranks(own_and_rewrite, engines, world_size=2)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, ranks: list[dict[str, Owned]]) -> tuple[str, list[Owned]]:
    """Name of the engine, and what each of its two ranks saw."""
    return request.param, [seen[request.param] for seen in ranks]


def expected(name: str, precision: str) -> list[float]:
    return other_values(name, SIZES[name]).to(DTYPES[precision]).float().tolist()


def test_the_engine_is_the_one_that_is_meant(engine: tuple[str, list[Owned]]) -> None:
    _, precision, kind = ENGINES[engine[0]]
    assert [(owned.optimizer, owned.dtype) for owned in engine[1]] == [(kind, str(DTYPES[precision]))] * 2


def test_all_ranks_together_own_every_trained_number_once(engine: tuple[str, list[Owned]]) -> None:
    found = [
        (name, number)
        for owned in engine[1]
        for name, start, numel in owned.spans
        for number in range(start, start + numel)
    ]
    assert sorted(found) == sorted((name, number) for name, size in SIZES.items() for number in range(size))


def test_each_rank_owns_a_part(engine: tuple[str, list[Owned]]) -> None:
    for owned in engine[1]:
        assert 0 < sum(numel for _, _, numel in owned.spans) < sum(SIZES.values())
        assert min(numel for _, _, numel in owned.spans) > 0


def test_a_stretch_holds_the_numbers_of_its_parameter(engine: tuple[str, list[Owned]]) -> None:
    dtype = DTYPES[ENGINES[engine[0]][1]]
    for owned in engine[1]:
        for (name, start, numel), stepped in zip(owned.spans, owned.stepped, strict=True):
            rounded = torch.tensor(stepped).to(dtype).float().tolist()
            assert rounded == owned.before[name][start : start + numel], name


def test_adams_averages_have_one_number_for_each_weight(engine: tuple[str, list[Owned]]) -> None:
    assert [(owned.arrays, owned.numbers) for owned in engine[1]] == [
        ({"weight", "exp_avg", "exp_avg_sq"}, {"step"})
    ] * 2


def test_what_is_written_becomes_the_models_own_weights_on_every_rank(engine: tuple[str, list[Owned]]) -> None:
    precision = ENGINES[engine[0]][1]
    for owned in engine[1]:
        assert {name: owned.written[name] for name in SIZES} == {name: expected(name, precision) for name in SIZES}


def test_frozen_weights_stay_what_they_are(engine: tuple[str, list[Owned]]) -> None:
    for owned in engine[1]:
        frozen = {name: values for name, values in owned.before.items() if name not in SIZES}
        assert len(frozen) == 2
        assert {name: owned.written[name] for name in frozen} == frozen


def test_the_next_outputs_come_from_what_was_written(engine: tuple[str, list[Owned]]) -> None:
    precision = ENGINES[engine[0]][1]
    dtype = DTYPES[precision]
    for owned in engine[1]:
        plain = Net().to(dtype)
        stored = {name: torch.tensor(values, dtype=dtype) for name, values in owned.written.items()}
        plain.load_state_dict({name: stored[name].view(weight.shape) for name, weight in plain.named_parameters()})
        outputs = plain(torch.ones(1, 5, dtype=dtype)).float().flatten().tolist()
        assert owned.outputs == pytest.approx(outputs, rel=1e-6)


def test_the_next_step_begins_from_what_was_written(engine: tuple[str, list[Owned]]) -> None:
    for owned in engine[1]:
        assert owned.kept == owned.written


def test_without_zero_each_parameter_is_a_block_of_its_own() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert is_replicated(optimizer)
    assert [block.spans for block in blocks(model, optimizer)] == [(Span("weight", 0, 6, 0),), (Span("bias", 0, 2, 0),)]
    with rewritten(optimizer):
        for block in blocks(model, optimizer):
            block.arrays()["weight"].fill_(2.0)
    assert [set(weight.flatten().tolist()) for weight in model.parameters()] == [{2.0}, {2.0}]


def test_an_engine_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        next(blocks(nn.Linear(3, 2), object()))
    assert str(caught.value) == (
        "zero_optimization.stage: must be at least 1 where checkpoints are saved in 16 bits, but DeepSpeed chose "
        "object; use stage 1, or --save_strategy no"
    )


@pytest.mark.parametrize(("counts_in_tensors", "kind"), [(True, torch.Tensor), (False, int)])
def test_a_count_becomes_what_the_living_optimizer_counts_with(counts_in_tensors: bool, kind: type) -> None:
    block = Block(torch.zeros(3), {}, (), {}, counts_in_tensors=counts_in_tensors)
    block.allocate({"weight": torch.float32, "exp_avg": torch.bfloat16}, {"step": 3.0})
    assert block.numbers() == {"step": 3.0}
    assert isinstance(block.state["step"], kind)
    assert block.state["exp_avg"].dtype == torch.bfloat16


def test_what_is_neither_a_number_nor_one_for_each_weight_is_refused() -> None:
    block = Block(torch.zeros(3), {"row": torch.zeros(2)}, (), {}, counts_in_tensors=True)
    with pytest.raises(
        ConfigError, match=r"^optim: must keep one number for each weight.*but keeps row as torch\.Size"
    ):
        block.numbers()
