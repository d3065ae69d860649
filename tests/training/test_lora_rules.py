"""What adapters cannot be combined with is told before anything is loaded, each fault in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from ds_sft.config.parse import parse
from ds_sft.errors import ConfigError, DsSftError, MissingInputError, ModelError
from ds_sft.model.folder import digest_of_model, find_model_folder
from ds_sft.training.lora_rules import lora_faults
from tests.jobs import main_flags

STAGE_3 = {"zero_optimization": {"stage": 3}}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "t5"}')
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    content = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"], "lora_dropout": 0.0}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


def _faults(model: Path, deepspeed: dict[str, Any] | None = None, **flags: Any) -> list[DsSftError]:
    settings = parse(main_flags(model, Path("unused"), Path("unused"), **flags))
    folder = find_model_folder(str(model), cache_dir=None)
    return list(lora_faults(settings, folder=folder, deepspeed=deepspeed))


@pytest.mark.parametrize(
    ("flags", "deepspeed", "told"),
    [
        ({"lora_r": 65537}, None, "lora_r: must be at most 65536, but is 65537; 8 to 64 are usual"),
        ({"lora_r": 4, "lora_init": "eva"}, STAGE_3, "lora_init: eva needs whole weights, but"),
        ({"lora_r": 4, "lora_init": "eva", "q_lora": True}, None, "lora_init: eva needs weights of full precision"),
        ({"lora_r": 0}, None, "lora_r: must be at least 1, but is 0; 8 to 64 are usual"),
        ({"lora_r": 4, "lora_alpha": 0}, None, "lora_alpha: must be at least 1, but is 0"),
        ({"lora_r": 4, "lora_dropout": 1.0}, None, "lora_dropout: must be from 0 to below 1, but is 1.0"),
        ({"lora_alpha": 32}, None, "lora_alpha: needs --lora_r, but is 32 without it; add --lora_r 8, or leave it out"),
        ({"q_lora": True}, None, "q_lora: needs --lora_r, but is True without it"),
        ({"lora_r": 4, "q_lora": True}, STAGE_3, "q_lora: needs whole weights on every rank"),
        ({"lora_r": 4, "lora_init": "pissa"}, STAGE_3, "lora_init: pissa needs whole weights, but"),
        ({"lora_r": 4, "lora_init": "olora", "q_lora": True}, None, "lora_init: olora needs weights of full"),
        ({"lora_r": 4, "lora_init": "pissa", "use_dora": True}, None, "lora_init: pissa changes the frozen weights"),
        ({"lora_r": 4, "lora_init": "loftq"}, None, "lora_init: loftq makes up for 4-bit weights, but q_lora is False"),
    ],
)  # fmt: skip
def test_a_combination_that_cannot_be_is_one_line(
    flags: dict[str, Any], deepspeed: dict[str, Any] | None, told: str, model: Path
) -> None:
    faults = _faults(model, deepspeed, **flags)
    assert [type(fault) for fault in faults] == [ConfigError]
    assert str(faults[0]).startswith(told)


def test_a_run_without_adapters_has_no_fault(model: Path) -> None:
    assert _faults(model, STAGE_3) == []


def test_a_missing_bitsandbytes_names_the_extra(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    (fault,) = _faults(model, lora_r=4, q_lora=True)
    assert str(fault) == "q_lora: needs bitsandbytes, but it is not installed; pip install -e '.[qlora]'"


def test_an_adapter_that_is_not_there_is_told(model: Path, tmp_path: Path) -> None:
    (fault,) = _faults(model, lora_weight_path=tmp_path / "nothing")
    assert isinstance(fault, MissingInputError)


def test_an_empty_path_is_no_adapter(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (fault,) = _faults(model, lora_weight_path="")
    assert str(fault).startswith(".: must hold adapter_config.json, but does not")


def test_flags_must_agree_with_the_adapter_that_is_continued(model: Path, adapter: Path) -> None:
    assert _faults(model, lora_weight_path=adapter) == []
    assert _faults(model, lora_weight_path=adapter, lora_r=4, lora_alpha=8) == []
    (fault,) = _faults(model, lora_weight_path=adapter, lora_r=8)
    assert str(fault) == f"lora_r: must be 4 as in {adapter}, but is 8; leave it out"


def test_targets_must_be_those_of_the_adapter_that_is_continued(model: Path, adapter: Path) -> None:
    assert _faults(model, lora_weight_path=adapter, lora_target_modules="q") == []
    (fault,) = _faults(model, lora_weight_path=adapter, lora_target_modules="v")
    assert str(fault) == f"lora_target_modules: must be ['q'] as in {adapter}, but is ['v']; leave it out"


def test_what_the_adapter_decides_against_a_default_is_told(
    model: Path, adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _faults(model, lora_weight_path=adapter)
    assert caplog.messages == [
        f"lora_alpha: 16 -> 8.0, as in {adapter}",
        f"lora_dropout: 0.05 -> 0.0, as in {adapter}",
    ]


def _write_manifest(model: Path, adapter: Path, facts: Any) -> None:
    digest = digest_of_model(find_model_folder(str(model), cache_dir=None))
    told = {name: digest if value == "DIGEST" else value for name, value in facts.items()} if facts else facts
    content = {"format": 1, "step": 1, "world_size": 1, "files": {}, "facts": {"fingerprint": told}}
    (adapter / "MANIFEST.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("run", "flags", "told"),
    [
        ({"q_lora": False}, {"q_lora": True}, "q_lora: must be False as in the run of"),
        ({"q_lora": True}, {}, "q_lora: must be True as in the run of"),
        ({"q_lora": True, "bf16": True}, {"q_lora": True}, "bf16: must be True as in the run of"),
    ],
)
def test_a_model_in_other_bits_than_the_adapter_learnt_beside_is_refused(
    run: dict[str, bool], flags: dict[str, Any], told: str, model: Path, adapter: Path
) -> None:
    facts = {"model": "DIGEST", "bf16": run.get("bf16", False), "adapters": {"q_lora": run["q_lora"]}}
    _write_manifest(model, adapter, facts)
    (fault,) = _faults(model, lora_weight_path=adapter, **flags)
    assert isinstance(fault, ConfigError)
    assert str(fault).startswith(told)


@pytest.mark.parametrize("facts", [None, {"model": 5}, {"model": "x", "adapters": "all"}, {"bf16": True}])
def test_a_manifest_that_tells_no_run_is_one_line(facts: Any, model: Path, adapter: Path) -> None:
    _write_manifest(model, adapter, facts)
    (fault,) = _faults(model, lora_weight_path=adapter)
    assert isinstance(fault, ModelError)
    assert str(fault).startswith(f"{adapter}/MANIFEST.json: fingerprint must tell the model and the flags of a run")


def test_a_broken_manifest_is_not_passed_over(model: Path, adapter: Path) -> None:
    (adapter / "MANIFEST.json").write_text("{nope")
    (fault,) = _faults(model, lora_weight_path=adapter)
    assert str(fault).startswith(f"{adapter}: must be whole, but MANIFEST.json cannot be read")
