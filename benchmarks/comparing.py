"""Compares the variants of a workload: gradients first, then rounds of time, each in a process of its own."""

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.counting import useful_flops
from benchmarks.measuring import Gradients, Timed, error_of, gradients_of_epoch, timed_epoch
from benchmarks.variants import Run, Variant
from benchmarks.workloads import Samples, Workload, samples_of
from ds_sft.errors import DsSftError

TOLERANCE = 1e-5
"""Of gradients in fp32, as a share of the norm of each parameter's."""
RATIO = ("ratio", "ratio_lo", "ratio_hi")

Execute = Callable[..., Any]
"""Calls a function with arguments, in a process that is new."""
Row = dict[str, Any]


class UnequalError(DsSftError):
    """Variants do not train the same."""


def compare(
    workload: Workload,
    variants: Sequence[Variant],
    *,
    execute: Execute,
    seed: int,
    rounds: int,
    on_cpu: bool = True,
    precision: str = "fp32",
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure a workload.

    Args:
        workload: What is trained.
        variants: In which ways; the first one gives the gradients that all others must give.
        execute: Runs each measurement.
        seed: Of the samples.
        rounds: How often each variant is timed; they take turns, and each round begins with another.
        on_cpu: Whether a GPU is left alone.
        precision: `fp32` or `bf16`, of the timed epochs.
        tell: Takes a line for each measurement.

    Returns:
        The part of the results that belongs to the workload.

    Raises:
        UnequalError: When gradients differ, before anything is timed.
    """
    samples = samples_of(workload, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(workload, samples, Path(folder), on_cpu=on_cpu, precision=precision)
        gradients = {
            one.name: execute(gradients_of_epoch, one, run, Path(folder) / f"{one.name}.gradients") for one in variants
        }
        expected = gradients[variants[0].name]
        errors = {name: error_of(found, expected) for name, found in gradients.items()}
        tell(f"{workload.name}: gradients differ by {', '.join(f'{one} {error:.1e}' for one, error in errors.items())}")
        refuse_unequal(errors, workload=workload.name)
        timed: dict[str, list[Timed]] = {one.name: [] for one in variants}
        for number in range(rounds):
            for one in _turned(variants, number):
                timed[one.name].append(execute(timed_epoch, one, run))
                tell(f"{workload.name}: round {number + 1}, {one.name} {timed[one.name][-1].seconds:.2f} s")
    rows = [row_of(one, timed, gradients=gradients[one.name], error=errors[one.name], run=run) for one in variants]
    facts = _facts(workload, samples) | {"rounds": rounds, "peak_gflop_s": round(_best_product(timed) / 1e9, 1)}
    return {**facts, "rows": rows}


def refuse_unequal(errors: Mapping[str, float], *, workload: str) -> None:
    """Refuse to go on when variants do not train the same.

    Args:
        errors: Variant -> error of its gradients.
        workload: Its name.

    Raises:
        UnequalError: For all that are over the tolerance.
    """
    faults = [
        f"{workload}: gradients of {name} must agree to {TOLERANCE:g}, but differ by {error:.2g}; no ratio is given"
        for name, error in errors.items()
        if not error <= TOLERANCE
    ]
    if faults:
        raise UnequalError(*faults)


def row_of(
    variant: Variant, timed: Mapping[str, Sequence[Timed]], *, gradients: Gradients, error: float, run: Run
) -> Row:
    """Give the figures of a variant; times are medians of all rounds.

    Args:
        variant: The variant.
        timed: What each variant took, round by round.
        gradients: Of the variant.
        error: Of its gradients.
        run: What was measured.

    Returns:
        Name -> figure; `ratio` is how many times as fast as the baseline of the workload it is, and `ratios` the same
        against each other variant: median, lowest and highest.
    """
    own, samples = timed[variant.name], run.samples
    seconds = statistics.median(one.seconds for one in own)
    tokens, supervised = samples.num_distinct(), int(samples.num_supervised().sum())
    ratios = {name: ratio_of(own, others) for name, others in timed.items() if name != variant.name}
    against = ratios.get(run.workload.baseline, [1.0, 1.0, 1.0])
    memory = statistics.median(one.peak_mib for one in own)
    return {
        "variant": variant.name,
        "told": variant.told,
        "sup_tok_s": round(supervised / seconds, 1),
        "tok_s": round(tokens / seconds, 1),
        "mfu": round(useful_flops(run.workload, samples) / seconds / _best_product(timed), 4),
        "peak_mib": round(memory),
        "pad_share": round(1 - tokens / gradients.num_places, 4),
        **dict(zip(RATIO, against, strict=True)),
        "grad_err": float(f"{error:.2g}"),
        "steps": own[0].steps,
        "seconds": [round(one.seconds, 3) for one in own],
        "wall_seconds": [round(one.wall_seconds, 3) for one in own],
        "startup_seconds": round(statistics.median(one.startup_seconds for one in own), 2),
        "ratios": ratios,
        "memory_ratios": {
            name: round(memory / statistics.median(one.peak_mib for one in others), 3)
            for name, others in timed.items()
            if name != variant.name
        },
    }


def ratio_of(own: Sequence[Timed], others: Sequence[Timed]) -> list[float]:
    """Tell how many times as fast one variant is as another, round by round.

    Args:
        own: Of the one, a round each.
        others: Of the other.

    Returns:
        Median, lowest and highest.
    """
    found = [there.seconds / here.seconds for here, there in zip(own, others, strict=True)]
    return [round(value, 3) for value in (statistics.median(found), min(found), max(found))]


def _best_product(timed: Mapping[str, Sequence[Timed]]) -> float:
    """Give the best of all: one that was slowed down by others must not make ours look good."""
    return max(one.peak_flops for rounds in timed.values() for one in rounds)


def _turned(variants: Sequence[Variant], number: int) -> Sequence[Variant]:
    start = number % len(variants)
    return [*variants[start:], *variants[:start]]


def _facts(workload: Workload, samples: Samples) -> dict[str, Any]:
    return {
        "family": workload.family,
        "shape": dict(workload.shape),
        "max_length": workload.max_length,
        "batch_size": workload.batch_size,
        "baseline": workload.baseline,
        "samples": len(samples),
        "samples_hash": samples.digest(),
        "tokens": samples.num_distinct(),
        "repeated_tokens": int(samples.shared().sum()),
        "supervised_tokens": int(samples.num_supervised().sum()),
        "useful_gflop": round(useful_flops(workload, samples) / 1e9, 1),
    }
