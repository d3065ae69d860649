"""The process group starts without a launcher too, and a CPU run is never left without DeepSpeed."""

from tests.jobs import start_alone
from tests.ranks import run_ranks


def test_without_a_launcher_one_rank_starts_on_a_free_port() -> None:
    found = run_ranks(start_alone, world_size=1)[0]
    assert found["is_initialized"] is True
    assert found["world_size"] == 1
    assert found["backend"] == "gloo"


def test_the_variable_that_makes_accelerate_leave_deepspeed_out_is_removed() -> None:
    assert run_ranks(start_alone, world_size=1)[0]["ACCELERATE_USE_CPU"] is None


def test_the_shared_memory_extension_is_not_compiled() -> None:
    assert run_ranks(start_alone, world_size=1)[0]["builds_shm"] is False
