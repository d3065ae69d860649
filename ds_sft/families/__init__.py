"""Finds the families: every folder here with a `family.py` that holds a `FAMILY` card. There is no list to maintain."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ds_sft.contracts import Family
from ds_sft.errors import ConfigError


def all_families() -> Iterator[Family]:
    """Give the card of every family, by folder name.

    Yields:
        One card for each folder.
    """
    for card in sorted(Path(__file__).parent.glob("*/family.py")):
        yield import_module(f"{__name__}.{card.parent.name}.family").FAMILY


def family_named(name: str) -> Family:
    """Give the card of one family.

    Args:
        name: Its folder's name.

    Returns:
        The card.

    Raises:
        ConfigError: When there is no such family.
    """
    cards = {family.name: family for family in all_families()}
    if name not in cards:
        raise ConfigError(f"family: must be one of {', '.join(cards)}, but is {name!r}; pick one of those")
    return cards[name]


def family_of(config: Mapping[str, Any], *, folder: Path) -> Family:
    """Find the family of a checkpoint by its own `model_type`, never by a name in a path.

    Args:
        config: Content of its config.json.
        folder: The checkpoint, for the message.

    Returns:
        The card.

    Raises:
        ConfigError: When no family trains that model type.
    """
    found = config.get("model_type")
    families = list(all_families())
    for family in families:
        if found in family.model_types:
            return family
    known = ", ".join(f"{kind} ({family.name})" for family in families for kind in family.model_types)
    raise ConfigError(
        f"{folder / 'config.json'}: model_type must be one of {known}, but is {found!r}; "
        "choose a checkpoint of one of these families"
    )
