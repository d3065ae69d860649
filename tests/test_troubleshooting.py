"""Every line on the page of troubles is what a program says that has just got into that trouble."""

import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ds_sft import errors
from ds_sft.save.lock import output_lock
from tests import mishaps
from tests.conftest import CONFIGS
from tests.jobs import main_flags
from tests.pages import table_rows, text_of
from tests.programs import run_main
from tests.test_cli import ds_sft_verb
from tests.test_launchers import launcher

PAGE = "launchers/troubleshooting.md"
SECTIONS = {int(text.split(":")[0]): text for text in text_of(PAGE).split("\n## ")[1:]}
OURS = r"\b(?:COUNTS|FILE|FOLDER|N|NAME|NAMES|NUMBER|REASON|TEXT|TIME|VALUE)\b"
WITHOUT_ERROR = (errors.EXIT_PREEMPTED, 0)
ROBOT = '{"conversations": [{"from": "robot", "value": "x"}]}'


def messages() -> Iterator[tuple[int, str]]:
    """Give the lines of the page with their codes."""
    for code, text in SECTIONS.items():
        for row in table_rows(text):
            yield code, row[0].strip("`")


@dataclass(frozen=True)
class Bench:
    """Where a trouble is made.

    Args:
        model: A tiny checkpoint.
        data: Conversations that are all usable.
        folder: For all else.
    """

    model: Path
    data: Path
    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def written(self, text: str) -> Path:
        file = self.folder / "written.json"
        file.write_text(text, encoding="utf-8")
        return file

    def run(self, before: Callable[[], object] | None = None, **flags: Any) -> tuple[int, str]:
        """Run the main job; give its code and what it says."""
        named = {"model_name_or_path": self.model, "data_path": self.data, "output_dir": self.output, **flags}
        model, data, output = (named.pop(name) for name in ("model_name_or_path", "data_path", "output_dir"))
        ended = run_main(main_flags(model, data, output, **{"max_steps": 1, **named}), self.folder, before)
        assert ended.code is not None
        return ended.code, ended.said


Trouble = Callable[[Bench], tuple[int, str]]


def _with(before: Callable[[], object] | None = None, **flags: Any) -> Trouble:
    return lambda bench: bench.run(before, **flags)


def _with_data(text: str, **flags: Any) -> Trouble:
    return lambda bench: bench.run(data_path=bench.written(text), **flags)


def _verb(*words: str) -> Trouble:
    def run(bench: Bench) -> tuple[int, str]:
        ended = ds_sft_verb(*(word.replace("FOLDER", str(bench.folder)) for word in words))
        return ended.code, ended.err

    return run


def _some_rejected(bench: Bench) -> tuple[int, str]:
    usable = json.dumps(json.loads(bench.data.read_text(encoding="utf-8"))[0])
    return bench.run(data_path=bench.written(f"[{ROBOT}, {usable}]"))


def _twice(**second: Any) -> Trouble:
    def run(bench: Bench) -> tuple[int, str]:
        assert bench.run()[0] == 0
        return bench.run(**second)

    return run


def _other_batch(bench: Bench) -> tuple[int, str]:
    return bench.run(deepspeed=bench.written('{"train_batch_size": 7}'))


