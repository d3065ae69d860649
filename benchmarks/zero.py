"""Measures training under ZeRO on two ranks beside plain data parallelism, doing the same work.

Run it as `python -m benchmarks.zero`; it writes results/zero.json. Two CPU ranks (gloo, one thread each) train the
model of the workload `yuan-share` by `SftTrainer` for one epoch: without DeepSpeed, where accelerate wraps the model in
torch's data parallelism, and with the shipped files for ZeRO-1, 2 and 3. Each time is of fresh processes, the ways take
turns, and the first step is left out, because engines finish themselves in it. Before any ratio is given, losses and
gradient norms of every step must agree.
"""

import argparse
import json
import math
import multiprocessing
import os
import queue
import socket
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")

import torch
from transformers import TrainerCallback

from benchmarks.variants import CARDS, Run, common_arguments, our_model, tokenizer
from benchmarks.workloads import SUITES, samples_of
from ds_sft.config.arguments import TrainingArguments
from ds_sft.training.trainer import SftTrainer
from ds_sft.zero import distributed

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "zero.json"
WAYS: Mapping[str, str | None] = {
    "data_parallel": None,
    "zero1": "zero1.json",
    "zero2": "zero2.json",
    "zero3": "zero3.json",
}
BASELINE = "data_parallel"
NUM_RANKS = 2
NUM_SAMPLES = 48
TOLERANCE = 1e-4
"""Of losses and gradient norms in fp32, relative: after some steps of Adam the last bits of the sums have grown."""
MIB = 2**20


class Clock(TrainerCallback):
    """Tells how long the steps after the first one took, by the wall and by this rank's processor."""

    def __init__(self) -> None:
        self._began: tuple[float, float] | None = None
        self.seconds = (0.0, 0.0)

    def on_step_end(self, _args: Any, _state: Any, _control: Any, **_given: Any) -> None:
        """Look at both clocks.

        Args:
            **_given: Not looked at.
        """
        now = (time.perf_counter(), time.process_time())
        self._began = self._began or now
        self.seconds = (now[0] - self._began[0], now[1] - self._began[1])


def train_on_rank(rank: int, port: int, way: str, folder: Path, answers: Any) -> None:
    """Train an epoch on one rank.

    Args:
        rank: Of this process.
        port: Where the ranks meet.
        way: One of `WAYS`.
        folder: Where it may write.
        answers: Queue for the rank and what it measured.
    """
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(NUM_RANKS), LOCAL_SIZE=str(NUM_RANKS))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    config = WAYS[way]
    if config is not None:
        distributed.start(on_cpu=True)
    workload = replace(next(one for one in SUITES["cpu"] if one.name == "yuan-share"), num_samples=NUM_SAMPLES)
    run = Run(workload, samples_of(workload, seed=0), folder, on_cpu=True)
    torch.manual_seed(0)
    clock = Clock()
    args = TrainingArguments(
        **common_arguments(run) | {"per_device_train_batch_size": 1, "logging_steps": 1},
        deepspeed=None if config is None else str(ROOT / "ds_configs" / config),
        model_max_length=workload.max_length,
    )
    trainer = SftTrainer(
        model=our_model(run),
        args=args,
        family=CARDS[workload.family],
        tokenizer=tokenizer(),
        train_dataset=run.samples,
    )
    trainer.add_callback(clock)
    before = _resident("VmRSS")
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    told = {
        "seconds": clock.seconds[0],
        "processor_seconds": clock.seconds[1],
        "peak_mib": (_resident("VmHWM") - before) / MIB,
        "curve": [[float(row["loss"]), float(row["grad_norm"])] for row in rows],
    }
    answers.put((rank, told))


def measured(way: str) -> list[dict[str, Any]]:
    """Train once, in processes of its own.

    Args:
        way: One of `WAYS`.

    Returns:
        What each rank measured.

    Raises:
        SystemExit: When a rank fails.
    """
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        ranks = [
            context.Process(target=train_on_rank, args=(rank, port, way, Path(folder), answers), daemon=True)
            for rank in range(NUM_RANKS)
        ]
        for process in ranks:
            process.start()
        told: dict[int, dict[str, Any]] = {}
        while len(told) < NUM_RANKS:
            if any(process.exitcode for process in ranks):
                raise SystemExit(f"{way}: a rank failed; see above")
            with suppress(queue.Empty):
                rank, answer = answers.get(timeout=1)
                told[rank] = answer
        for process in ranks:
            process.join()
    return [told[rank] for rank in range(NUM_RANKS)]


def largest_difference(curves: Mapping[str, Sequence[Sequence[float]]]) -> float:
    """Compare losses and gradient norms of every step with the baseline's.

    Args:
        curves: Way -> loss and gradient norm of each step.

    Returns:
        The largest relative difference; infinity where the number of steps is not the same.
    """
    expected = curves[BASELINE]
    if any(len(curve) != len(expected) for curve in curves.values()):
        return math.inf
    return max(
        abs(found - right) / abs(right)
        for curve in curves.values()
        for row, truth in zip(curve, expected, strict=True)
        for found, right in zip(row, truth, strict=True)
    )


def main() -> None:
    """Let the ways take turns and write the results.

    Raises:
        SystemExit: When they do not train the same.
    """
    parser = argparse.ArgumentParser(description="ZeRO on two ranks beside plain data parallelism.")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    load = {"begin": round(os.getloadavg()[0], 1)}
    found: dict[str, list[list[dict[str, Any]]]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in [*WAYS][number % len(WAYS) :] + [*WAYS][: number % len(WAYS)]:
            found[way].append(measured(way))
            print(f"round {number + 1}, {way}: {found[way][-1][0]['seconds']:.2f} s", flush=True)
    difference = largest_difference({way: runs[0][0]["curve"] for way, runs in found.items()})
    if not difference <= TOLERANCE:
        raise SystemExit(f"all ways must train the same to {TOLERANCE:g}, but differ by {difference:.2g}; no ratio")
    ways = {way: _figures(runs, found[BASELINE]) for way, runs in found.items()}
    content = {
        "what": "two ranks train an epoch, first step left out; ratios are of the same round, to data_parallel",
        "date": datetime.now(UTC).date().isoformat(),
        "host": {"cores": os.cpu_count(), "gpu": None, "ranks": NUM_RANKS},
        "load": load | {"end": round(os.getloadavg()[0], 1)},
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", "deepspeed")},
        "rounds": rounds,
        "steps": len(found[BASELINE][0][0]["curve"]),
        "difference": float(f"{difference:.2g}"),
        "ways": ways,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(ways, indent=1))


def _figures(runs: Sequence[Sequence[Mapping[str, Any]]], baseline: Sequence[Any]) -> dict[str, Any]:
    """Give medians over the rounds; time is that of the slower rank, processor time that of both."""
    told: dict[str, Any] = {}
    for name, combine in (("seconds", max), ("processor_seconds", sum)):
        own, others = ([combine(rank[name] for rank in ranks) for ranks in all_ranks] for all_ranks in (runs, baseline))
        ratios = [here / there for here, there in zip(own, others, strict=True)]
        told[name] = round(statistics.median(own), 2)
        told[f"{name}_ratio"] = [round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))]
    told["peak_mib"] = round(statistics.median(max(rank["peak_mib"] for rank in ranks) for ranks in runs))
    return told


def _resident(field: str) -> int:
    """Give a memory figure of this process in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
