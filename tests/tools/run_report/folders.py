"""Folders of runs, written by hand, and a page read by a plain HTML parser."""

import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

from ds_sft.config.sources import DataArguments
from ds_sft.contracts import LayoutOptions
from ds_sft.data.datasets import SampleDataset, build_dataset
from ds_sft.data.draft import Encoder
from ds_sft.families import family_named

Row = dict[str, Any]


def row(step: int, loss: Any, **more: Any) -> Row:
    return {"step": step, "epoch": step / 10, "loss": loss, "learning_rate": 1e-4, "grad_norm": 1.5, **more}


def rows(num: int) -> list[Row]:
    return [row(step, 5.0 - step / num) for step in range(1, num + 1)]


def write_state(folder: Path, history: Sequence[Row], *, step: int | None = None) -> Path:
    """Write what transformers leaves; NaN stays the word that it writes."""
    folder.mkdir(parents=True, exist_ok=True)
    last = step if step is not None else max((one["step"] for one in history), default=0)
    content = {"global_step": last, "max_steps": 100, "log_history": list(history)}
    (folder / "trainer_state.json").write_text(json.dumps(content))
    return folder


def write_events(folder: Path, *events: tuple[str, Row]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"event": kind, "time": "2026-01-02T03:04:05+00:00", **facts}) for kind, facts in events]
    (folder / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def write_predictions(folder: Path, *told: Row) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predictions.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in told))
    return folder


def write_run(folder: Path, *, checkpoint: Path, data: Path) -> Path:
    """Write the folder of a run as it is left, its model and tokenizer too; what it began with has gone."""
    shutil.copytree(checkpoint, folder)
    settings: Row = {
        "model_name_or_path": str(folder / "gone"),
        "data_path": str(data),
        "output_dir": str(folder),
        "model_max_length": 192,
        "learning_rate": 1e-4,
        "lazy_preprocess": False,
    }
    (folder / "ds_sft.resolved.yaml").write_text(yaml.safe_dump(settings))
    write_events(folder, ("start", {"step": 0, "model": "M"}), ("end", {"outcome": "finished"}))
    return write_state(folder, rows(20))


def samples_of_run(folder: Path, data: Path) -> SampleDataset:
    """Give the samples that a run of such a folder trains."""
    family = family_named("flan_t5")
    options = LayoutOptions(max_tokens=192, loss_mode="efficient", name="native")
    encoder = Encoder(family, family.load_tokenizer(folder), options)
    return build_dataset(data, data=DataArguments(str(data)), encoder=encoder)


def write_many_conversations(file: Path, shipped: Path, *, num: int) -> Path:
    """Write the shipped conversations again and again, each time with another ending."""
    known = json.loads(shipped.read_text(encoding="utf-8"))
    told = []
    for number in range(num):
        turns = [dict(turn) for turn in known[number % len(known)]["conversations"]]
        turns[-1]["value"] += " \u2713" * (number // len(known)) + " word" * (number % 7)
        told.append({"id": f"n{number}", "conversations": turns})
    file.write_text(json.dumps(told), encoding="utf-8")
    return file


class Page(HTMLParser):
    """Every element with its attributes and the text inside it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open an element."""
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        if tag not in {"meta", "input"}:
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost element."""
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        """Give a text to all elements around it."""
        for index in self._open:
            self.texts[index] += data

    def of(self, tag: str, **wanted: str) -> list[int]:
        """Give the numbers of elements; `style` stands for one of the classes."""
        style = wanted.pop("style", None)
        return [
            index
            for index, (name, attributes) in enumerate(self.elements)
            if name == tag
            and all(attributes.get(key) == value for key, value in wanted.items())
            and (style is None or style in (attributes.get("class") or "").split())
        ]

    def paths_of_first_plot(self, style: str) -> str:
        """Give the path data of one class in the first plot, without its legend."""
        plot, end = self.of("svg", role="img")[0], self.of("ul")[0]
        return "".join(
            self.elements[index][1]["d"] or "" for index in self.of("path", style=style) if plot < index < end
        )


def num_points(path: str) -> int:
    return len(re.findall("[ML]", path))
