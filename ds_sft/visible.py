"""Makes any text safe to print: what would move the cursor, hide or reorder characters is shown instead of obeyed."""

import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories without a shape of their own: controls, formats such as bidi overrides, and line separators."""
_PICTURES = 0x2400
_DELETE, _DELETE_PICTURE = "\x7f", "\u2421"


def visible(text: str) -> str:
    """Show control characters instead of sending them; line feeds stay.

    Args:
        text: Any text.

    Returns:
        The same with `␛` for escape, `␍` for carriage return and so on, and `<U+202E>` for those without a picture.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character == "\n" or unicodedata.category(character) not in _HIDDEN:
        return character
    if character < " ":
        return chr(_PICTURES + ord(character))
    return _DELETE_PICTURE if character == _DELETE else f"<U+{ord(character):04X}>"
