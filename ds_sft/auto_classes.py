"""Lets transformers' auto classes know our models after `import ds_sft`, without importing transformers for it.

A family's classes are registered as soon as the module of the auto class and the family's own module are both there,
in whichever order they come: looking at data must not load torch, and either module may import the other on its way.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

_AUTO = "transformers.models.auto"
_WATCHED = tuple(f"{_AUTO}.{name}" for name in ("configuration_auto", "modeling_auto", "tokenization_auto"))
_IMPORTS_AUTO = "transformers.modeling_layers"
"""Imports the auto classes before it has defined what our models need; they are registered when it is done."""
_FAMILIES = "ds_sft.families"
_running: set[str] = set()
"""Watched modules whose code is running now: their classes may not exist yet."""


def watch() -> None:
    """Register every family now or when the time comes."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _register_what_is_there()


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
        is_watched = fullname in (*_WATCHED, _IMPORTS_AUTO) or fullname.startswith(f"{_FAMILIES}.")
        spec = PathFinder.find_spec(fullname, path) if is_watched else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Loads a module and then registers what that completes."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code.

        Args:
            module: The new module.
        """
        _running.add(module.__name__)
        try:
            super().exec_module(module)
        finally:
            _running.discard(module.__name__)
        _register_what_is_there()


def _register_what_is_there() -> None:
    loaded = [name for name in _WATCHED if name in sys.modules and name not in _running]
    if not loaded or any(name.endswith(".family") or name == _IMPORTS_AUTO for name in _running):
        # Whoever reads the cards right now goes on with this when they are read.
        return
    # By name: the package stands below its own rooms, so it must not import them.
    for family in import_module(_FAMILIES).all_families():
        for auto in loaded:
            ours = family.auto_modules.get(auto.removeprefix(f"{_AUTO}."))
            if ours is not None and ours not in _running:
                import_module(ours).register(sys.modules[auto])
