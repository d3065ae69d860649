"""The fault injector, compiled once, and ranks that run under it."""

from pathlib import Path

import pytest

from tests.faults import shim
from tests.faults.runner import FaultyRanks


@pytest.fixture(scope="session")
def crashfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library for LD_PRELOAD."""
    built = shim.build(tmp_path_factory.mktemp("crashfs"))
    if isinstance(built, str):
        pytest.skip(built)
    return built


@pytest.fixture(scope="session")
def faulty_ranks(crashfs: Path) -> FaultyRanks:
    """Runs jobs on ranks that may meet faults; used like `run_ranks`."""
    return FaultyRanks(crashfs)
