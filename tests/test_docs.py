"""The pages teach what works: each command is read by the parser of its program, and each program runs."""

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from ds_sft.cli import app
from ds_sft.config.parse import parse
from ds_sft.data.normalise import normalise
from ds_sft.data.read import open_records
from ds_sft.errors import DsSftError
from ds_sft.families import family_named
from ds_sft.tools.flags import sample_flags
from ds_sft.tools.recipes import shipped_recipes
from tests.conftest import ROOT
from tests.jobs import main_flags
from tests.pages import PAGES, TRAIN, blocks, page_commands, section, text_of
from tests.programs import run_main
from tests.ranks import run_ranks
from tests.test_launchers import launcher

README = "README.md"
NOT_RUN = {
    ". .venv/bin/activate": "the scripts make .venv, a test has its own",
}
REQUIRED = ("model_name_or_path", "data_path", "output_dir")
PLACEHOLDERS = ("recipe.yaml", "my.yaml")
"""Recipes of the reader; the tests put one there."""


@pytest.fixture
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages call the reader's."""
    for name in PLACEHOLDERS:
        (tmp_path / name).write_text(yaml.safe_dump(dict.fromkeys(REQUIRED, "unset")), encoding="utf-8")
    (tmp_path / "hostfile").write_text("localhost slots=2\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dry_run(words: Sequence[str]) -> None:
    """Read a command as the program that it starts would, up to the point where that would begin its work."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if shlex.join(words) in NOT_RUN:
        return
    if any(word.endswith(TRAIN) for word in words):
        _main_job(words)
        return
    PROGRAMS[words[0]](list(words[1:]))


def _main_job(words: Sequence[str]) -> None:
    index = next(number for number, word in enumerate(words) if word.endswith(TRAIN))
    LAUNCHERS[Path(words[0]).name](list(words[1:]))
    _flags_of_training(words[index + 1 :])


def _flags_of_training(arguments: Sequence[str]) -> None:
    if "--help" in arguments:
        return
    has_recipe = bool(arguments) and not arguments[0].startswith("-")
    missing = [name for name in REQUIRED if not has_recipe and f"--{name}" not in arguments]
    settings = parse([*arguments, *(word for name in missing for word in (f"--{name}", "unset"))])
    assert settings.notes == (), "a page must not teach flags that need a translation"


def _deepspeed(arguments: list[str]) -> None:
    from deepspeed.launcher.runner import parse_args

    assert parse_args(arguments).user_script.endswith(TRAIN)


def _torchrun(arguments: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    assert get_args_parser().parse_args(arguments).training_script.endswith(TRAIN)


def _accelerate(arguments: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser  # type: ignore[import-untyped]  # it has no types

    assert arguments[0] == "launch"
    assert launch_command_parser().parse_args(arguments[1:]).training_script.endswith(TRAIN)


def _python(arguments: list[str]) -> None:
    if arguments[0].endswith(TRAIN):
        return
    assert arguments[:2] == ["-m", "benchmarks.run"], "say here how this program reads its arguments"
    _benchmark(arguments[2:])


def _benchmark(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for flag in (word for word in arguments if word.startswith("--")):
        assert f"{flag} " in done.stdout


def _verb(arguments: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    name, *rest = arguments
    verb = group.get_command(group.make_context("ds-sft", [name], resilient_parsing=True), name)
    assert verb is not None, f"ds-sft has no verb {name}"
    context = verb.make_context(name, list(rest))
    if name == "bench":
        _benchmark(context.args)
    elif context.args:
        is_shipped = name == "plan" and context.args[0] in {recipe.name for recipe in shipped_recipes()}
        _flags_of_training(context.args[is_shipped:])
    if name in {"validate", "preview"}:
        named = {word.removeprefix("--") for word in context.args if word.startswith("--")}
        assert named <= sample_flags()
    if name == "init":
        assert context.params["recipe"] in {recipe.name for recipe in shipped_recipes()}


def _script(arguments: list[str]) -> None:
    script, *rest = arguments
    name = Path(script).name
    if script == "tests/run.sh":
        assert all((ROOT / word).exists() for word in rest)
    elif name == "quickstart.sh":
        has_family = bool(rest) and not rest[0].startswith("-")
        assert not has_family or family_named(rest[0])
        _flags_of_training(rest[has_family:])
    else:
        given = [word for word in rest if word != "--dry-run"]
        code, out, err = launcher(name, "--dry-run", *given, folder=Path.cwd())
        assert (code, err) == (0, "")
        words = shlex.split(out)
        _flags_of_training(words[next(place for place, word in enumerate(words) if word.endswith(TRAIN)) + 1 :])


def _sbatch(arguments: list[str]) -> None:
    _script(arguments[arguments.index("launchers/slurm.sbatch") :])


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "python": _python,
    "ds-sft": _verb,
    "bash": _script,
    "sbatch": _sbatch,
}
LAUNCHERS = {"deepspeed": _deepspeed, "torchrun": _torchrun, "accelerate": _accelerate, "python": _python}


def files_named(words: Sequence[str]) -> list[str]:
    """Give the words of a command that must be files or folders of the repository."""
    ours = {file.name for file in ROOT.iterdir() if file.is_dir() and not file.name.startswith(".")}
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if ("/" in word and word.split("/")[0] in ours - {"runs"}) or word.endswith(".sh") or before == "--deepspeed"
    ]


@pytest.mark.parametrize(
    "words", [pytest.param(words, id=f"{page}-{number}") for number, (page, words) in enumerate(page_commands())]
)
def test_every_command_of_a_page_is_read_by_the_program_it_starts(words: list[str], readers_folder: Path) -> None:
    dry_run(words)
    assert [name for name in files_named(words) if not (ROOT / name).exists()] == []


def test_every_exception_is_needed_and_every_way_to_read_a_command_is_used() -> None:
    told = {shlex.join(words) for _, words in page_commands()}
    assert set(NOT_RUN) <= told
    first = {Path(word).name for _, words in page_commands() for word in words}
    assert set(PROGRAMS) | set(LAUNCHERS) <= first


@pytest.mark.parametrize(
    "command",
    [
        f"deepspeed --gpus 2 {TRAIN} recipe.yaml",
        f"torchrun --ranks 2 {TRAIN} recipe.yaml",
        f"accelerate launch --num_procs 2 {TRAIN} recipe.yaml",
        f"python {TRAIN} recipe.yaml --learning_rat 1",
        f"python {TRAIN} recipe.yaml --learning_rate fast",
        f"python {TRAIN} recipe.yaml --warmup_ratio 0.1",
        f"python {TRAIN} nowhere.yaml",
        "ds-sft previw --model_name_or_path M --data_path D",
        "ds-sft preview --model_name_or_path M --data_path D -n none",
        "ds-sft preview --model_name_or_path M --data_path D --learning_rate 1",
        "ds-sft init flan-t5-xl-fully -o my.yaml",
        "ds-sft bench --suit cpu",
        "bash launchers/single_gpu_lora.sh MODEL DATA",
        "bash launchers/quickstart.sh gpt2",
        "rm recipe.yaml",
    ],
)
def test_a_wrong_command_of_a_page_would_be_found(command: str, readers_folder: Path) -> None:
    with pytest.raises((AssertionError, KeyError, SystemExit, DsSftError, typer.BadParameter)):
        dry_run(shlex.split(command))


@pytest.mark.parametrize("page", PAGES)
def test_every_verb_in_the_text_of_a_page_exists(page: str) -> None:
    group: Any = typer.main.get_command(app)
    named = re.findall(r"`ds-sft ([a-z]+)", text_of(page))
    assert sorted(set(named) - set(group.commands)) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_recipe_on_a_page_is_accepted(page: str, tmp_path: Path) -> None:
    for text in blocks(text_of(page), "yaml"):
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
        settings = parse([str(tmp_path / "recipe.yaml")])
        assert settings.notes == ()
        assert (ROOT / settings.training["deepspeed"]).is_file()


def test_every_record_of_the_data_section_is_usable(tmp_path: Path) -> None:
    (text,) = blocks(section(README, "Data"), "json")
    (tmp_path / "data.json").write_text(text, encoding="utf-8")
    outcomes = [normalise(conversation)[0] for conversation in open_records(tmp_path / "data.json")]
    assert [outcome.exchanges[0].answer for outcome in outcomes] == ["4", "4", "4"]  # type: ignore[union-attr]  # fails where one is a Rejection


@pytest.mark.parametrize("page", PAGES)
def test_every_program_on_a_page_is_python(page: str) -> None:
    for text in blocks(text_of(page), "python"):
        compile(text, page, "exec")


def printed_by(program: Path) -> str:
    """Run a Python program and give what it prints."""
    shown = StringIO()
    with redirect_stdout(shown):
        runpy.run_path(str(program))
    return shown.getvalue()


def test_the_program_that_loads_a_model_loads_one_and_prints_an_answer(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert run_main(main_flags(tiny_checkpoint, conversations_file, run, max_steps=1), tmp_path).code == 0
    (text,) = blocks(text_of(README), "python")
    assert text.count('"PATH"') == 2
    program = tmp_path / "program.py"
    program.write_text(text.replace('"PATH"', repr(str(run))).replace("=256", "=4"), encoding="utf-8")
    (shown,) = run_ranks(printed_by, program, world_size=1)
    assert len(shown) > 1
    assert "<pad>" not in shown
