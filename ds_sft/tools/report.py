"""Puts the findings of a data file into words, and into one JSON object."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from ds_sft.tools.findings import Findings
from ds_sft.visible import visible

_NOT_ABOUT_RECORDS = ("records", "usable", "samples", "tokens_", "text_")
"""How the names of those counters begin that have lines of their own."""
_BAR = 40


def as_dict(findings: Findings, *, path: str) -> dict[str, Any]:
    """Give all findings as plain values.

    Args:
        findings: Of the whole file.
        path: Of the file.

    Returns:
        Values for JSON.
    """
    counters = findings.counters
    return {
        "file": path,
        **{name: counters[name] for name in ("records", "usable", "samples")},
        "dropped": {
            name: {"count": count, "places": findings.places.get(name, [])} for name, count in _dropped(counters)
        },
        "tokens": {name: counters[f"tokens_{name}"] for name in ("total", "supervised", "truncated")},
        "lengths": {side: _histogram(lengths) for side, lengths in findings.lengths.items()},
        "unknown_tokens": _share(counters["text_unknown"], counters["text_tokens"]),
        "lost_whitespace": _share(counters["text_whitespace_lost"], counters["text_whitespace"]),
        "control_strings": {
            token: {"messages": count, "places": findings.places.get(token, [])}
            for token, count in sorted(findings.control_strings.items())
        },
    }


def as_lines(findings: Findings, *, path: str) -> Iterator[str]:
    """Put all findings into words.

    Args:
        findings: Of the whole file.
        path: Of the file.

    Yields:
        Lines, safe to print.
    """
    told = as_dict(findings, path=path)
    yield visible(f"{path}: {told['records']} records, {told['usable']} usable, {told['samples']} samples")
    tokens = told["tokens"]
    supervised = _percent(_share(tokens["supervised"], tokens["total"]))
    yield f"tokens: {tokens['total']} total, {tokens['supervised']} supervised ({supervised})"
    yield f"        {tokens['truncated']} of answers cut off by --model_max_length"
    yield f"unknown tokens: {_told_share(told['unknown_tokens'], 'tokens of the messages')}"
    yield f"lost whitespace: {_told_share(told['lost_whitespace'], 'whitespace characters of the messages')}"
    for side, bins in told["lengths"].items():
        yield "length in tokens:" if side == "sequence" else f"length of {side} in tokens:"
        yield from _bars(bins)
    yield from _told_places("rejected, merged, dropped or cut", told["dropped"], "count")
    yield from _told_places("messages that spell a control token (kept as text)", told["control_strings"], "messages")


def rejected_places(findings: Findings) -> list[str]:
    """List the first rejected records.

    Args:
        findings: Of the whole file.

    Returns:
        One line for each, with its reason.
    """
    return [place for name, places in findings.places.items() for place in places if name.startswith("rejected_")]


def _dropped(counters: Counter[str]) -> list[tuple[str, int]]:
    named = [(name, count) for name, count in counters.items() if not name.startswith(_NOT_ABOUT_RECORDS)]
    return sorted((name, count) for name, count in named if count)


def _share(count: int, total: int) -> dict[str, float]:
    return {"count": count, "of": total, "share": count / total if total else 0.0}


def _percent(share: dict[str, float]) -> str:
    return f"{100 * share['share']:.2f} %"


def _told_share(share: dict[str, float], what: str) -> str:
    return f"{share['count']} of {share['of']} {what} ({_percent(share)})"


def _histogram(lengths: Counter[int]) -> list[dict[str, int]]:
    """Count samples by length in classes that double."""
    classes: Counter[int] = Counter()
    for length, count in lengths.items():
        classes[max(0, length - 1).bit_length()] += count
    longest = max(lengths)
    return [
        {"from": (1 << power - 1) + 1 if power else 0, "to": min(1 << power, longest), "samples": classes[power]}
        for power in range(min(classes), max(classes) + 1)
    ]


def _bars(bins: list[dict[str, int]]) -> Iterator[str]:
    most = max(one["samples"] for one in bins)
    for one in bins:
        bar = "#" * -(-_BAR * one["samples"] // most)
        yield f"  {one['from']:>7} to {one['to']:<7} {one['samples']:>8} {bar}".rstrip()


def _told_places(title: str, found: dict[str, dict[str, Any]], count: str) -> Iterator[str]:
    if found:
        yield f"{title}:"
    for name, one in found.items():
        yield visible(f"  {one[count]} {name}")
        yield from (visible(f"      {place}") for place in one["places"])
