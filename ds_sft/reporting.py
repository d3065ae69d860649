"""Who speaks, and how a run ends: rank zero tells, other ranks are heard only when they fail."""

import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable

from ds_sft.errors import (
    EXIT_BUG,
    EXIT_CONFIG,
    EXIT_INPUT_OUTPUT,
    EXIT_LAUNCH,
    EXIT_OUT_OF_MEMORY,
    EXIT_PERMISSION,
    DsSftError,
    PreemptedError,
)
from ds_sft.preemption import end_children
from ds_sft.visible import visible

_LINGER_SECONDS = 10.0
_MEMORY_WORDS = ("out of memory", "can't allocate memory")


def rank() -> int:
    """Give the rank that the launcher gave this process.

    Returns:
        0 without a launcher.
    """
    return int(os.environ.get("RANK", "0"))


def set_up_logging() -> None:
    """Let rank zero log plain lines to stderr; other ranks only errors, with their name in front."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_made_visible)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s" if rank() else "%(message)s"))
    logger = logging.getLogger("ds_sft")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.ERROR if rank() else logging.INFO)
    logging.captureWarnings(capture=True)
    if rank():
        logging.getLogger("transformers").setLevel(logging.ERROR)
    for noisy in ("py.warnings", "DeepSpeed", "torch.distributed.run"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _made_visible(record: logging.LogRecord) -> bool:
    """Show control characters of what users wrote instead of sending them to a terminal."""
    record.msg, record.args = visible(record.getMessage()), None
    return True


def run(main: Callable[[], object]) -> None:
    """Run a program and turn every way it can fail into lines on stderr and a documented exit code.

    Args:
        main: The program.
    """
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except PreemptedError as error:
        _end_in_order(error)
    except DsSftError as error:
        # The fault is usually the same on every rank of a host: one of them tells it.
        _end(error.faults, error.exit_code, everyone_speaks=False)
    except MemoryError as error:
        _end([_memory_line(error)], EXIT_OUT_OF_MEMORY, everyone_speaks=True)
    except PermissionError as error:
        _end([f"{error.filename}: must be accessible, but {error.strerror}; check its mode"], EXIT_PERMISSION, True)
    except ImportError as error:
        _end(
            [f"package: must be installed, but {error}; install it or drop the flag that asks for it"],
            EXIT_CONFIG,
            True,
        )
    except OSError as error:
        if not error.filename:
            traceback.print_exc()
        where = f"{error.filename}: " if error.filename else ""
        _end([f"{where}{error.strerror or error}"], EXIT_INPUT_OUTPUT, everyone_speaks=True)
    except Exception as error:  # the outermost frame: a bug must end in its own code too
        traceback.print_exc()
        line, code = _diagnosis(error)
        _end([line], code, everyone_speaks=True)


def _end_in_order(error: PreemptedError) -> None:
    """End all ranks at once, for the same reason: nobody may be left to kill those that linger."""
    for line in error.faults if rank() == 0 else ():
        print(visible(line), file=sys.stderr, flush=True)
    _end([], error.exit_code, everyone_speaks=True)


def _diagnosis(error: Exception) -> tuple[str, int]:
    """Tell what an exception of a library means, and its exit code."""
    if any(word in str(error).lower() for word in _MEMORY_WORDS):
        return _memory_line(error), EXIT_OUT_OF_MEMORY
    if "no space left" in str(error).lower():
        return f"disk: must have room, but {str(error).splitlines()[0]}; free some space", EXIT_INPUT_OUTPUT
    if "connection closed by peer" in str(error).lower() or any(
        kind.__name__ == "DistError" for kind in type(error).__mro__
    ):
        # torch.distributed's base class, by name: this module must not load torch.
        first = str(error).splitlines()[0]
        return f"launch: all ranks must reach each other, but {first}; check the hosts and --master_port", EXIT_LAUNCH
    return f"this is a bug in ds_sft: {type(error).__name__}: {error}", EXIT_BUG


def _memory_line(error: BaseException) -> str:
    first = (str(error).splitlines() or ["out of memory"])[0]
    return (
        f"memory: the run must fit, but {first}; lower --per_device_train_batch_size, add --gradient_checkpointing "
        "True, or take the next file in ds_configs/README.md"
    )


def _end(lines: "list[str] | tuple[str, ...]", code: int, everyone_speaks: bool) -> None:
    if not everyone_speaks and os.environ.get("LOCAL_RANK", "0") != "0":
        # The launcher kills all ranks as soon as one ends, so the first rank of the host ends this wait after telling
        # the fault. If it does not, the fault is this rank's own.
        time.sleep(_LINGER_SECONDS)
    name = f"[rank {rank()} host {socket.gethostname()}] " if rank() else ""
    for line in lines:
        print(f"{name}error: {visible(line)}", file=sys.stderr, flush=True)
    # Not sys.exit: after a fault, other ranks may hang in a collective, and the interpreter's shutdown with them.
    sys.stdout.flush()
    sys.stderr.flush()
    end_children()
    os._exit(code)
