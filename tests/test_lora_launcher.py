"""The launcher of adapters on one GPU: what it makes of its words, and of several GPUs."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).parents[1] / "launchers" / "single_gpu_lora.sh"


def _dry_run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(LAUNCHER), "--dry-run", *words]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_dashes_inside_a_path_are_no_flag() -> None:
    done = _dry_run("my--model", "data--1.json", "runs/a--b", "--seed", "3")
    assert done.returncode == 0
    assert "--model_name_or_path my--model --data_path data--1.json --output_dir runs/a--b" in done.stdout


@pytest.mark.parametrize("words", [("--lora_r", "4", "out"), ("model", "data.json", "--seed"), ("model", "data.json")])
def test_a_flag_in_the_place_of_a_path_is_one_line(words: tuple[str, ...]) -> None:
    done = _dry_run(*words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_of_several_gpus_the_first_is_taken_and_told(tmp_path: Path) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho GPU 0\n")
    fake.chmod(0o755)
    given = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "2,3"}
    done = _dry_run("model", "data.json", "out", **given)
    assert done.stderr == "CUDA_VISIBLE_DEVICES: 2,3 -> 2, because this runs on one GPU\n"
    assert "--bf16 True" in done.stdout
