"""Nothing that is secret is written anywhere, and nothing that is written can be executed."""

import os
from pathlib import Path

import pytest

from tests.conftest import CONFIGS
from tests.jobs import main_flags, train_and_log
from tests.ranks import run_ranks

SECRET = "canary-5d1f0c"
VARIABLES = (
    *("HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "COMET_API_KEY", "NEPTUNE_API_TOKEN"),
)
EXECUTED_WHEN_LOADED = (".bin", ".pt", ".pth", ".pkl", ".py", ".sh")


@pytest.fixture(scope="module")
def output(tiny_checkpoint: Path, conversations_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two ranks that had secrets in its surroundings and one among its flags."""
    folder = tmp_path_factory.mktemp("secrets")
    flags = main_flags(
        *(tiny_checkpoint, conversations_file, folder),
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        report_to="tensorboard",
        hub_token=SECRET,
        deepspeed=CONFIGS / "zero2.json",
    )
    run_ranks(_train_among_secrets, flags, world_size=2)
    return folder


def _train_among_secrets(flags: list[str]) -> None:
    os.environ.update(dict.fromkeys(VARIABLES, SECRET))
    train_and_log(flags)


def test_no_file_of_a_run_holds_a_secret(output: Path) -> None:
    files = [path for path in output.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_no_file_of_a_run_is_a_pickle_or_a_program(output: Path) -> None:
    files = [path for path in output.rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix in EXECUTED_WHEN_LOADED or os.access(path, os.X_OK)] == []


def test_every_file_has_the_mode_that_the_umask_asks_for(output: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in output.rglob("*") if path.is_file()}
    assert {name: mode for name, mode in modes.items() if mode != 0o666 & ~mask} == {}
