"""The training benchmark: ours beside FastChat's loop and transformers' trainers, in one run, on equal gradients.

`python -m benchmarks.run --suite cpu --family all --seed 0 --json FILE`
"""

import argparse
import json
import logging
import multiprocessing
import os
import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.tables import tables
from ds_sft.errors import ConfigError
from ds_sft.reporting import run as run_program

FAMILIES = ("yuan2", "flan_t5")
_PACKAGES = ("torch", "transformers", "accelerate")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables and write the results.

    Args:
        arguments: Without the program's name; those of the command line by default.

    Raises:
        ConfigError: When there is no GPU for the suite that needs one.
    """
    given = _parser().parse_args(arguments)
    on_cpu = given.suite == "cpu"
    if on_cpu:
        # Before torch is imported: one thread, whose processor seconds tell the work on a busy machine too.
        os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
    import torch  # noqa: PLC0415  # as above

    from benchmarks.comparing import compare  # noqa: PLC0415  # as above
    from benchmarks.variants import variants_of  # noqa: PLC0415  # as above
    from benchmarks.workloads import SUITES  # noqa: PLC0415  # as above

    if not on_cpu and not torch.cuda.is_available():
        raise ConfigError("--suite: gpu needs a GPU, but torch sees none; pass --suite cpu")
    families = FAMILIES if given.family == "all" else (given.family,)
    chosen = [one for one in SUITES[given.suite] if one.family in families and given.workload in ("all", one.name)]
    if not chosen:
        raise ConfigError(f"--workload: must be one of {given.family}, but is {given.workload}; leave it out")
    where, precision, began = _where(on_cpu=on_cpu), "fp32" if on_cpu else "bf16", _load()
    how = {"seed": given.seed, "rounds": given.rounds, "on_cpu": on_cpu, "precision": precision}
    measured: dict[str, Any] = {}
    with fresh_processes() as execute:
        for one in chosen:
            measured[one.name] = compare(one, variants_of(one), execute=execute, tell=_say, **how)
            load = {"begin": began, "end": _load()}
            results = where | {"seed": given.seed, "load": load, "peak": {precision: _peak(measured)}}
            results |= {"workloads": measured}
            # After each of them: a run that is stopped has not measured in vain.
            if given.json:
                given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\n{tables(results)}")


@contextmanager
def fresh_processes(preload: Sequence[str] = ("benchmarks.measuring",)) -> Iterator[Callable[..., Any]]:
    """Run each call in a process that is forked from one that has imported everything and done nothing.

    Args:
        preload: Modules to import.

    Yields:
        Calls a function with arguments and gives what it returns.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        yield lambda act, *given: pool.submit(quietly, act, *given).result()


def quietly(act: Callable[..., Any], *given: Any) -> Any:
    """Call a function without the warnings and progress lines of libraries.

    Args:
        act: The function.
        *given: Its arguments.

    Returns:
        What it returns.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    return act(*given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=("cpu", "gpu"), default="cpu", help="gpu has larger models, in bf16")
    parser.add_argument("--family", choices=(*FAMILIES, "all"), default="all")
    parser.add_argument("--workload", default="all", help="name of one, such as yuan-vocab")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--rounds", type=int, default=5, help="how often each variant is timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    return parser


def _where(*, on_cpu: bool) -> dict[str, Any]:
    import torch  # noqa: PLC0415  # as above

    gpu = None if on_cpu else torch.cuda.get_device_name()
    return {
        "schema": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "host": {"processor": gpu or _processor(), "cores": os.cpu_count(), "gpu": gpu},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "clock": "processor seconds of one thread" if on_cpu else "wall seconds",
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _say(line: str) -> None:
    print(line, flush=True)


def _load() -> float:
    return round(os.getloadavg()[0], 1)


def _peak(measured: dict[str, Any]) -> float:
    """Give the best matrix product of the run in GFLOP/s."""
    return max(float(workload["peak_gflop_s"]) for workload in measured.values())


if __name__ == "__main__":
    run_program(main)
