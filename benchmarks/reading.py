"""Measures how fast data files are read and how much memory that takes, beside the json of the standard library.

Run it as `python benchmarks/reading.py`; it writes results/reading.json. Every case runs in a process of its own. Speed
is megabytes of JSON per second of processor time, the best of three rounds, so that other work on the machine does not
count. A peer makes the same conversations, in the plainest way: it checks nothing and knows one form. Our own figures
have two parts: opening, which checks every record and finds its place, and decoding one record after the other.
"""

import argparse
import gzip
import json
import multiprocessing
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ds_sft.contracts import Conversation, Turn
from ds_sft.data.read import open_records

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

RESULTS = Path(__file__).parent / "results" / "reading.json"
ROUNDS = 3
MEGABYTE = 1_000_000
ENGLISH = ["the", "a", "of", "to", "and", "is", "in", "that", "it", "for", "you", "with", "as", "on", "not", "which"]
OTHERS = ["model", "gradient,", '"quoted"', "don't", "C:\\path", "return x", "3.14", "北京是中国的首都。", "café.\n"]

Reader = Callable[[Path], Iterator[Conversation]]
Figures = dict[str, float]


def records() -> Iterator[bytes]:
    """Give conversations as JSON without end: two to eight turns of a few words to a few hundred."""
    rng = random.Random(0)  # noqa: S311 - test data
    words = ENGLISH * 4 + OTHERS
    known = []
    for _ in range(2000):
        messages = []
        for turn in range(2 * rng.randint(1, 4)):
            num_words = rng.randint(5, 60) if turn % 2 == 0 else rng.randint(20, 300)
            text = " ".join(rng.choices(words, k=num_words))
            messages.append({"from": ("human", "gpt")[turn % 2], "value": text})
        known.append(json.dumps({"conversations": messages}, ensure_ascii=False).encode()[1:])
    number = 0
    while True:
        yield b'{"id": "record-%d", %s' % (number, rng.choice(known))
        number += 1


def write_files(folder: Path, num_bytes: int) -> dict[str, Path]:
    """Write the same records as lines, as an array, and as compressed lines."""
    paths = {form: folder / f"data.{form}" for form in ("lines", "array", "lines.gz", "lines.zst")}
    with (
        paths["lines"].open("wb") as lines,
        paths["array"].open("wb") as array,
        gzip.open(paths["lines.gz"], "wb", compresslevel=1) as gz,
        zstd.open(paths["lines.zst"], "wb") as zst,
    ):
        for record in records():
            array.write((b",\n" if lines.tell() else b"[") + record)
            for file in (lines, gz, zst):
                file.write(record + b"\n")
            if lines.tell() >= num_bytes:
                break
        array.write(b"]\n")
    return paths


def ours(path: Path) -> Iterator[Conversation]:
    """Open, which checks every record; then decode one after the other."""
    return iter(open_records(path))


def lines_by(library: str, path: Path) -> Iterator[Conversation]:
    """Decode line by line with another library."""
    loads = import_module(library).loads
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield conversation(loads(line), f"{path}:line {number}")


def array_by(library: str, path: Path) -> Iterator[Conversation]:
    """Decode an array at once with another library, as these do."""
    loads = import_module(library).loads
    for number, record in enumerate(loads(path.read_bytes()), start=1):
        yield conversation(record, f"{path}:record {number}")


def conversation(record: Any, place: str) -> Conversation:
    """Make what we make, without a check."""
    turns = tuple(Turn(message["from"], message["value"]) for message in record["conversations"])
    return Conversation(turns, place, record["id"])


def cases() -> list[tuple[str, str, Reader]]:
    """Give reader, form of file and function of every case."""
    found: list[tuple[str, str, Reader]] = [
        ("ours", form, ours) for form in ("lines", "array", "lines.gz", "lines.zst")
    ]
    for library in ("json", "orjson"):
        if find_spec(library):
            found.append((library, "lines", partial(lines_by, library)))
            found.append((library, "array", partial(array_by, library)))
    return found


def measure(reader: Reader, path: Path) -> Figures:
    """Read a file several times in this process, which must be a fresh one: memory is that of the first round."""
    before = memory()
    rounds = [read(reader, path)]
    peak = memory()
    rounds += [read(reader, path) for _ in range(ROUNDS - 1)]
    return {
        "records": rounds[0][0],
        "open_seconds": min(opening for _, opening, _ in rounds),
        "decode_seconds": min(decoding for _, _, decoding in rounds),
        "peak_rss_mb": round(peak["VmHWM"] - before["VmRSS"]),
        "anonymous_mb": round(peak["RssAnon"] - before["RssAnon"]),
    }


def read(reader: Reader, path: Path) -> tuple[int, float, float]:
    """Read a file once, and give the number of records and the seconds that both parts took."""
    start = time.process_time()
    found = reader(path)
    opened = time.process_time()
    num_records = sum(1 for _ in found)
    return num_records, opened - start, time.process_time() - opened


def memory() -> Figures:
    """Give this process's memory in megabytes: the peak, what is resident, and what no file stands behind."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    told = dict(line.split(":", 1) for line in lines)
    return {name: int(told[name].split()[0]) * 1024 / MEGABYTE for name in ("VmHWM", "VmRSS", "RssAnon")}


def run(num_megabytes: int) -> dict[str, Figures]:
    """Measure every case on one set of files."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder), num_megabytes * MEGABYTE)
        size = paths["lines"].stat().st_size / MEGABYTE
        for name, form, reader in cases():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                told = pool.apply(measure, (reader, paths[form]))
            opening, decoding = told.pop("open_seconds"), told.pop("decode_seconds")
            if name == "ours":
                told |= {"open_mb_per_s": round(size / opening), "decode_mb_per_s": round(size / decoding)}
            told["whole_mb_per_s"] = round(size / (opening + decoding))
            figures[f"{name} {form}"] = told
            print(f"{name:7}{form:10}", *(f"{key} {value}" for key, value in told.items()))
    return figures


def ratios(figures: dict[str, Figures]) -> Figures:
    """Give our speed in units of each peer's: of decoding alone, and with the opening."""
    found = {}
    for peer in (name for name in figures if not name.startswith("ours")):
        us = figures[f"ours {peer.split()[1]}"]
        for part in ("decode", "whole"):
            found[f"{part} / {peer}"] = round(us[f"{part}_mb_per_s"] / figures[peer]["whole_mb_per_s"], 2)
    return found


def machine() -> dict[str, object]:
    """Say what this ran on."""
    models = [line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "model name" in line]
    return {
        "processor": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("msgspec", "numpy", "orjson") if find_spec(name)},
    }


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description="How fast data files are read, and in how much memory.")
    parser.add_argument("--megabytes", type=int, default=100, help="size of the JSONL file")
    megabytes = parser.parse_args().megabytes
    figures = run(megabytes)
    told = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "megabytes": megabytes,
        "figures": figures,
        "ratios": ratios(figures),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(*(f"{name}: {ratio}" for name, ratio in ratios(figures).items()), f"written to {RESULTS}", sep="\n")


if __name__ == "__main__":
    main()
