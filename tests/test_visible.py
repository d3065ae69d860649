"""No character that a terminal obeys, or that hides or reorders others, is printed as it is."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_sft.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "␛[31mred"),
        ("\x07", "␇"),
        ("a\rb\tc", "a␍b␉c"),
        ("\x7f", "␡"),
        ("\x9b2J", "<U+009B>2J"),
        ("\u202eabc\u2066", "<U+202E>abc<U+2066>"),
        ("zero\u200bwidth\ufeff", "zero<U+200B>width<U+FEFF>"),
        ("line\u2028end", "line<U+2028>end"),
        ("tag\U000e0041", "tag<U+E0041>"),
        ("half\ud800", "half<U+D800>"),
    ],
)
def test_controls_are_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    "text", ["", "plain", "two\nlines", "中文，标点", "é e\u0301", "😀", "مرحبا", "a\u00a0b\u3000c"]
)
def test_ordinary_text_of_any_script_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


@given(st.text())
def test_nothing_that_is_obeyed_is_left(text: str) -> None:
    left = {unicodedata.category(character) for character in visible(text).replace("\n", "")}
    assert left.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
