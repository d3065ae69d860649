"""What config.json may say is judged by its content, in one line a fault."""

from typing import Any

import pytest

from ds_sft.families.yuan2.native.rules import config_faults, fit_context

# The released config of Yuan2-2B, as far as it matters.
RELEASED = {
    "vocab_size": 135040,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "max_position_embeddings": 8192,
    "dropout": 0.1,
    "reset_attention_mask": True,
    "reset_position_ids": True,
    "use_loss_mask": False,
    "causal_mask": True,
    "use_flash_attention": True,
    "sep_token": 77187,
    "sep_token_id": 77185,
    "auto_map": {"AutoConfig": "configuration_yuan.YuanConfig"},
}
MIXTURE = RELEASED | {
    "attention_projection_size": 4096,
    "moe_config": {"moe_num_experts": 32, "moe_top_k": 2, "router_type": "attn_router"},
    "use_moe": True,
    "output_router_logits": True,
}


def test_the_released_config_has_no_fault() -> None:
    assert config_faults(RELEASED) == []


def test_a_mixture_of_experts_is_refused_in_one_line_that_names_its_keys() -> None:
    (told,) = config_faults(MIXTURE)
    assert told == (
        "model must be a dense Yuan2, but attention_projection_size, moe_config, output_router_logits, use_moe "
        "describe a mixture of experts (Yuan2-M32), whose router and experts are not supported; take Yuan2-2B, 51B or "
        "102B"
    )


@pytest.mark.parametrize("changes", [{"num_experts": 8}, {"moe_config": {}, "use_moe": False, "num_experts": 0}])
def test_only_a_mixture_that_is_there_is_refused(changes: dict[str, Any]) -> None:
    assert bool(config_faults(RELEASED | changes)) is any(changes.values())


@pytest.mark.parametrize("heads", [3, 5, 2048])
def test_heads_must_divide_the_width_into_even_parts(heads: int) -> None:
    assert config_faults(RELEASED | {"num_attention_heads": heads}) == [
        f"hidden_size must be an even multiple of num_attention_heads, but is 2048 for {heads} heads; restore the file"
    ]


def test_every_wrong_size_is_told_at_once() -> None:
    assert config_faults(RELEASED | {"vocab_size": "many", "num_hidden_layers": 0, "num_attention_heads": True}) == [
        "vocab_size must be a whole number above 0, but is 'many'; restore the file",
        "num_hidden_layers must be a whole number above 0, but is 0; restore the file",
        "num_attention_heads must be a whole number above 0, but is True; restore the file",
    ]


@pytest.mark.parametrize(
    ("changes", "told"), [({"use_shareqk": True}, "use_shareqk must be false"), ({"num_key_value_heads": 4}, "is 4;")]
)
def test_variants_without_a_checkpoint_are_refused(changes: dict[str, Any], told: str) -> None:
    (fault,) = config_faults(RELEASED | changes)
    assert told in fault


# ceil(length / context), as FastChat's train_yuan2 sets it.
@pytest.mark.parametrize(("length", "factor"), [(8193, 2.0), (16384, 2.0), (16385, 3.0), (65536, 8.0)])
def test_longer_sequences_than_the_context_scale_positions_linearly(length: int, factor: float) -> None:
    assert fit_context(RELEASED, length) == RELEASED | {"rope_scaling": {"rope_type": "linear", "factor": factor}}


@pytest.mark.parametrize("length", [2, 2048, 8192])
def test_sequences_inside_the_context_change_nothing(length: int) -> None:
    assert fit_context(RELEASED, length) == RELEASED


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ["type", "rope_type"])
def test_a_config_that_scales_its_positions_is_left_as_it_is(key: str, name: str) -> None:
    config = RELEASED | {key: {name: "yarn", "factor": 2.0}}
    assert fit_context(config, 100_000) == config


def test_a_base_of_its_own_is_kept() -> None:
    config = RELEASED | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert fit_context(config, 16384)["rope_scaling"] == {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    assert "rope_parameters" not in fit_context(config, 16384)


@pytest.mark.parametrize(
    ("scaling", "told"),
    [
        (
            {"type": "lineal", "factor": 2.0},
            "rope_type must be one of default, linear, dynamic, yarn, longrope, llama3",
        ),
        ({"type": "linear", "factor": "2"}, "factor must be a number from 1, but is '2'"),
        ({"type": "linear", "factor": 0.5}, "factor must be a number from 1, but is 0.5"),
        ({"type": "linear", "factor": float("inf")}, "factor must be a number from 1, but is inf"),
        ({"type": "linear"}, "factor must be a number from 1, but is None"),
        ("linear", "rope_scaling must be a flat JSON object, but is 'linear'"),
        ([1], "rope_scaling must be a flat JSON object, but is [1]"),
        ({"full_attention": {"type": "linear", "factor": 2.0}}, "rope_scaling must be a flat JSON object"),
        ({"type": "linear", "factor": 2.0, "rope_theta": 0}, "rope_theta must be a number above 0, but is 0"),
        ({"type": "longrope", "short_factor": [1.0]}, "long_factor must be a list of numbers, but is None"),
    ],
)
def test_positions_are_scaled_by_a_known_rule_and_a_number(scaling: Any, told: str) -> None:
    (fault,) = config_faults(RELEASED | {"rope_scaling": scaling})
    assert told in fault


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rms_norm_eps": -1}, "rms_norm_eps must be a number above 0, but is -1"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number above 0, but is nan"),
        ({"max_position_embeddings": "8k"}, "max_position_embeddings must be a whole number above 0, but is '8k'"),
        ({"max_position_embeddings": 0}, "max_position_embeddings must be a whole number above 0, but is 0"),
        ({"pad_token_id": 999999}, "pad_token_id must be a token below vocab_size 135040, but is 999999"),
        ({"rope_theta": "x"}, "rope_theta must be a number above 0, but is 'x'"),
        ({"head_dim": 32}, "head_dim must be hidden_size / num_attention_heads, but is 32"),
        ({"attn_implementation": "evil/kernel"}, "must not name a kernel to fetch, but is 'evil/kernel'"),
    ],
)
def test_numbers_and_names_that_the_model_cannot_use_are_told(changes: dict[str, Any], told: str) -> None:
    (fault,) = config_faults(RELEASED | changes)
    assert told in fault


def test_keys_that_say_what_is_computed_anyway_are_accepted() -> None:
    assert config_faults(RELEASED | {"head_dim": 64, "layer_types": ["hybrid"] * 24, "pad_token_id": 77185}) == []


def test_a_scaled_context_that_is_still_too_short_is_told(caplog: pytest.LogCaptureFixture) -> None:
    config = RELEASED | {"rope_scaling": {"type": "linear", "factor": 2.0}}
    assert fit_context(config, 16384) == config
    assert caplog.messages == []
    assert fit_context(config, 16385) == config
    assert caplog.messages == [
        "model_max_length: 16385 is beyond the context 8192 that config.json scales by 2.0: positions stay as they are"
    ]
