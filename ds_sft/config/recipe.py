"""Reads a YAML recipe: the same names as the flags, one value each; flags on the command line win."""

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ds_sft.errors import ConfigError, MissingInputError

_MOST_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """YAML without tags, aliases or double keys, and with `1e-4` read as the number it is in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Read a mapping and refuse a key that stands in it twice.

        Args:
            node: The mapping.
            deep: As in PyYAML.

        Returns:
            The mapping.

        Raises:
            yaml.constructor.ConstructorError: When a key stands there twice.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node and refuse aliases, which a small file could unfold into gigabytes.

        Args:
            parent: As in PyYAML.
            index: As in PyYAML.

        Returns:
            The node.

        Raises:
            yaml.composer.ComposerError: At an alias.
        """
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]  # the stubs leave it untyped
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", event.start_mark)
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def recipe_arguments(path: Path) -> list[str]:
    """Read a recipe as the flags it stands for.

    Args:
        path: A YAML file that maps flag names to values.

    Returns:
        Flags and values, to be put in front of those of the command line.

    Raises:
        MissingInputError: When there is no such file.
        ConfigError: When it is not such a mapping; names the line.
    """
    if not path.is_file():
        raise MissingInputError(
            f"recipe: file must exist, but {path} does not; check the path (flags begin with two dashes)"
        )
    text = path.read_text(encoding="utf-8", errors="replace")[:_MOST_BYTES]
    try:
        # S506 is about unsafe loaders; ours is a SafeLoader with more refusals.
        content = yaml.load(text, Loader=_Loader)  # noqa: S506
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: recipe must be plain YAML, but: {_one_line(error)}; mend that line") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ConfigError(f"{path}: recipe must map flag names to values, but is a {kind}; write `name: value` lines")
    return [word for name, value in content.items() for word in _flag(str(name), value)]


def _flag(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, dict):
        return [f"--{name}", json.dumps(value)]
    if isinstance(value, list):
        return [f"--{name}", *(str(item) for item in value)]
    return [f"--{name}", str(value)]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
