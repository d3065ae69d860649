"""The shipped DeepSpeed files hold keys that DeepSpeed knows, and their README explains each of them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ds_sft.zero import settings

FOLDER = Path(__file__).parents[1] / "ds_configs"
FILES = sorted(FOLDER.glob("*.json"))
# Values such as the flags give; numbers stand for everything that is not named here.
AUTO = {"bf16.enabled": True, "fp16.enabled": False, "optimizer.params.betas": [0.9, 0.999]}


def _leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _without_auto(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    filled: dict[str, Any] = {}
    for key, value in section.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            filled[key] = _without_auto(value, f"{path}.")
        else:
            filled[key] = AUTO.get(path, 1) if value == "auto" else value
    return filled


def test_six_files_are_shipped() -> None:
    names = {"zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "zero3_nvme"}
    assert {file.stem for file in FILES} == names


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_deepspeed_accepts_every_key(file: Path) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    config = _without_auto(settings.read_deepspeed_config(file))

    # These classes refuse an unknown key.
    zero = DeepSpeedZeroConfig(**config["zero_optimization"])
    assert zero.stage == config["zero_optimization"]["stage"]
    assert DeepSpeedBF16Config(**config["bf16"]).enabled
    assert not DeepSpeedFP16Config(**config["fp16"]).enabled
    # DeepSpeed ignores unknown keys in these two places, so they are compared with the lists of names.
    assert set(config.get("aio", {})) <= set(AIO_DEFAULT_DICT)
    assert set(config) <= settings._KNOWN_KEYS

    whole = DeepSpeedConfig(config)
    assert whole.zero_config == zero
    assert whole.aio_config == {**AIO_DEFAULT_DICT, **config.get("aio", {})}


def test_known_keys_hold_none_that_deepspeed_removed() -> None:
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS

    assert settings._KNOWN_KEYS.isdisjoint(_REMOVED_TOP_LEVEL_CONFIG_KEYS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_readme_explains_every_value(file: Path) -> None:
    rows = [line for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    for path, value in _leaves(json.loads(file.read_text(encoding="utf-8"))):
        written = '"auto"' if value == "auto" else json.dumps(value)
        starts = [row.split(" | ")[:2] for row in rows if row.startswith(f"| `{path}` |")]
        assert any(f"`{written}`" in cells[1] for cells in starts), f"README.md has no row for {path} = {written}"
