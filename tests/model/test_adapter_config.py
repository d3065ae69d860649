"""The settings of an adapter on disk: each breaks its rule in one line, and patterns are matched as peft does."""

import json
from pathlib import Path
from typing import Any

import pytest

from ds_sft.errors import MissingInputError, ModelError
from ds_sft.model.adapter_config import read_adapter_config

GIVEN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q", "v"]}


def _folder(tmp_path: Path, **changes: Any) -> Path:
    (tmp_path / "adapter_config.json").write_text(json.dumps({**GIVEN, **changes}))
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        *({"r": value} for value in ("four", -4, 0, 65537, True, 4.5, None)),
        *({"lora_alpha": value} for value in ("x", 0, -1, float("inf"), float("nan"), True)),
        *({"lora_dropout": value} for value in (1, -0.1, "x")),
        *({"target_modules": value} for value in (5, [1], [], ".*q", None)),
        {"bias": "weird"},
        *({"rank_pattern": value} for value in ("x", {"q": "x"}, {"q": 0}, {"(": 2})),
        *({"alpha_pattern": value} for value in ({"q": [1]}, {"q": 0}, {"q": float("inf")}, {"(": 2})),
        {"trainable_token_indices": [3]},
        *({"trainable_token_indices": {"a": ids}} for ids in ([1, 1], [-1], [2**31])),
        {"trainable_token_indices": {"a": list[int]()}},
        {"use_dora": "false"},
        {"use_rslora": 1},
        *({"init_lora_weights": value} for value in ("pissa", "pissa_niter_4", "olora", "corda", "loftq")),
        *({name: ["lm_head"]} for name in ("modules_to_save", "exclude_modules", "target_parameters")),
        *({name: True} for name in ("fan_in_fan_out", "lora_bias", "use_qalora", "a_part_of_a_later_peft")),
        *({name: [1]} for name in ("layers_to_transform", "layer_replication", "alora_invocation_tokens")),
        {"peft_type": "IA3"},
        {"base_model_name_or_path": 5},
    ],
    ids=str,
)
def test_a_setting_that_breaks_its_rule_is_one_line(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = _folder(tmp_path, **changes)
    with pytest.raises(ModelError) as caught:
        read_adapter_config(folder)
    (told,) = caught.value.faults
    (name,) = changes
    assert told.startswith(f"{folder}/adapter_config.json: {name} must ")


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        read_adapter_config(_folder(tmp_path, r=0, use_dora=3, lora_bias=True))
    assert [fault.split(": ")[1].split()[0] for fault in caught.value.faults] == ["r", "use_dora", "lora_bias"]


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"must hold adapter_config\.json"):
        read_adapter_config(tmp_path)


def test_what_peft_writes_beside_is_allowed(tmp_path: Path) -> None:
    beside = {"peft_version": "0.21.2", "task_type": "CAUSAL_LM", "inference_mode": True, "megatron_core": "x"}
    config = read_adapter_config(_folder(tmp_path, **beside, modules_to_save=None, rank_pattern={}, lora_bias=False))
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 8.0, ["q", "v"])


def test_patterns_are_regular_expressions_for_ends_of_names(tmp_path: Path) -> None:
    ranks, alphas = {r"encoder.*\.q": 2, "v": 16}, {"decoder.block.0.*q": 32}
    config = read_adapter_config(_folder(tmp_path, rank_pattern=ranks, alpha_pattern=alphas))
    scales = {
        "encoder.block.1.layer.0.SelfAttention.q": 8 / 2,
        "decoder.block.0.layer.0.SelfAttention.q": 32 / 4,
        "decoder.block.1.layer.0.SelfAttention.q": 8 / 4,
        "decoder.block.1.layer.0.SelfAttention.v": 8 / 16,
        "decoder.block.1.layer.0.SelfAttention.mov": 8 / 4,
    }
    assert {path: config.scale_of(path) for path in scales} == scales


@pytest.mark.parametrize("hostile", ["([a-z.]+)+!", ".*.*.*!", "a?a?a?", "[a-z]{1,9}[a-z]+.*!", "(?=q)q"])
@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_could_take_for_ever_is_refused(field: str, hostile: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{field} must map regular expressions without groups and with at most 2 "):
        read_adapter_config(_folder(tmp_path, **{field: {hostile: 2}}))
