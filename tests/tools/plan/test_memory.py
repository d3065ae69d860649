"""Memory counted by hand, and beside what was measured."""

import json
from dataclasses import replace
from typing import Any

import pytest

from ds_sft.families import family_named
from ds_sft.tools.plan.engine import Engine
from ds_sft.tools.plan.memory import Memory, memory_of
from ds_sft.tools.plan.states import Adapters, Load, num_trained
from tests.conftest import ROOT

YUAN2 = {"vocab_size": 10, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 2}
SHAPE = family_named("yuan2").shape_of(YUAN2)
# Query, key, value, output; two filters with biases and a norm; three products; two norms; table and last norm.
PARAMETERS = 2 * (4 * 16 + (16 + 2) + (16 + 4) + 4 + 3 * 32 + 2 * 4) + 10 * 4 + 4
LOAD = Load(
    source_tokens=0,
    target_tokens=6,
    supervised_tokens=6,
    longest=6,
    accumulation=1,
    is_checkpointing=True,
    computes="16 bits",
)
PLAIN = Engine(2, bucket=0)
LORA = Adapters(rank=3, targets=["q_proj", "v_proj"], is_quantised=False, kept_in_16_bits=("lm_head",))


def memory(engine: Engine | None, *, ranks: int = 4, adapters: Adapters | None = None, **load: Any) -> Memory:
    return memory_of(SHAPE, replace(LOAD, **load), adapters=adapters, engine=engine, num_ranks=ranks)


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(1, 2, 2, 12 / 4), (2, 2, 2 / 4, 12 / 4), (3, 2 / 4, 2 / 4, 12 / 4)],
)
def test_a_stage_divides_what_it_says(stage: int, weights: float, gradients: float, optimizer: float) -> None:
    found = memory(Engine(stage, bucket=0))
    expected = [number * PARAMETERS for number in (weights, gradients, optimizer)]
    assert [found.parameters, found.gradients, found.optimizer] == expected


def test_in_fp32_every_weight_has_an_fp32_gradient_and_the_optimizer_a_copy() -> None:
    found = memory(PLAIN, computes="fp32")
    assert [found.parameters, found.gradients, found.optimizer] == [4 * PARAMETERS, PARAMETERS, 3 * PARAMETERS]


def test_without_deepspeed_weights_are_in_fp32_and_there_is_no_copy() -> None:
    found = memory(None, ranks=1)
    assert [found.parameters, found.gradients, found.optimizer] == [4 * PARAMETERS, 4 * PARAMETERS, 8 * PARAMETERS]
    assert found.buffers == 0


def test_what_is_moved_lies_in_ram_with_an_fp32_gradient_and_16_bits_on_their_way() -> None:
    found = memory(Engine(2, optimizer_on="cpu", bucket=0))
    assert (found.gradients, found.optimizer, found.host) == (0, 0, (12 + 4 + 2) * PARAMETERS / 4)
    found = memory(Engine(3, optimizer_on="cpu", weights_on="cpu", bucket=0))
    assert (found.parameters, found.host) == (0, (12 + 4 + 2 + 2) * PARAMETERS / 4)


def test_small_weights_are_not_divided() -> None:
    small = 2 * (2 + 4 + 4 + 2 * 4) + 4  # biases and norms have at most 4 elements
    found = memory(Engine(3, bucket=0, persistent=5))
    assert found.parameters == 2 * (small + (PARAMETERS - small) / 4)


def test_adapters_alone_have_gradients_and_states() -> None:
    trained = 2 * 2 * 3 * (4 + 4)
    assert num_trained(SHAPE, LORA) == trained
    found = memory(PLAIN, adapters=LORA)
    assert [found.parameters, found.gradients, found.optimizer] == [
        2 * (PARAMETERS + trained),
        trained / 2,
        3 * trained,
    ]


def test_adapters_on_all_linear_layers_leave_the_head_alone() -> None:
    untied = family_named("yuan2").shape_of(YUAN2 | {"tie_word_embeddings": False})
    every = replace(LORA, targets=None)
    assert num_trained(untied, every) == num_trained(SHAPE, every) == 2 * 3 * (4 * (4 + 4) + 3 * (4 + 8))


def test_with_checkpointing_a_layer_keeps_its_input_alone() -> None:
    found, whole = memory(PLAIN), memory(PLAIN, is_checkpointing=False)
    tokens, layer = 6, 2 * (14 * 4 + 4 * 8) + 4 * 3 * 4
    assert whole.activations - found.activations == tokens * (2 * layer - (2 * 2 * 4 + layer))


def test_the_loss_holds_scores_of_supervised_tokens_and_the_gradient_of_the_head() -> None:
    assert memory(PLAIN, supervised_tokens=5).loss == 5 * 10 * (4 + 2) + 10 * 4 * (4 + 2)
    assert memory(PLAIN, supervised_tokens=5, adapters=LORA).loss == 5 * 10 * (4 + 2)


def test_buckets_count_twice_where_one_is_filled_while_the_other_is_sent() -> None:
    assert memory(Engine(1, bucket=100, num_buckets=2)).buffers == 2 * 2 * 100


def test_stage_3_gathers_weights_where_they_are_divided_only() -> None:
    divides = Engine(3, bucket=0, kept=50, prefetched=7)
    assert memory(divides).buffers == 2 * (50 + 7 + 10 * 4)
    assert memory(divides, ranks=1).buffers == 0


def test_the_peak_is_that_of_the_fullest_moment_counted_by_hand() -> None:
    found = memory(Engine(2, bucket=0), ranks=1, target_tokens=1, supervised_tokens=1)
    # The step: weights, states, gradients in 16 bits and in fp32; activations and scores are gone.
    assert found.peak == (2 + 12 + 2 + 4) * PARAMETERS
    long = memory(Engine(2, bucket=0), ranks=1, target_tokens=600, supervised_tokens=600)
    states = (2 + 12 + 2) * PARAMETERS  # ZeRO-2 makes room for all gradients with its first bucket
    layer = 2 * (14 * 4 + 4 * 8) + 4 * 3 * 4
    ends, inputs = 600 * 2 * 6 * 4, 2 * 600 * 2 * 4
    assert long.peak == states + ends + inputs + 600 * layer + 600 * 10 * 6 + 10 * 4 * 6


MEASURED = json.loads((ROOT / "benchmarks" / "results" / "adapter_memory.json").read_text())
SIZES = {"Yuan2-2B": ("yuan2", "ieityuan/yuan2-2b-hf"), "Flan-T5-XL": ("flan_t5", "google/flan-t5-xl")}


@pytest.mark.parametrize("row", MEASURED["rows"], ids=lambda row: f"{row['model']}-{row['is_quantised']}")
def test_frozen_models_have_the_bytes_that_real_ones_have(row: dict[str, Any]) -> None:
    family_name, published = SIZES[row["model"]]
    family = family_named(family_name)
    shape = family.shape_of(family.published_configs[published])
    adapters = Adapters(MEASURED["rank"], family.lora_targets, row["is_quantised"], family.kept_in_16_bits)
    num = MEASURED["tokens"]
    load = Load(num * family.is_encoder_decoder, num, num, num, 1, is_checkpointing=True, computes="16 bits")
    found = memory_of(shape, load, adapters=adapters, engine=None, num_ranks=1)
    trained = 4 * num_trained(shape, adapters)
    assert found.parameters - trained == pytest.approx(row["weights"] * 1e9, rel=0.002)
    assert trained + found.gradients + found.optimizer == pytest.approx(row["adapters"] * 1e9, rel=0.01)
