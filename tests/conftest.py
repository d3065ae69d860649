"""What every test may use: a tiny checkpoint, the shipped conversations, and golden files."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported anywhere: forked ranks must not inherit a pool of threads.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "ds_configs"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our own switches."""
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tokenised samples of tests stay out of the user's cache; ranks and programs are started later and inherit it."""
    os.environ["DS_SFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _own_logger() -> Iterator[None]:
    """A program that ran in this process set our logger up: no other test sees that, or each of its lines twice."""
    _as_it_was_imported(logging.getLogger("ds_sft"))
    yield
    _as_it_was_imported(logging.getLogger("ds_sft"))


def _as_it_was_imported(logger: logging.Logger) -> None:
    logger.handlers = []
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the package logs."""
    caplog.set_level(logging.INFO, logger="ds_sft")
    return caplog


@pytest.fixture(scope="session")
def conversations_file() -> Path:
    """The conversations that the quick start ships."""
    return ROOT / "launchers" / "quickstart" / "conversations.json"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, conversations_file: Path) -> Path:
    """A tiny Flan-T5-shaped checkpoint with an untied head."""
    return _tiny("flan_t5", tmp_path_factory, conversations_file)


@pytest.fixture(scope="session")
def tiny_yuan2(tmp_path_factory: pytest.TempPathFactory, conversations_file: Path) -> Path:
    """A tiny Yuan2-shaped checkpoint, as an official folder has it."""
    return _tiny("yuan2", tmp_path_factory, conversations_file)


def _tiny(family: str, tmp_path_factory: pytest.TempPathFactory, conversations_file: Path) -> Path:
    from ds_sft.data.read import read_conversations, texts_of
    from ds_sft.families import family_named

    folder = tmp_path_factory.mktemp("tiny")
    family_named(family).write_tiny_checkpoint(folder, texts_of(read_conversations(conversations_file)))
    return folder
