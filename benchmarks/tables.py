"""Results as Markdown; the tables of the pages are written by `python -m benchmarks.tables` and never by hand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "training_cpu.json"
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"

_HEADS = ("supervised tokens/s", "padding", "of the best product", "steps", "MiB above the model")


def tables(results: Mapping[str, Any]) -> str:
    """Write results as Markdown.

    Args:
        results: As `python -m benchmarks.run` writes them.

    Returns:
        What was measured where, and a table for each workload.
    """
    host, load = results["host"], results["load"]
    peak = ", ".join(f"{name} {value:g} GFLOP/s" for name, value in results["peak"].items())
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    told = (
        f"Measured {results['date']} on {host['processor']} ({host['cores']} cores), load {load['begin']} to "
        f"{load['end']}; {results['clock']}; {versions}; best matrix product {peak}."
    )
    return "\n\n".join([told, *(_table(name, workload) for name, workload in results["workloads"].items())])


def with_tables(page: str, results: Mapping[str, Any]) -> str:
    """Put the tables into a page, between its two marks.

    Args:
        page: Markdown.
        results: As `tables` takes them.

    Returns:
        The page.
    """
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{tables(results)}\n{END}{after}"


def _table(name: str, workload: Mapping[str, Any]) -> str:
    rows, baseline = workload["rows"], workload["baseline"]
    told = {row["variant"]: row["told"] for row in rows}
    peers = [row["variant"] for row in rows if not row["variant"].startswith("ours")]
    heads = [*(f"times {told[peer]}" for peer in peers), *_HEADS, f"memory, of {told[baseline]}'s"]
    about = (
        f"`{name}`: {workload['samples']} samples, {workload['tokens']} tokens, {workload['supervised_tokens']} "
        f"supervised, vocabulary {workload['shape']['vocab_size']}, {workload['rounds']} rounds."
    )
    lines = [_line(row, peers, baseline) for row in rows]
    return "\n".join([about, "", f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}", *lines])


def _line(row: Mapping[str, Any], peers: list[str], baseline: str) -> str:
    ratios = [_ratio(row["ratios"].get(peer)) for peer in peers]
    figures = [
        f"{row['sup_tok_s']:.0f}",
        f"{100 * row['pad_share']:.0f} %",
        f"{100 * row['mfu']:.0f} %",
        f"{row['steps']}",
        f"{row['peak_mib']}",
        f"{row['memory_ratios'].get(baseline, 1):.2f}",
    ]
    return f"| {row['told']} | {' | '.join([*ratios, *figures])} |"


def _ratio(found: list[float] | None) -> str:
    return "1" if found is None else f"{found[0]:.2f} ({found[1]:.2f}-{found[2]:.2f})"


def main() -> None:
    """Write the tables of the committed results into the pages."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
