"""The main job for a launcher's ranks; each stands still at one point until a test lets it go on, and notes its code.

HOLD_AT names the point. In the folder HOLD_IN a rank leaves `held-RANK` and `code-RANK`, and waits for `go`.
"""

import os
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

PATIENCE_SECONDS = 300.0
ROOM = Path(__file__).parent.parent / "ds_sft"
POINTS: dict[str, tuple[str, str | None, int]] = {
    "import": ("ds_sft.training.trainer", None, 0),
    "tokenise": ("ds_sft.data.samples", "tokenise", 1),
    "load": ("ds_sft.model.load", "load_model", 1),
    "first step": ("ds_sft.model.loss", "token_mean_loss", 1),
    "step": ("ds_sft.model.loss", "token_mean_loss", 3),
    "save": ("ds_sft.save.state", "write_state", 1),
    "evaluate": ("ds_sft.training.loaders", "evaluation_batches", 1),
    # The first two are those of the checkpoints.
    "export": ("ds_sft.save.export", "write_index", 3),
    "end": ("ds_sft.zero.distributed", "leave", 1),
}
"""Point -> a module of the job, a function of it, and the call behind which a rank stands; without one, the import."""


def main(point: str, folder: Path) -> None:
    """Run the main job with the arguments of this program.

    Args:
        point: Of `POINTS`.
        folder: Where marks are.
    """
    own, leave = os.getpid(), os._exit

    def noted(status: int) -> NoReturn:
        if os.getpid() == own:
            _mark(folder, "code").write_text(str(status))
        leave(status)

    os._exit = noted
    sys.meta_path.insert(0, _Hook(*POINTS[point], folder=folder))
    # As Python does for a program.
    sys.path[0] = str(ROOM)
    runpy.run_path(str(ROOM / "train.py"), run_name="__main__")
    _mark(folder, "code").write_text("0")


class _Hook(MetaPathFinder):
    """Puts a halt into one module of the job when it is imported."""

    def __init__(self, module: str, function: str | None, call: int, *, folder: Path) -> None:
        self._module, self._function, self._call, self._folder = module, function, call, folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find that module; the others are found as ever."""
        if fullname != self._module:
            return None
        if self._function is None:
            _halt(self._folder)
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_put(module: ModuleType) -> None:
            load(module)
            name = str(self._function)
            setattr(module, name, _halting(getattr(module, name), self._call, self._folder))

        setattr(spec.loader, "exec_module", load_and_put)  # noqa: B010  # a method must not be assigned, says mypy
        return spec


def _halting(function: Callable[..., Any], call: int, folder: Path) -> Callable[..., Any]:
    calls = 0

    def with_halt(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        result = function(*given, **named)
        if calls == call:
            _halt(folder)
        return result

    return with_halt


def _halt(folder: Path) -> None:
    _mark(folder, "held").touch()
    until = time.monotonic() + PATIENCE_SECONDS
    while not (folder / "go").exists() and time.monotonic() < until:
        time.sleep(0.02)


def _mark(folder: Path, name: str) -> Path:
    return folder / f"{name}-{os.environ['RANK']}"


if __name__ == "__main__":
    main(os.environ["HOLD_AT"], Path(os.environ["HOLD_IN"]))
