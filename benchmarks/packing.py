"""Measures how fast micro-batches are planned, how full they are, and whom samples meet again, beside best fit.

Run it as `python benchmarks/packing.py`; it writes results/packing.json. Lengths are lognormal (sigma 1). Ours plans an
epoch as training does; the peer is best fit of the longest first, in the plainest way. Seconds are of one thread's
processor time; counting the micro-batches is done once for all epochs.
"""

import argparse
import bisect
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ds_sft.data.packing import Budgets, Lengths, Plan, count_micro_batches, fill_evenly

RESULTS = Path(__file__).parent / "results" / "packing.json"
LIMIT = 2048
ASKED = 2000
Result = TypeVar("Result")


def lognormal(num: int, mean: float, seed: int) -> npt.NDArray[np.int32]:
    """Draw lengths up to the limit."""
    return np.clip(np.random.RandomState(seed).lognormal(mean, 1, num), 1, LIMIT).astype(np.int32)


def workloads(num: int) -> dict[str, tuple[Lengths, Budgets]]:
    """Give lengths and budgets by name."""
    short, long = lognormal(num, 5, 1), lognormal(num, 6, 2)
    return {
        "one sequence, budget of 8 means": (long[None], (int(8 * long.mean()),)),
        "one sequence, budget of the longest": (long[None], (LIMIT,)),
        "source and target, one budget binds": (np.stack([long, short]), (8 * LIMIT, 8 * LIMIT)),
        "source and target, both bind": (np.stack([long, lognormal(num, 6, 3)]), (4 * LIMIT, 4 * LIMIT)),
    }


def timed(act: Callable[[], Result]) -> tuple[Result, float]:
    """Do something and give the seconds of processor time it took."""
    started = time.process_time()
    result = act()
    return result, round(time.process_time() - started, 2)


def best_fit(lengths: npt.NDArray[np.int32], budget: int) -> int:
    """Count the micro-batches of best fit, longest first."""
    spaces: list[int] = []
    for length in np.sort(lengths)[::-1].tolist():
        place = bisect.bisect_left(spaces, length)
        space = spaces.pop(place) if place < len(spaces) else budget
        bisect.insort(spaces, space - length)
    return len(spaces)


def met_again(first: Plan, second: Plan) -> float:
    """Give the share of a sample's company that it meets in the next epoch again."""
    places = np.empty(len(first.samples), np.int64)
    places[second.samples] = np.repeat(np.arange(len(second)), np.diff(second.starts))
    together = again = 0
    for number in np.random.RandomState(0).permutation(len(first))[:ASKED]:
        found = places[first[number]]
        together += len(found) * (len(found) - 1)
        again += int((np.bincount(np.unique(found, return_inverse=True)[1]) ** 2).sum()) - len(found)
    return again / max(together, 1)


def measure(lengths: Lengths, budgets: Budgets) -> dict[str, Any]:
    """Plan two epochs."""
    num, counting = timed(lambda: count_micro_batches(lengths, budgets, multiple_of=64))
    plan, planning = timed(lambda: fill_evenly(lengths, budgets, num_micro_batches=num, seed=1, epoch=0))
    following = fill_evenly(lengths, budgets, num_micro_batches=num, seed=1, epoch=1)
    tokens = np.add.reduceat(lengths[:, plan.samples], plan.starts[:-1], axis=1, dtype=np.int64)
    assert (tokens <= np.array(budgets)[:, None]).all()
    row: dict[str, Any] = {
        "micro_batches": num,
        "fill": [round(float(share), 4) for share in tokens.sum(axis=1) / (num * np.array(budgets))],
        "least_and_most_of_the_fullest_side": [
            round(float(share), 4)
            for shares in [(tokens / np.array(budgets)[:, None]).max(axis=0)]
            for share in (shares.min(), shares.max())
        ],
        "seconds_to_count": counting,
        "seconds_an_epoch": planning,
        "met_again": round(met_again(plan, following), 5),
    }
    if len(budgets) == 1:
        num_peer, row["seconds_best_fit"] = timed(lambda: best_fit(lengths[0], budgets[0]))
        row["fill_best_fit"] = round(float(lengths.sum(dtype=np.int64) / (num_peer * budgets[0])), 4)
    return row


def main() -> None:
    """Measure every workload and write the results."""
    parser = argparse.ArgumentParser(description="Planning of micro-batches beside best fit.")
    parser.add_argument("--samples", type=int, default=1_000_000)
    num = parser.parse_args().samples
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = {name: measure(*given) for name, given in workloads(num).items()}
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    for name, row in rows.items():
        print(f"{name}: {row}")
    content = {
        "what": "planning of micro-batches, processor seconds of one thread",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "samples": num,
        "peak_mib_above_the_start": round(peak),
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
