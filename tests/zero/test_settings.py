"""A DeepSpeed file is read or refused with its place, and held against every flag that it repeats."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_sft.errors import ConfigError, MissingInputError
from ds_sft.zero.settings import deepspeed_faults, read_deepspeed_config, write_resolved
from tests.conftest import CONFIGS

TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "bf16": True,
    "fp16": False,
    "max_grad_norm": 1.0,
    "learning_rate": 1e-4,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "weight_decay": 0.0,
}
AGREE, AUTO = "must agree with", 'set it to "auto"'
STAGE = "zero_optimization.stage: must be 0, 1, 2 or 3, but is"


def faults(config: Any, *, world_size: int = 3, **training: Any) -> list[str]:
    found = deepspeed_faults(config, path=Path("ds.json"), training=TRAINING | training, world_size=world_size)
    assert {error.exit_code for error in found} <= {64}
    return [str(error) for error in found]


def read_fault(folder: Path, content: bytes) -> str:
    file = folder / "ds.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_deepspeed_config(file)
    assert caught.value.exit_code == 64
    return str(caught.value).replace(f"{folder}/", "")


def test_a_file_is_read_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"bf16": {"enabled": "auto"}}')
    assert read_deepspeed_config(tmp_path / "ds.json") == {"bf16": {"enabled": "auto"}}


def test_a_missing_file_is_told_with_its_path() -> None:
    with pytest.raises(MissingInputError) as caught:
        read_deepspeed_config(Path("no/ds.json"))
    assert caught.value.exit_code == 66
    assert str(caught.value) == ("deepspeed: file must exist, but no/ds.json does not; see ds_configs/ for six of them")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"bf16": }', "byte 9: Expecting value: line 1 column 10 (char 9)"),
        (b'{"a": 1, "a": 2}', "key 'a' stands there twice"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"", "byte 0: Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(tmp_path: Path, content: bytes, reason: str) -> None:
    assert read_fault(tmp_path, content) == f"ds.json: must be a JSON object, but: {reason}; mend it"


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    assert read_fault(tmp_path, b'{"a": ' + b"[" * 100_000).startswith("ds.json: must be a JSON object, but: ")


@pytest.mark.parametrize(("content", "kind"), [(b"[]", "list"), (b"3", "int"), (b"null", "NoneType")])
def test_json_that_is_no_object_is_refused(tmp_path: Path, content: bytes, kind: str) -> None:
    assert read_fault(tmp_path, content) == f"ds.json: must be a JSON object, but is a {kind}; see ds_configs/"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.json")), ids=lambda file: str(file.name))
@pytest.mark.parametrize("precision", [{"bf16": True}, {"bf16": False}])
def test_every_shipped_file_agrees_with_any_flags(file: Path, precision: dict[str, bool]) -> None:
    assert faults(read_deepspeed_config(file), **precision) == []


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            {"zero_optimisation": {}},
            "zero_optimisation: key must be one of DeepSpeed's, but is not; did you mean 'zero_optimization'?",
        ),
        ({"qqq": 1}, "qqq: key must be one of DeepSpeed's, but is not; remove it"),
        (
            {"train_micro_batch_size_per_gpu": 8},
            f"train_micro_batch_size_per_gpu: {AGREE} the flags (--per_device_train_batch_size 4), but is 8; {AUTO}",
        ),
        (
            {"gradient_accumulation_steps": 1},
            f"gradient_accumulation_steps: {AGREE} the flags (--gradient_accumulation_steps 2), but is 1; {AUTO}",
        ),
        (
            {"train_batch_size": 8},
            f"train_batch_size: {AGREE} the flags (4 per device x 2 accumulation x 3 ranks), but is 8; {AUTO}",
        ),
        ({"bf16": {"enabled": False}}, f"bf16.enabled: {AGREE} --bf16 True, but is False; {AUTO}"),
        ({"fp16": {"enabled": True}}, f"fp16.enabled: {AGREE} --fp16 False, but is True; {AUTO}"),
        ({"gradient_clipping": 0.5}, f"gradient_clipping: {AGREE} --max_grad_norm 1.0, but is 0.5; {AUTO}"),
        (
            {"optimizer": {"params": {"lr": 0.1, "weight_decay": "auto"}}},
            f"optimizer.params.lr: {AGREE} --learning_rate 0.0001, but is 0.1; {AUTO}",
        ),
        (
            {"optimizer": {"params": {"lr": "auto", "eps": 0.1, "weight_decay": "auto"}}},
            f"optimizer.params.eps: {AGREE} --adam_epsilon 1e-08, but is 0.1; {AUTO}",
        ),
        (
            {"optimizer": {"params": {"lr": "auto", "weight_decay": 1}}},
            f"optimizer.params.weight_decay: {AGREE} --weight_decay 0.0, but is 1; {AUTO}",
        ),
        ({"zero_optimization": {"stage": 4}}, f"{STAGE} 4; see ds_configs/README.md"),
        ({"zero_optimization": {"stage": True}}, f"{STAGE} True; see ds_configs/README.md"),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "zero_optimization.offload_param: needs stage 3, but stage is 2; remove it or use stage 3",
        ),
        ({"bf16": True}, "bf16: must be a JSON object, but is True; see ds_configs/"),
        ({"fp16": None}, "fp16: must be a JSON object, but is None; see ds_configs/"),
        (
            {"optimizer": {"params": {"lr": "auto"}}},
            f"optimizer.params.weight_decay: must be there for --weight_decay 0.0, but is not; {AUTO}",
        ),
        (
            {"optimizer": {"params": {"lr": "auto", "weight_decay": "auto", "betas": [0.8, 0.999]}}},
            f"optimizer.params.betas: {AGREE} --adam_beta1 and --adam_beta2 [0.9, 0.999], but is [0.8, 0.999]; {AUTO}",
        ),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_size": "big"}},
            (
                "zero_optimization.reduce_bucket_size: Input should be a valid integer, unable to parse string as an "
                "integer, but is 'big'; see ds_configs/README.md"
            ),
        ),
        ({"optimizer": "adam"}, "optimizer: must be a JSON object, but is 'adam'; see ds_configs/"),
        ({"optimizer": {"params": [1]}}, "optimizer.params: must be a JSON object, but is [1]; see ds_configs/"),
        ({"zero_optimization": 3}, "zero_optimization: must be a JSON object, but is 3; see ds_configs/"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_contradiction_is_told_with_key_rule_value_and_remedy(config: dict[str, Any], line: str) -> None:
    assert faults(config) == [f"ds.json: {line}"]


def test_values_that_agree_are_no_fault() -> None:
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 24,
        "bf16": {"enabled": True},
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0}},
        "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}},
    }
    assert faults(config) == []


def test_every_contradiction_is_told_at_once() -> None:
    assert len(faults({"nothing": 1, "train_batch_size": 1, "bf16": {"enabled": False}, "gradient_clipping": 9})) == 4


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(["auto", "x", ""]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["enabled", "params", "lr", "stage", "offload_param", "x"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)
KEYS = st.sampled_from(["bf16", "fp16", "optimizer", "zero_optimization", "train_batch_size", "gradient_clipping", "y"])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(config=st.dictionaries(KEYS, JSON, max_size=4))
def test_any_json_object_gives_faults_and_never_another_error(config: dict[str, Any]) -> None:
    assert all(line.startswith("ds.json: ") and "; " in line for line in faults(config))


def test_the_resolved_config_is_written_beside_the_run(tmp_path: Path) -> None:
    file = write_resolved({"b": 1, "a": {"dtype": Path("x")}}, into=tmp_path)
    assert file == tmp_path / "ds_sft.resolved.deepspeed.json"
    assert json.loads(file.read_text()) == {"a": {"dtype": "x"}, "b": 1}


def test_the_resolved_config_takes_the_place_of_a_planted_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("old")
    (tmp_path / "ds_sft.resolved.deepspeed.json").symlink_to(tmp_path / "victim")
    assert not write_resolved({"b": 1}, into=tmp_path).is_symlink()
    assert (tmp_path / "victim").read_text() == "old"


def test_a_file_that_lets_deepspeed_step_on_nan_is_refused() -> None:
    assert faults({"bf16": {"enabled": True, "check_grad_overflow": False}}) == [
        (
            "ds.json: bf16.check_grad_overflow: must not be false: DeepSpeed would step on gradients that are NaN, and "
            "every weight with them; remove it"
        )
    ]
    assert faults({"bf16": {"enabled": True, "check_grad_overflow": True}}) == []
