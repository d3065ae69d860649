"""The verbs as a user runs them: what they load, what they write where, and how they end."""

import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import ds_sft
from ds_sft import cli

ROOT = Path(__file__).parent.parent
HEAVY = "{'torch', 'deepspeed', 'transformers.modeling_utils', 'transformers.trainer', 'peft', 'accelerate'}"
PLAIN = {"PYTHONIOENCODING": "utf-8", "TERM": "xterm"}


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it wrote."""

    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    dropped = ("NO_COLOR", "FORCE_COLOR", "RANK", "LOCAL_RANK", "COLUMNS")
    return {name: value for name, value in os.environ.items() if name not in dropped} | PLAIN | more


def ds_sft_verb(*words: str | Path, stdin: str | None = None, **more: str) -> Ended:
    """Run `ds-sft WORDS` on some lines; the last one on stderr names the heavy packages that it loaded."""
    program = (
        "import sys; from ds_sft.cli import main\n"
        f"try: main()\nfinally: print('loaded', *sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        cwd=ROOT, env=environment(**more), capture_output=True, encoding="utf-8", timeout=60, check=False, input=stdin,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def named(tiny_checkpoint: Path, conversations_file: Path) -> list[str]:
    """The two flags that nothing can be done without."""
    return ["--model_name_or_path", str(tiny_checkpoint), "--data_path", str(conversations_file)]


@pytest.mark.parametrize("words", [["--help"], ["preview", "--help"], ["validate", "-h"], ["--version"]])
def test_help_loads_no_heavy_package_and_not_even_transformers(words: list[str]) -> None:
    program = "import sys; from ds_sft.cli import app\ntry: app()\nfinally: sys.exit('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout


@pytest.mark.parametrize("verb", ["validate", "preview"])
@pytest.mark.parametrize("folder", ["tiny_checkpoint", "tiny_yuan2"])
def test_looking_at_data_loads_no_torch_and_no_model_code(
    verb: str, folder: str, request: pytest.FixtureRequest, conversations_file: Path
) -> None:
    model = request.getfixturevalue(folder)
    ended = ds_sft_verb(verb, "--model_name_or_path", model, "--data_path", conversations_file)
    assert ended.code == 0
    assert ended.err.splitlines()[-1].split() == ["loaded"]


def test_the_verbs_are_those_of_the_help() -> None:
    told = CliRunner().invoke(cli.app, ["--help"]).stdout
    assert [
        verb
        for verb in (
            *("train", "launch", "doctor", "validate", "preview"),
            *("merge", "generate", "chat", "recipes", "init", "report", "plan"),
        )
        if f" {verb} " not in told
    ] == []


def test_a_doctor_loads_no_heavy_package_and_says_one_fact_a_line() -> None:
    ended = ds_sft_verb("doctor", "--output_dir", "/")
    assert ended.err.splitlines()[-1].split() == ["loaded"]
    assert {line[:2] for line in ended.out.splitlines()} <= {"✓ ", "! ", "✗ "}
    assert [line.split()[1] for line in ended.out.splitlines()][:2] == ["versions:", "GPUs:"]


def test_a_doctor_ends_with_69_and_tells_json_when_something_must_be_mended(tmp_path: Path) -> None:
    ended = ds_sft_verb("doctor", "--json", "--data_path", tmp_path / "none", "--output_dir", tmp_path)
    told = {fact["name"]: fact for fact in json.loads(ended.out)["facts"]}
    assert ended.code == 69
    assert told["data_path"] == {
        "name": "data_path",
        "level": "fault",
        "told": f"{tmp_path / 'none'} does not exist",
        "fix": "copy it there, or use a shared folder",
    }


def test_the_version_is_the_packages() -> None:
    assert CliRunner().invoke(cli.app, ["--version"]).stdout == f"{ds_sft.__version__}\n"


def test_the_help_of_a_verb_names_the_flags_of_training() -> None:
    told = CliRunner().invoke(cli.app, ["preview", "--help"]).stdout
    assert "--model_max_length (default: 2048)" in told
    assert "--html" in told


def test_an_unknown_verb_is_a_usage_fault() -> None:
    ended = ds_sft_verb("previw")
    assert ended.code == 2
    assert "previw" in ended.err


def test_an_unknown_recipe_is_a_usage_fault_of_one_line(tmp_path: Path) -> None:
    ended = ds_sft_verb("init", "yuan2-2b-lorra", "-o", tmp_path / "my.yaml")
    assert ended.code == 2
    assert ended.err.splitlines() == [
        "error: recipe: must be one that `ds-sft recipes` lists, but is 'yuan2-2b-lorra'; did you mean yuan2-2b-lora?"
    ]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["generate", "MODEL", "--data_path", "none.json", "-o", "o.jsonl", "--top_p", "2"], 64),
        (["generate", "MODEL", "--data_path", "none.json", "-o", "o.jsonl"], 66),
        (["chat", "MODEL", "--temperature", "nan"], 64),
        (["chat", "./MODEL"], 66),
    ],
)
def test_a_wrong_flag_of_a_verb_that_asks_a_model_is_told_before_torch_is_loaded(words: list[str], code: int) -> None:
    # A fault leaves by os._exit, so what was loaded is told there.
    program = (
        "import os, sys; from ds_sft.cli import main\nleave = os._exit\n"
        "os._exit = lambda code: (print('loaded', 'torch' in sys.modules, flush=True), leave(code))\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (code, "loaded False\n")
    assert len(done.stderr.splitlines()) == 1


def test_the_report_of_an_empty_folder_is_one_line_and_66(tmp_path: Path) -> None:
    ended = ds_sft_verb("report", tmp_path)
    assert ended.code == 66
    assert ended.err.startswith(
        f"error: folder: must hold trainer_state.json, a checkpoint with one, or events.jsonl, but {tmp_path}"
    )
    assert len(ended.err.splitlines()) == 1
    assert ended.out == ""


def test_a_report_loads_no_torch_and_no_model_code(named: list[str], tmp_path: Path) -> None:
    settings = {"model_name_or_path": named[1], "data_path": named[3], "output_dir": str(tmp_path)}
    (tmp_path / "ds_sft.resolved.yaml").write_text(json.dumps(settings))
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"step": 1, "loss": 2.0}]}')
    ended = ds_sft_verb("report", tmp_path)
    assert ended.code == 0
    assert ended.err.splitlines()[-1].split() == ["loaded"]
    assert "samples of conversations.json" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_an_unknown_flag_of_a_verb_is_a_usage_fault_of_one_line(named: list[str]) -> None:
    ended = ds_sft_verb("preview", *named, "--model_max_lenght", "9")
    assert ended.code == 2
    assert ended.err == "error: --model_max_lenght: flag must exist, but does not; did you mean --model_max_length?\n"


def test_train_is_the_main_job_with_its_arguments_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("ds_sft.train.main", lambda: seen.append(sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", ["ds-sft"])
    words = ["r.yaml", "--learning-rate=1e-4", "--help", "--bf16", "True", "--num_data", "-1", "--json", "-n"]
    assert CliRunner().invoke(cli.app, ["train", *words]).exit_code == 0
    assert seen == [words]


def test_results_go_to_stdout_and_all_else_to_stderr(named: list[str]) -> None:
    ended = ds_sft_verb("preview", "-n", "2", *named, "--json")
    objects: list[dict[str, Any]] = [json.loads(line) for line in ended.out.splitlines()]
    assert [one.get("record") for one in objects] == [1, 2, None]
    assert "next: ds-sft train" in ended.err


def test_own_options_may_stand_anywhere_among_flags_of_training(named: list[str], tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model_name_or_path: {named[1]}\nlast_response_loss: true\n")
    ended = ds_sft_verb("preview", str(recipe), "--json", "--data_path", named[3], "--num", "1", "--num-data", "-1")
    assert ended.code == 0
    assert len(ended.out.splitlines()) == 2


def test_a_file_that_teaches_nothing_ends_in_65_with_the_list(named: list[str], tmp_path: Path) -> None:
    file = tmp_path / "d.json"
    file.write_text('[{"conversations": [{"from": "robot", "value": "x"}]}]')
    ended = ds_sft_verb("validate", *named[:3], file)
    assert ended.code == 65
    assert ended.out.startswith(f"{file}: 1 records, 0 usable, 0 samples\n")
    assert [line.split(":")[:2] for line in ended.err.splitlines()] == [
        ["error", f" {file}"],
        ["error", f" {file}"],
    ]
    assert "record 1: unknown_role: turn 1 has role 'robot'" in ended.err


@pytest.mark.parametrize("more", [{}, {"NO_COLOR": "1"}])
def test_away_from_a_terminal_or_without_colour_there_is_no_escape(named: list[str], more: dict[str, str]) -> None:
    ended = ds_sft_verb("preview", *named, **more)
    assert "\x1b" not in ended.out + ended.err
    assert "[[" in ended.out


def test_a_stdout_without_the_characters_of_the_data_shows_their_escapes(named: list[str]) -> None:
    ended = ds_sft_verb("preview", *named, "-n", "1", PYTHONIOENCODING="ascii")
    assert ended.code == 0
    assert "\\u21b5" in ended.out


def on_a_terminal(words: list[str], **more: str) -> str:
    """Run a verb on a terminal of its own and give what that shows."""
    reader, terminal = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "ds_sft.cli", *words],
        cwd=ROOT, env=environment(**more), stdin=terminal, stdout=terminal, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    try:
        while piece := os.read(reader, 65536):
            shown += piece
    except OSError:
        pass  # what a terminal gives when the last writer has left
    os.close(reader)
    assert done.wait(timeout=60) == 0
    return shown.decode()


def test_on_a_terminal_trained_text_is_green_and_underlined(named: list[str]) -> None:
    assert "\x1b[4;32mParameters, gradients and optimizer states." in on_a_terminal(["preview", *named, "-n", "1"])


def test_on_a_terminal_without_colour_brackets_mark_what_is_trained(named: list[str]) -> None:
    shown = on_a_terminal(["preview", *named, "-n", "1"], NO_COLOR="1")
    assert "[[Parameters, gradients and optimizer states." in shown
    assert "\x1b" not in shown
