"""Trained tokens can be told from masked ones with colour and without, and no text reaches the terminal's controls."""

import io

from rich.console import Console
from rich.text import Text

from ds_sft.tools.render import heading, legend, render
from ds_sft.tools.samples import Piece, Sample

SAMPLE = Sample(
    record=7,
    identity="v01",
    index=2,
    input_ids=[5, 3, 6, 2],
    labels=[-100, -100, 6, 2],
    sides={
        "target": (
            Piece("text", "question", False, 1),
            Piece("sep", "<sep>", False, 1),
            Piece("text", "answer", True, 1),
            Piece("eod", "<eod>", True, 1),
        )
    },
    num_cut=0,
)
PAIR = Sample(
    record=1,
    identity="",
    index=0,
    input_ids=[5],
    labels=[6, 7],
    sides={"source": (Piece("text", "q", False, 1),), "target": (Piece("text", "a", True, 2),)},
    num_cut=4,
)


def printed(text: Text) -> str:
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system="standard", soft_wrap=True, _environ={}).print(text)
    return out.getvalue()


def test_the_heading_tells_the_place_and_the_share_of_trained_tokens() -> None:
    assert heading(SAMPLE) == "record 7 'v01', sample 2: 2 of 4 tokens trained (50 %)"
    assert heading(PAIR) == "record 1, sample 0: 2 of 3 tokens trained (67 %)"


def test_without_colour_trained_stretches_stand_in_double_brackets() -> None:
    assert render(SAMPLE, is_coloured=False).plain.splitlines()[1] == "question<sep>[[answer<eod>]]"


def test_without_colour_no_style_is_left() -> None:
    assert "\x1b" not in printed(render(SAMPLE, is_coloured=False))


def test_with_colour_trained_is_green_and_underlined_masked_dim_and_control_inverse() -> None:
    # SGR: 1 bold, 2 dim, 4 underline, 7 inverse, 32 green.
    assert printed(render(SAMPLE, is_coloured=True)).splitlines()[1] == (
        "\x1b[2mquestion\x1b[0m\x1b[2;7m<sep>\x1b[0m\x1b[4;32manswer\x1b[0m\x1b[4;7;32m<eod>\x1b[0m"
    )


def test_an_encoders_side_and_the_decoders_are_shown_apart() -> None:
    assert render(PAIR, is_coloured=False).plain.splitlines()[1:] == [
        "source, 1 tokens:",
        "q",
        "target, 2 tokens:",
        "[[a]]⟂ 4 tokens cut",
    ]


def test_control_characters_of_a_text_are_shown_and_not_sent() -> None:
    evil = Sample(
        record=1,
        identity="\x1b]0;title\x07\u202e",
        index=0,
        input_ids=[1],
        labels=[1],
        sides={"target": (Piece("text", "\x1b[2J\r\x07\u202e\x9b[bold red]\n", True, 1),)},
        num_cut=0,
    )
    shown = printed(render(evil, is_coloured=False))
    assert shown == (
        "record 1 '\\x1b]0;title\\x07\\u202e', sample 0: 1 of 1 tokens trained (100 %)\n"
        "[[␛[2J␍␇<U+202E><U+009B>[bold red]↵\n]]\n\n"
    )


def test_the_legend_says_what_the_marks_mean() -> None:
    assert legend(is_coloured=False).plain == "[[trained]] masked"
    assert "\x1b[4;32mtrained\x1b[0m" in printed(legend(is_coloured=True))
