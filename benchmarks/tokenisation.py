"""Measures how fast data are tokenised, from the file to the cache, beside `datasets.map` with the same tokenizer.

Run it as `python benchmarks/tokenisation.py --t5 FOLDER --yuan2 FOLDER --peer-python PYTHON`; it writes
results/tokenisation.json. The folders hold the tokenizers of the real models. Every case and every peer runs in a
process of its own, in turns, with all cores. The figures are the best of the rounds: tokens per second of the clock,
and per second of processor time, which other work on the machine disturbs less. Ours are counted from the file on
disk: reading, checking, laying out, tokenising and writing the cache. The peer's begin when it has read the file.
"""

import argparse
import ast
import json
import os
import platform
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Any

from ds_sft.config.sources import DataArguments
from ds_sft.contracts import LayoutOptions
from ds_sft.data.draft import Encoder
from ds_sft.data.prepare import prepare
from ds_sft.data.workers import num_cores
from ds_sft.families import family_named

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "tokenisation.json"
MAX_TOKENS = 2048
LONGEST, SHORTEST = 1500, 60

Figures = dict[str, Any]


def texts_of_library(*, is_prose: bool) -> list[str]:
    """Give paragraphs of the standard library: of its documentation, or of its code."""
    found: dict[str, None] = {}
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        content = file.read_text(encoding="utf-8", errors="ignore")
        nodes = ast.walk(ast.parse(content)) if is_prose else ()
        whole = [
            ast.get_docstring(node) or ""
            for node in nodes
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        ]
        for text in whole if is_prose else [content]:
            found |= dict.fromkeys(part for part in text.split("\n\n") if SHORTEST < len(part) < LONGEST)
    return list(found)


def write_data(file: Path, *, is_prose: bool, num_exchanges: int, num_samples: int) -> None:
    """Write conversations in which every message is a few paragraphs."""
    rng = random.Random(0)  # noqa: S311 - test data
    texts = texts_of_library(is_prose=is_prose)
    with file.open("w", encoding="utf-8") as out:
        for number in range(num_samples // num_exchanges):
            messages = [
                {"from": ("human", "gpt")[turn % 2], "value": "\n".join(rng.choices(texts, k=1 + turn % 2))}
                for turn in range(2 * num_exchanges)
            ]
            out.write(json.dumps({"id": str(number), "conversations": messages}) + "\n")


def ours(job: Figures) -> Figures:
    """Tokenise into a new cache, and map it again."""
    family = family_named(job["family"])
    encoder = Encoder(family, family.load_tokenizer(Path(job["tokenizer"])), LayoutOptions(MAX_TOKENS))
    data = DataArguments(data_path=job["data"])
    os.environ["DS_SFT_CACHE"] = job["cache"]
    before, started = processor_seconds(), time.perf_counter()
    table = prepare(Path(job["data"]), role="train", data=data, encoder=encoder)
    seconds, busy = time.perf_counter() - started, processor_seconds() - before
    started = time.perf_counter()
    prepare(Path(job["data"]), role="train", data=data, encoder=encoder)
    counters = table.note["counters"]
    return {
        "samples": counters["samples"],
        "tokens": counters["tokens_total"],
        "seconds": seconds,
        "processor_seconds": busy,
        "seconds_from_cache": time.perf_counter() - started,
    }


def processor_seconds() -> float:
    """Give the processor time of this process and of those it has waited for."""
    usages = getrusage(RUSAGE_SELF), getrusage(RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_job(command: list[str], job: Figures) -> Figures:
    """Let another process do a job in a cache of its own."""
    with tempfile.TemporaryDirectory() as cache:
        text = json.dumps(job | {"cache": cache})
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stderr}")
    told: Figures = json.loads(done.stdout.splitlines()[-1])
    return told


def cases(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Figures]]:
    """Write the data of every case, and give its name and job."""
    for is_prose, num_exchanges in ((True, 1), (True, 4), (False, 1)):
        data = folder / "data.jsonl"
        write_data(data, is_prose=is_prose, num_exchanges=num_exchanges, num_samples=arguments.samples)
        for family, tokenizer in (("flan_t5", arguments.t5), ("yuan2", arguments.yuan2)):
            if tokenizer:
                name = f"{family}, {'prose' if is_prose else 'code'}, {num_exchanges} exchanges"
                saved = folder / family
                family_named(family).load_tokenizer(Path(tokenizer)).save_pretrained(saved)
                yield (
                    name,
                    {
                        "family": family,
                        "data": str(data),
                        "tokenizer": str(saved),
                        "tokenizer_path": str(ROOT) if family == "yuan2" else "",
                        "max_tokens": MAX_TOKENS,
                        "num_processes": num_cores(),
                    },
                )


def measure(job: Figures, commands: dict[str, list[str]], num_rounds: int) -> dict[str, Figures]:
    """Let all do the job in turns, and give the best round of each."""
    rounds: dict[str, list[Figures]] = {name: [] for name in commands}
    for _ in range(num_rounds):
        for name, command in commands.items():
            rounds[name].append(run_job(command, job))
    best = {}
    for name, told in rounds.items():
        figures = {key: min(one[key] for one in told) for key in told[0] if key.endswith(("seconds", "cache"))}
        tokens = told[0]["tokens"]
        best[name] = {
            "samples": told[0]["samples"],
            "tokens": tokens,
            "tokens_per_second": round(tokens / figures["seconds"]),
            "tokens_per_processor_second": round(tokens / figures["processor_seconds"]),
            **{key: round(value, 2) for key, value in figures.items()},
            **({"versions": told[0]["versions"]} if "versions" in told[0] else {}),
        }
    return best


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description="How fast data are tokenised, beside datasets.map.")
    parser.add_argument("--t5", help="folder of Flan-T5's tokenizer")
    parser.add_argument("--yuan2", help="folder of Yuan2's tokenizer")
    parser.add_argument("--peer-python", help="a Python with datasets, transformers and sentencepiece")
    parser.add_argument("--samples", type=int, default=100_000, help="question-answer pairs of a case")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(ours(json.load(sys.stdin))))
        return
    commands = {"ours": [sys.executable, str(Path(__file__)), "--job"]}
    if arguments.peer_python:
        commands["datasets.map"] = [arguments.peer_python, str(Path(__file__).with_name("tokenisation_peer.py"))]
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, job in cases(arguments, Path(folder)):
            figures[name] = measure(job, commands, arguments.rounds)
            if "datasets.map" in commands:
                us, peer = (figures[name][who] for who in ("ours", "datasets.map"))
                figures[name]["times as fast"] = {
                    key: round(us[key] / peer[key], 2) for key in us if key.startswith("tokens_per")
                }
            print(name, json.dumps(figures[name], indent=2), flush=True)
    models = [line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "model name" in line]
    told = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": num_cores(),
        "rounds": arguments.rounds,
        "versions": {name: version(name) for name in ("transformers", "tokenizers", "sentencepiece", "pyarrow")},
        "figures": figures,
    }
    RESULTS.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
