"""Lets transformers' auto classes know our models after `import ds_sft`, without importing transformers for it.

Each of the modules watched here calls the families right after it was imported, be that now or later: looking at data
must not load torch, and a program that only asks `AutoConfig` must not load a model.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

WATCHED = tuple(
    f"transformers.models.auto.{name}" for name in ("configuration_auto", "modeling_auto", "tokenization_auto")
)


def watch() -> None:
    """Register the families with every watched module that is loaded, and with the others when they will be."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for name in WATCHED:
        if name in sys.modules:
            _tell(name)


class _Finder(MetaPathFinder):
    """Finds the watched modules where everybody else does, but with a loader that tells us."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a watched module.

        Args:
            fullname: The module's name.
            path: Where its package lies.
            target: Unused.

        Returns:
            Its spec; None for any other module.
        """
        spec = PathFinder.find_spec(fullname, path) if fullname in WATCHED else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Loads a module and then tells the families."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code.

        Args:
            module: The new module.
        """
        super().exec_module(module)
        _tell(module.__name__)


def _tell(module: str) -> None:
    # By name: the package stands below its own rooms, so it must not import them.
    for family in import_module("ds_sft.families").all_families():
        family.register(module)
