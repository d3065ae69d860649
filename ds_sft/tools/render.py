"""Samples for the terminal: trained tokens green and underlined, or in double brackets where there is no colour."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.text import Text

from ds_sft.tools.samples import Piece, Sample
from ds_sft.visible import visible

_TRAINED = "green underline"
_MASKED = "dim"
_CONTROL = "reverse"
_CUT = "\u27c2"
_LINE_FEED = "\u21b5\n"


def legend(*, is_coloured: bool) -> Text:
    """Explain the look.

    Args:
        is_coloured: Whether the terminal shows styles.

    Returns:
        One line.
    """
    if not is_coloured:
        return Text("[[trained]] masked")
    return Text(" ").join(
        [Text("trained", _TRAINED), Text("masked", _MASKED), Text("control token", f"{_MASKED} {_CONTROL}")]
    )


def render(sample: Sample, *, is_coloured: bool) -> Text:
    """Show a sample.

    Args:
        sample: Ids and labels, read back.
        is_coloured: Whether the terminal shows styles.

    Returns:
        A heading, then every side of the sample.
    """
    lines = [Text(heading(sample), "bold" if is_coloured else "")]
    for side, pieces in sample.sides.items():
        if len(sample.sides) > 1:
            lines.append(Text(f"{side}, {sum(piece.num_tokens for piece in pieces)} tokens:"))
        shown = _styled(pieces) if is_coloured else _bracketed(pieces)
        lines.append(shown + Text(f"{_CUT} {sample.num_cut} tokens cut") if _is_cut(sample, side) else shown)
    return Text("\n").join(lines) + Text("\n")


def heading(sample: Sample) -> str:
    """Tell where a sample comes from and how much of it is trained.

    Args:
        sample: Any sample.

    Returns:
        One line.
    """
    name = f" {sample.identity!r}" if sample.identity else ""
    share = 100 * sample.num_trained / max(1, sample.num_tokens)
    trained = f"{sample.num_trained} of {sample.num_tokens} tokens trained ({share:.0f} %)"
    return f"record {sample.record}{name}, sample {sample.index}: {trained}"


def shown(piece: Piece) -> str:
    """Give the text of a piece, safe to print.

    Args:
        piece: Of a sample.

    Returns:
        The text with control characters shown, line feeds too.
    """
    return visible(piece.text).replace("\n", _LINE_FEED)


def _is_cut(sample: Sample, side: str) -> bool:
    return side == "target" and sample.num_cut > 0


def _styled(pieces: Sequence[Piece]) -> Text:
    text = Text()
    for piece in pieces:
        style = _TRAINED if piece.loss else _MASKED
        text.append(shown(piece), style if piece.kind == "text" else f"{style} {_CONTROL}")
    return text


def _bracketed(pieces: Sequence[Piece]) -> Text:
    return Text("".join(_spans(pieces)))


def _spans(pieces: Sequence[Piece]) -> Iterator[str]:
    for is_trained, run in groupby(pieces, key=lambda piece: piece.loss):
        text = "".join(shown(piece) for piece in run)
        yield f"[[{text}]]" if is_trained else text
