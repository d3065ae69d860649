"""Every way a program can end has its exit code and its line; shown by programs of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def end(body: str, **environment: str) -> tuple[int, str]:
    """Run a main function in a process of its own and give exit code and stderr."""
    program = f"""
import os
from ds_sft import reporting
from ds_sft.errors import *
def main():
    {body}
reporting.run(main)
"""
    clean = {name: value for name, value in os.environ.items() if name not in {"RANK", "LOCAL_RANK"}}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_program_that_ends_well_has_code_zero_and_says_nothing() -> None:
    assert end("pass") == (0, "")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("UsageError", 2),
        ("ConfigError", 64),
        ("DataError", 65),
        ("ModelError", 65),
        ("MissingInputError", 66),
        ("LaunchError", 69),
        ("SaveError", 74),
        ("PermissionRefusedError", 77),
    ],
)
def test_a_fault_of_the_user_has_its_code_and_a_line_each_without_a_traceback(kind: str, code: int) -> None:
    assert end(f"raise {kind}('a: must be b, but is c; do d', 'second')") == (
        code,
        "error: a: must be b, but is c; do d\nerror: second\n",
    )


def test_a_bug_has_code_70_with_traceback_and_a_last_line_that_says_so() -> None:
    code, told = end("raise RuntimeError('odd')")
    assert code == 70
    assert told.startswith("Traceback (most recent call last):")
    assert told.endswith("error: this is a bug in ds_sft: RuntimeError: odd\n")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise MemoryError", "out of memory"),
        ("raise MemoryError('no room')", "no room"),
        (r"raise RuntimeError('CUDA out of memory. Tried 2 GiB\nmore')", "CUDA out of memory. Tried 2 GiB"),
        (
            "raise RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')",
            "DefaultCPUAllocator: can't allocate memory",
        ),
    ],
)
def test_too_little_memory_has_code_71_and_advice(body: str, reason: str) -> None:
    code, told = end(body)
    assert code == 71
    assert told.splitlines()[-1] == (
        f"error: memory: the run must fit, but {reason}; lower --per_device_train_batch_size, add "
        "--gradient_checkpointing True, or take the next file in ds_configs/README.md"
    )


def test_ranks_that_do_not_reach_each_other_have_code_69() -> None:
    code, told = end("import torch; raise torch.distributed.DistNetworkError('port 29500 is taken\\nC++ frames')")
    assert code == 69
    assert told.splitlines()[-1] == (
        "error: launch: all ranks must reach each other, but port 29500 is taken; check the hosts and --master_port"
    )


def test_a_full_disk_has_code_74_and_names_the_file() -> None:
    code, told = end("raise OSError(28, 'No space left on device', '/out/model')")
    assert code == 74
    assert told.endswith("error: /out/model: No space left on device\n")


def test_a_refused_file_has_code_77_and_names_it() -> None:
    assert end("raise PermissionError(13, 'Permission denied', '/out/model')") == (
        77,
        "error: /out/model: must be accessible, but Permission denied; check its mode\n",
    )


def test_an_interrupt_has_the_code_of_the_shell() -> None:
    assert end("raise KeyboardInterrupt") == (130, "")


def test_a_program_that_ends_itself_keeps_its_code() -> None:
    assert end("raise SystemExit(0)") == (0, "")


def test_threads_that_hang_do_not_keep_a_failed_process_alive() -> None:
    body = "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start(); raise DataError('x')"
    assert end(body) == (65, "error: x\n")


def test_a_second_rank_of_a_host_waits_for_the_first_to_tell_the_fault() -> None:
    body = "reporting.time.sleep = lambda seconds: os._exit(9 if seconds >= 5 else 1); raise DataError('x')"
    assert end(body, RANK="1", LOCAL_RANK="1") == (9, "")


def test_a_fault_of_a_second_rank_alone_is_told_after_the_wait() -> None:
    body = "reporting._LINGER_SECONDS = 0.1; raise DataError('x')"
    code, told = end(body, RANK="1", LOCAL_RANK="1")
    assert code == 65
    assert told.startswith("[rank 1 host ")
    assert told.endswith("] error: x\n")


def test_a_package_that_is_not_installed_has_code_64() -> None:
    assert end("raise ImportError('no wandb')") == (
        64,
        "error: package: must be installed, but no wandb; install it or drop the flag that asks for it\n",
    )


def test_a_full_disk_told_by_a_library_has_code_74() -> None:
    code, told = end("raise RuntimeError('write failed: No space left on device')")
    assert code == 74
    assert told.splitlines()[-1].startswith("error: disk: must have room, but write failed")


def test_the_first_rank_of_another_host_tells_with_its_name() -> None:
    code, told = end("raise DataError('x')", RANK="8", LOCAL_RANK="0")
    assert code == 65
    assert told.startswith("[rank 8 host ")
    assert told.endswith("] error: x\n")


def test_a_bug_is_told_by_every_rank() -> None:
    code, told = end("raise RuntimeError('odd')", RANK="1", LOCAL_RANK="1")
    assert code == 70
    assert "[rank 1 host " in told.splitlines()[-1]


@pytest.mark.parametrize(("rank", "lines"), [("0", "told\nwarned\nfailed\n"), ("1", "ERROR: failed\n")])
def test_rank_zero_logs_plain_lines_and_others_only_errors(rank: str, lines: str) -> None:
    body = (
        "import logging; reporting.set_up_logging(); log = logging.getLogger('ds_sft.x'); "
        "log.debug('no'); log.info('told'); log.warning('warned'); log.error('failed')"
    )
    assert end(body, RANK=rank) == (0, lines)


def test_warnings_of_libraries_are_not_shown() -> None:
    assert end("import warnings; reporting.set_up_logging(); warnings.warn('old')") == (0, "")


def test_control_characters_in_lines_of_a_log_or_a_fault_are_shown_and_not_sent() -> None:
    body = r"""import logging; reporting.set_up_logging(); logging.getLogger("ds_sft.x").info("role %s", "\x1b[2J")
    raise DataError("a\rb\u202e")"""
    assert end(body, PYTHONIOENCODING="utf-8") == (65, "role ␛[2J\nerror: a␍b<U+202E>\n")
