"""Without a GPU training goes to the CPU by itself, and every change is said."""

import pytest
import torch

from ds_sft.config.parse import parse
from ds_sft.errors import ConfigError
from ds_sft.training.device import on_this_device

NEEDED = ["--model_name_or_path", "m", "--data_path", "d", "--output_dir", "o"]


def see_gpu(monkeypatch: pytest.MonkeyPatch, *, is_there: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)


def test_with_a_gpu_the_settings_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture
) -> None:
    see_gpu(monkeypatch, is_there=True)
    settings = parse([*NEEDED, "--tf32", "True"])
    assert on_this_device(settings) == settings
    assert told.messages == []


def test_without_a_gpu_training_goes_to_the_cpu_and_says_so(
    monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture
) -> None:
    see_gpu(monkeypatch, is_there=False)
    settings = parse(NEEDED)
    assert on_this_device(settings).training == {**settings.training, "use_cpu": True}
    assert told.messages == ["no GPU found: training on the CPU (use_cpu: False -> True)"]


def test_without_a_gpu_tf32_is_left_out_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture
) -> None:
    see_gpu(monkeypatch, is_there=False)
    fitted = on_this_device(parse([*NEEDED, "--use_cpu", "--tf32", "True"]))
    assert (fitted.training["use_cpu"], fitted.training["tf32"]) == (True, None)
    assert [(record.levelname, record.getMessage()) for record in told.records] == [
        ("WARNING", "tf32: True -> not set, because it is a number format of GPUs")
    ]


def test_the_given_settings_are_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpu(monkeypatch, is_there=False)
    settings = parse(NEEDED)
    on_this_device(settings)
    assert settings.training["use_cpu"] is False


def test_one_process_that_sees_several_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    settings = parse(NEEDED)
    with pytest.raises(ConfigError, match="one process must see one GPU, but sees 4"):
        on_this_device(settings)
    monkeypatch.setenv("RANK", "0")
    assert on_this_device(settings) == settings
