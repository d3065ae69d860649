"""Results as Markdown; the tables of the pages are written by `python -m benchmarks.tables` and never by hand."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = tuple(ROOT / "benchmarks" / "results" / name for name in ("training_cpu.json", "training_split_cpu.json"))
PLANNED = ROOT / "benchmarks" / "results" / "plan_memory.json"
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")


@dataclass(frozen=True)
class Goal:
    """What ours should reach.

    Args:
        told: In the table.
        workload: Where.
        figure: Takes it from our row.
        bound: The least, or for memory the most.
        is_most: Whether less is better.
    """

    told: str
    workload: str
    figure: Callable[[Mapping[str, Any]], float]
    bound: float
    is_most: bool = False


def _speed(peer: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda row: float(row["ratios"][peer][0])


def _memory(peer: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda row: float(row["memory_ratios"][peer])


GOALS = (
    Goal("Yuan2, full vocabulary: times FastChat's loop", "yuan-vocab", _speed("fastchat"), 4.0),
    Goal("Yuan2, light head: times FastChat's loop", "yuan-share", _speed("fastchat"), 3.5),
    Goal("Yuan2, light head: times Trainer grouped by length", "yuan-share", _speed("hf_grouped"), 1.9),
    Goal("Yuan2, light head: share of the best product", "yuan-share", lambda row: float(row["mfu"]), 0.5),
    Goal("Yuan2, full vocabulary: memory of FastChat's loop", "yuan-vocab", _memory("fastchat"), 0.2, is_most=True),
    Goal("Yuan2, a sample for each answer: times nothing shared", "yuan-split", _speed("flat_split"), 2.0),
    Goal("Flan-T5: times Seq2SeqTrainer grouped by length", "t5-small", _speed("hf_grouped"), 2.2),
    Goal("Flan-T5: memory of Seq2SeqTrainer grouped by length", "t5-small", _memory("hf_grouped"), 0.55, is_most=True),
)
_OURS = {"ours_same_steps": "as many steps", "ours": "default budget"}
_HEADS = ("supervised tokens/s", "padding or repeats", "of the best product", "steps", "MiB above the model")


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


def goals(results: Sequence[Mapping[str, Any]]) -> str:
    """Hold results against the goals, as Markdown.

    Args:
        results: As `tables` takes them, of some runs, together with all workloads.

    Returns:
        A table, in which what is reached stands in bold.
    """
    lines = [f"| goal | bound | {' | '.join(_OURS.values())} |", "|---|---|---|---|"]
    workloads = {name: workload for one in results for name, workload in one["workloads"].items()}
    for goal in GOALS:
        rows = {row["variant"]: row for row in workloads[goal.workload]["rows"]}
        cells = [_cell(goal, goal.figure(rows[name])) if name in rows else "" for name in _OURS]
        lines.append(
            f"| {goal.told} | {'at most' if goal.is_most else 'at least'} {goal.bound:g} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def with_tables(page: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Put goals and tables into a page, each between its two marks.

    Args:
        page: Markdown.
        results: As `goals` takes them.

    Returns:
        The page.
    """
    for name, write in _PARTS.items():
        page = _between(page, name, write(results))
    return page


def with_plan(page: str, results: Mapping[str, Any]) -> str:
    """Put the errors of `ds-sft plan` into a page, between its two marks.

    Args:
        page: Markdown.
        results: As `python -m benchmarks.plan_memory` writes them.

    Returns:
        The page.
    """
    rows = results["rows"]
    worst = max(abs(row["error"]) for row in rows)
    told = (
        f"Measured {results['date']} on {results['processor']} ({results['cores']} cores): models of 33 and 51 million "
        f"parameters in fp32, peak of resident memory above the level before the model, {len(rows)} cases; the plan is "
        f"off by at most {worst:.1%}. Some formulas were mended after a look at these very cases. Peaks on a GPU, in "
        "16 bits, with offload, with adapters and with accumulation were not measured."
    )
    heads = ["", *(f"{row['ranks']} rank{'s' * (row['ranks'] > 1)}, {_kept(row)}" for row in rows[:4])]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for start in range(0, len(rows), 4):
        group = rows[start : start + 4]
        cells = [f"{row['planned_mib']} / {row['measured_mib']} ({row['error']:+.1%})" for row in group]
        name = f"{group[0]['family']}, ZeRO-{group[0]['stage']}: MiB planned / measured"
        lines.append(f"| {' | '.join([name, *cells])} |")
    return _between(page, "plan", "\n".join([told, "", *lines]))


def _kept(row: Mapping[str, Any]) -> str:
    return "gradient checkpointing" if row["is_checkpointing"] else "all activations"


def _between(page: str, name: str, text: str) -> str:
    begin, end = (f"<!-- {name}: {side} -->" for side in ("begin", "end"))
    if begin not in page:
        return page
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def committed() -> list[dict[str, Any]]:
    """Read the results that the pages show.

    Returns:
        One for each run.
    """
    return [json.loads(file.read_text(encoding="utf-8")) for file in RESULTS]


_PARTS: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], str]] = {
    "benchmark": lambda results: "\n\n".join(map(tables, results)),
    "goals": goals,
}


def _cell(goal: Goal, value: float) -> str:
    return f"**{value:.2f}**" if _is_reached(goal, value) else f"{value:.2f}"


def _is_reached(goal: Goal, value: float) -> bool:
    return value <= goal.bound if goal.is_most else value >= goal.bound


def _table(name: str, workload: Mapping[str, Any]) -> str:
    rows, baseline = workload["rows"], workload["baseline"]
    told = {row["variant"]: row["told"] for row in rows}
    peers = [row["variant"] for row in rows if not row["variant"].startswith("ours")]
    heads = [*(f"times {told[peer]}" for peer in peers), *_HEADS, f"memory, of {told[baseline]}'s"]
    repeats = workload.get("repeated_tokens", 0)
    about = (
        f"`{name}`: {workload['samples']} samples, {workload['tokens']} tokens"
        f"{f' and {repeats} that repeat others' if repeats else ''}, {workload['supervised_tokens']} "
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
    planned = json.loads(PLANNED.read_text(encoding="utf-8"))
    for page in PAGES:
        text = with_tables(page.read_text(encoding="utf-8"), committed())
        page.write_text(with_plan(text, planned), encoding="utf-8")


if __name__ == "__main__":
    main()
