"""Parameters and operations, counted by hand."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.families import family_named
from ds_sft.families.yuan2.native.configuration import Yuan2Config
from ds_sft.families.yuan2.native.model import Yuan2ForCausalLM
from ds_sft.model.costs import training_flops, work_of
from ds_sft.training.inputs import inputs_of

YUAN2 = {"vocab_size": 7, "hidden_size": 4, "intermediate_size": 5, "num_hidden_layers": 3}
T5 = {"vocab_size": 7, "d_model": 4, "d_kv": 3, "num_heads": 2, "d_ff": 5, "num_layers": 3}


def test_a_decoder_multiplies_its_weights_with_tokens_and_its_pairs_with_their_past() -> None:
    work = work_of([2, 3], num_supervised=3)
    # Query, key, value, output 4x4; both filters 2 x (4x2); three products 4x5; scores and mixing of 3 and 6 pairs.
    with_weights, pairs = 5 * (4 * 16 + 2 * 16 + 3 * 20), (3 + 6) * 2 * 4
    shape = family_named("yuan2").shape_of(YUAN2)
    assert training_flops(shape, work) == 3 * 2 * (3 * (with_weights + pairs) + 3 * 4 * 7)


def test_frozen_weights_have_no_gradient_of_their_own() -> None:
    work = work_of([2, 3], num_supervised=3)
    with_weights, pairs = 5 * (4 * 16 + 2 * 16 + 3 * 20), (3 + 6) * 2 * 4
    shape = family_named("yuan2").shape_of(YUAN2)
    found = training_flops(shape, work, is_frozen=True)
    assert found == 2 * (2 * (3 * with_weights + 3 * 4 * 7) + 3 * 3 * pairs)


@pytest.mark.parametrize(("kind", "num_products"), [("relu", 2), ("gated-gelu", 3)])
def test_an_encoder_decoder_makes_keys_and_values_of_the_source(kind: str, num_products: int) -> None:
    work = work_of([2], [4], num_supervised=2)
    encoder = 4 * (4 * 4 * 6 + num_products * 4 * 5) + 16 * 2 * 6
    decoder = 2 * (4 * 4 * 6 + num_products * 4 * 5) + 3 * 2 * 6
    cross = (2 + 4) * 2 * 4 * 6 + 2 * 4 * 2 * 6
    shape = family_named("flan_t5").shape_of(T5 | {"feed_forward_proj": kind})
    assert training_flops(shape, work) == 3 * 2 * (3 * (encoder + decoder + cross) + 2 * 4 * 7)


def test_work_adds_up() -> None:
    whole = work_of([2, 3, 9], [4, 1, 5], num_supervised=8)
    parts = [work_of([2, 3], [4, 1], num_supervised=3), work_of([9], [5], num_supervised=5)]
    assert parts[0] + parts[1] == whole


def test_torch_counts_the_same_but_for_what_it_does_not_see() -> None:
    config: dict[str, Any] = YUAN2 | {"num_attention_heads": 2, "pad_token_id": 0, "attn_implementation": "eager"}
    config |= {"bos_token_id": 1, "eos_token_id": 1}
    model = Yuan2ForCausalLM(Yuan2Config(**config))
    ids = torch.tensor([[3, 4, 5, 3, 4]])
    labels = torch.tensor([[IGNORE_INDEX, 4, 5, 3, IGNORE_INDEX]])
    offsets = torch.tensor([0, 5], dtype=torch.int32)
    inputs = inputs_of({"input_ids": ids, "labels": labels, "offsets": offsets}, device=torch.device("cpu"))
    del inputs["labels"]
    with FlopCounterMode(display=False) as counter:
        model(**inputs, use_cache=False).loss.backward()
    found = training_flops(family_named("yuan2").shape_of(config), work_of([5], num_supervised=3))
    masked_half = 3 * 2 * (25 - 15) * 3 * 2 * 4
    added_in_place = 2 * 3 * 4 * 7  # the gradient of the head: torch's counter does not know addmm_
    assert counter.get_total_flops() == found + masked_half - added_in_place
