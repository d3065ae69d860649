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
            yaml.constructor.ConstructorError: When a key stands there twice, or is a list or mapping itself.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, f"a key must be plain text, but is a {key.id}", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node and refuse aliases, which a small file could unfold into gigabytes, and tags.

        Args:
            parent: As in PyYAML.
            index: As in PyYAML.

        Returns:
            The node.

        Raises:
            yaml.composer.ComposerError: At an alias or a tag.
        """
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # types-PyYAML leaves it untyped
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", mark)
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag:
            raise yaml.composer.ComposerError(None, None, f"tags ({event.tag}) are not read", mark)
        return super().compose_node(parent, index)


# YAML 1.1 reads `no` as false, and `save_strategy: no` would mean something else; 1.2 knows true and false only.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
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
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise ConfigError(f"{path}: recipe must have at most {_MOST_BYTES} bytes, but has {size}; is it a recipe?")
    try:
        # S506 is about unsafe loaders; ours is a SafeLoader with more refusals.
        content = yaml.load(path.read_text(encoding="utf-8", errors="replace"), Loader=_Loader)  # noqa: S506
        flags = [_flag(str(name), value) for name, value in content.items()] if isinstance(content, dict) else None
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError, TypeError) as error:
        raise ConfigError(f"{path}: recipe must be plain YAML, but: {_one_line(error)}; mend that line") from error
    if flags is None:
        kind = type(content).__name__
        raise ConfigError(f"{path}: recipe must map flag names to values, but is a {kind}; write `name: value` lines")
    return [word for flag in flags for word in flag]


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
