"""The first command of the README: its parts in the default tier, all of it in the slow one."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(
    not (ROOT / ".venv" / ".installed").is_file(), reason="needs the .venv that launchers/env.sh makes"
)


def _quickstart(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.run(
        ["bash", str(ROOT / "launchers" / "quickstart.sh"), *flags],
        cwd=folder,  # it must work from any folder
        env=environment | {"QUICKSTART_DIR": str(folder / "quick start")},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_two_steps_go_through_every_part_and_a_model_that_learnt_nothing_is_told_apart(tmp_path: Path) -> None:
    done = _quickstart(tmp_path, "--max_steps", "2")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 of 8 answers are exact" in done.stdout
    assert "up to date" in done.stdout, "a second run must not install anything"
    assert (tmp_path / "quick start" / "flan_t5" / "tuned" / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["flan_t5", "yuan2"])
def test_the_quick_start_repeats_at_least_seven_of_eight_answers(family: str, tmp_path: Path) -> None:
    done = _quickstart(tmp_path, family)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(f"{count} of 8 answers are exact" in done.stdout for count in (7, 8))
