"""Extensions are compiled for the versions that load them, and a lock that blocks every start is told."""

import importlib.metadata
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ds_sft.zero import extensions
from ds_sft.zero.extensions import own_extensions_folder, watch_build_locks

ROOT = Path(__file__).parent.parent.parent
VARIABLE = "TORCH_EXTENSIONS_DIR"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, "DS_SFT_CACHE", "XDG_CACHE_HOME"):
        # Set first, so that what the function under test sets is undone too.
        monkeypatch.setenv(name, "")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of extensions."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


def leave_lock(folder: Path, *, age_seconds: float, now: float) -> Path:
    lock = folder / "shm_comm" / "lock"
    lock.parent.mkdir(exist_ok=True)
    lock.touch()
    os.utime(lock, (now - age_seconds,) * 2)
    return lock


def test_the_folder_is_that_of_all_versions_that_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cuda = torch.version.cuda
    parts = [
        torch.__version__,
        importlib.metadata.version("deepspeed"),
        f"py{sys.version_info.major}{sys.version_info.minor}",
        f"cu{cuda.replace('.', '')}" if cuda else "cpu",
    ]
    expected = tmp_path / ".cache" / "ds_sft" / "torch_extensions" / "_".join(parts)
    assert own_extensions_folder() == expected
    assert os.environ[VARIABLE] == str(expected)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("cuda = '12.8'\nhip = None", "cu128"),
        ("cuda = None\nhip = '6.4.2'", "rocm642"),
        ("cuda = None\nhip = None", "cpu"),
    ],
)
def test_builds_for_other_hardware_lie_elsewhere(
    told: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "version.py").write_text(f"from typing import Optional\n{told}\n", encoding="utf-8")
    monkeypatch.setattr(
        extensions, "find_spec", lambda name: importlib.machinery.PathFinder.find_spec(name, [str(tmp_path)])
    )
    assert own_extensions_folder().name.endswith(f"_{expected}")


@pytest.mark.parametrize(("name", "below"), [("DS_SFT_CACHE", ""), ("XDG_CACHE_HOME", "ds_sft")])
def test_the_folder_lies_in_our_cache(name: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, str(tmp_path))
    assert own_extensions_folder().parent == tmp_path / below / "torch_extensions"


def test_a_folder_of_the_user_stays(folder: Path) -> None:
    assert own_extensions_folder() == folder


def test_finding_the_folder_does_not_load_torch() -> None:
    program = "import sys; from ds_sft.zero.extensions import own_extensions_folder; own_extensions_folder(); "
    program += "print(*{'torch', 'deepspeed'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_an_old_lock_is_told_with_its_age_and_what_to_do(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = leave_lock(folder, age_seconds=90, now=1000)
    with watch_build_locks(0.05, every_seconds=60, clock=lambda: 1000):
        time.sleep(0.15)
    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    assert told.getMessage() == (
        f"TORCH_EXTENSIONS_DIR: a build must end, but {lock} is 90 s old; if no compiler runs (a killed build leaves "
        "it), delete it"
    )


def test_a_lock_is_told_again_and_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    leave_lock(folder, age_seconds=90, now=1000)
    with watch_build_locks(0.01, every_seconds=0.01, clock=lambda: 1000):
        time.sleep(0.2)
    assert len(caplog.records) >= 2


def test_a_young_lock_is_not_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    leave_lock(folder, age_seconds=0.01, now=1000)
    with watch_build_locks(0.05, every_seconds=0.01, clock=lambda: 1000):
        time.sleep(0.15)
    assert caplog.records == []


def test_nothing_is_told_before_its_time_and_the_end_is_not_waited_for(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave_lock(folder, age_seconds=90, now=1000)
    began = time.monotonic()
    with watch_build_locks(clock=lambda: 1000):
        pass
    assert time.monotonic() - began < 5
    assert caplog.records == []


@pytest.mark.parametrize("is_set", [True, False])
def test_a_folder_that_is_not_there_holds_no_lock(
    is_set: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if is_set:
        monkeypatch.setenv(VARIABLE, str(tmp_path / "new"))
    with watch_build_locks(0.01, every_seconds=0.01):
        time.sleep(0.05)
    assert caplog.records == []
