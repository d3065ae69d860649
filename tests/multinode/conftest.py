"""Two hosts for the tests of this folder, or the reason why there are none."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CONFIGS
from tests.jobs import main_flags
from tests.multinode.cluster import STEPS, Cluster
from tests.multinode.lab import Lab, obstacle


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test here; the rest of the collection passes through too."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.multinode)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two hosts that are up, with a hostfile."""
    reason = obstacle()
    if reason:
        pytest.skip(f"no hosts here: {reason}")
    with Lab(tmp_path_factory.mktemp("lab")) as lab:
        yield Cluster(lab)


@pytest.fixture(autouse=True)
def _clear(cluster: Cluster) -> Iterator[None]:
    """No test sees what another one has left."""
    yield
    cluster.clear()


@pytest.fixture(scope="session")
def flags(tiny_checkpoint: Path, conversations_file: Path) -> list[str]:
    """A short deterministic job under ZeRO-3, without its output folder."""
    named = main_flags(
        tiny_checkpoint, conversations_file, Path("OUT"),
        max_steps=STEPS, per_device_train_batch_size=2, deepspeed=CONFIGS / "zero3.json",
        save_strategy="steps", save_steps=4,
    )  # fmt: skip
    place = named.index("--output_dir")
    return named[:place] + named[place + 2 :]
