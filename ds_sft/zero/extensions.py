"""Where DeepSpeed's and torch's compiled extensions lie, and a word about the lock that a killed build leaves there.

A process that finds such a lock waits for its builder for ever and says nothing (pytorch issue 189245); torch 2.13 has
no owner in it. Drop the watch when the oldest torch we take locks with a file of the system (pytorch pull 190543).
"""

import logging
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from ds_sft.config.caches import cache_folder

log = logging.getLogger(__name__)

_VARIABLE = "TORCH_EXTENSIONS_DIR"


def own_extensions_folder() -> Path:
    """Let extensions be compiled into a folder of these versions of torch, DeepSpeed, Python and CUDA.

    torch's own choice knows only Python's and CUDA's: after an update it would load what an older one compiled.

    Returns:
        The folder; the user's, if TORCH_EXTENSIONS_DIR names one.
    """
    if not os.environ.get(_VARIABLE):
        python = f"py{sys.version_info.major}{sys.version_info.minor}"
        name = "_".join((version("torch"), version("deepspeed"), python, _accelerator()))
        os.environ[_VARIABLE] = str(cache_folder() / "torch_extensions" / name)
    return Path(os.environ[_VARIABLE])


@contextmanager
def watch_build_locks(
    after_seconds: float = 60.0, *, every_seconds: float = 60.0, clock: Callable[[], float] = time.time
) -> Iterator[None]:
    """Warn of locks under which nothing may be building any more, for as long as the block runs.

    Args:
        after_seconds: Time before the first look, and youngest age of a lock that is told.
        every_seconds: Time between two looks.
        clock: Gives the time that files are dated with.

    Yields:
        Nothing.
    """
    ended = threading.Event()
    looking = threading.Thread(
        target=_look, args=(ended, after_seconds, every_seconds, clock), name="build-locks", daemon=True
    )
    looking.start()
    try:
        yield
    finally:
        ended.set()
        looking.join()


def _accelerator() -> str:
    """Tell what torch was built for, without loading it."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        raise ImportError("torch is not installed")
    told = runpy.run_path(str(Path(found.origin).with_name("version.py")))
    if told["hip"]:
        return f"rocm{told['hip'].replace('.', '')}"
    return f"cu{told['cuda'].replace('.', '')}" if told["cuda"] else "cpu"


def _look(ended: threading.Event, after_seconds: float, every_seconds: float, clock: Callable[[], float]) -> None:
    pause = after_seconds
    while not ended.wait(pause):
        pause = every_seconds
        for lock, age_seconds in _ages(clock()):
            if age_seconds >= after_seconds:
                log.warning(
                    "%s: a build must end, but %s is %d s old; if no compiler runs (a killed build leaves it), delete "
                    "it",
                    _VARIABLE,
                    lock,
                    age_seconds,
                )


def _ages(now: float) -> Iterator[tuple[Path, float]]:
    folder = os.environ.get(_VARIABLE)
    for lock in sorted(Path(folder).glob("*/lock")) if folder else []:
        try:
            yield lock, now - lock.stat().st_mtime
        except FileNotFoundError:
            # Its build ended just now.
            continue