def _other_kind(bench: Bench) -> tuple[int, str]:
    (bench.folder / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    return bench.run(model_name_or_path=bench.folder)


def _cut_weights(bench: Bench) -> tuple[int, str]:
    model = bench.folder / "model"
    shutil.copytree(bench.model, model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    return bench.run(model_name_or_path=model)


def _foreign_checkpoint(bench: Bench) -> tuple[int, str]:
    (bench.output / "checkpoint-300").mkdir(parents=True)
    return bench.run()


def _two_jobs(bench: Bench) -> tuple[int, str]:
    with output_lock(bench.output):
        return bench.run()


def _taken_port(bench: Bench) -> tuple[int, str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        variables["MASTER_PORT"] = str(taken.getsockname()[1])
        return bench.run(partial(mishaps.has_environment, variables), deepspeed=CONFIGS / "zero2.json")


def _unknown_host(bench: Bench) -> tuple[int, str]:
    hosts = bench.written("localhost slots=1\nno-such-host.invalid slots=1\n")
    code, _, said = launcher("multi_node.sh", "--dry-run", str(hosts), "recipe.yaml")
    return code, said


def _unreadable_data(bench: Bench) -> tuple[int, str]:
    return bench.run(partial(mishaps.may_not_read, bench.data))


def _no_output_dir(bench: Bench) -> tuple[int, str]:
    ended = run_main(["--model_name_or_path", "m", "--data_path", "d"], bench.folder)
    assert ended.code is not None
    return ended.code, ended.said


TROUBLES: dict[str, Trouble] = {
    "no GPU found": _with(partial(mishaps.has_environment, {"CUDA_VISIBLE_DEVICES": ""})),
    "FOLDER: this run is finished": _twice(),
    "rejected FILE": _some_rejected,
    "eval_data_path: not": lambda bench: bench.run(eval_data_path=bench.data),
    "(nan_policy skip)": _with(partial(mishaps.loses_its_numbers, 1)),
    "--NAME: flag must exist": _with(learning_rat=1),
    "command line: argument": _with(learning_rate="fast"),
    "output_dir: must be given": _no_output_dir,
    "recipe: must be one": _verb("init", "flan-t5-xl-lorra", "-o", "FOLDER/my.yaml"),
    "NAME: must be VALUE as in": _twice(learning_rate=1e-3),
    "train_batch_size: must": _other_batch,
    "model_type must be": _other_kind,
    "loss mode: at most one": _with(last_response_loss=True, efficient_loss=True),
    "q_lora: needs": _with(q_lora=True),
    "report_to: must be": _with(report_to="clearml"),
    "must be one JSON object": _with_data("[{x}]"),
    "must hold at least one sample": _with_data(f"[{ROBOT}]"),
    "mend it or drop --strict_data": _with_data(f"[{ROBOT}]", strict_data=True),
    "must be a whole safetensors file": _cut_weights,
    "the third time in a row": _with(partial(mishaps.loses_its_numbers, 3), max_steps=3),
    "data_path: file must exist": _with(data_path=Path("nowhere.json")),
    "model_name_or_path: must be a folder": _with(model_name_or_path=Path("no/such-model")),
    "deepspeed: file must exist": _with(deepspeed="zero9.json"),
    "resume_from_checkpoint: a checkpoint must": _foreign_checkpoint,
    "folder: must hold": _verb("report", "FOLDER"),
    "output_dir: must be used by one": _two_jobs,
    "launch: all ranks": _taken_port,
    "doctor: no line": _verb("doctor", "--data_path", "FOLDER/none", "--output_dir", "FOLDER"),
    "hosts: NAME must have": _unknown_host,
    "this is a bug": _with(mishaps.has_a_bug),
    "memory: the run must fit": _with(mishaps.runs_out_of_memory),
    "output_dir: must have room": _with(mishaps.has_no_room),
    "bytes of weights must be": _with(partial(mishaps.cannot_write_more, 100_000)),
    "output_dir: must be writable": _with(output_dir=Path("/dev/null/out")),
    "stopped after step": _with(mishaps.is_asked_to_stop, max_steps=3),
    "before training began": _with(mishaps.gets_a_signal_early),
    "output_dir: must belong": _with(mishaps.belongs_to_another),
    "data_path: must be readable": _unreadable_data,
}


def trouble_of(message: str) -> str:
    """Give the name of the trouble that a line of the page tells."""
    (found,) = (name for name in TROUBLES if name in message)
    return found


def pattern_of(message: str) -> str:
    """Give what a line of the page must look like when a program says it."""
    parts = re.split(OURS, message)
    return ".+".join(re.escape(part) for part in parts)


@pytest.mark.parametrize(("code", "message"), [*messages()], ids=[trouble_of(message) for _, message in messages()])
def test_a_program_in_that_trouble_says_this_and_ends_with_that_code(
    code: int, message: str, tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    found, said = TROUBLES[trouble_of(message)](Bench(tiny_checkpoint, conversations_file, tmp_path))
    assert found == code, said
    told = pattern_of(message) if code in WITHOUT_ERROR else f"error: {pattern_of(message)}"
    # The hub's own reason is longer than the page shows.
    is_open = message.endswith("REASON")
    assert [line for line in said.splitlines() if re.fullmatch(told + ".*" * is_open, line)], said


def test_an_interrupt_says_nothing(tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path) -> None:
    code, said = Bench(tiny_checkpoint, conversations_file, tmp_path).run(mishaps.is_interrupted)
    assert code == 130
    assert "error: " not in said
    assert "Traceback" not in said


def test_every_code_has_a_section_and_every_trouble_a_line() -> None:
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert set(SECTIONS) == {0, 130, *codes}
    assert [trouble_of(message) for _, message in messages()] == [*TROUBLES]
