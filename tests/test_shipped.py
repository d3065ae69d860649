"""What we ship holds together: scripts parse, commands of the pages work, and the pages name what there is."""

import re
import shlex
import subprocess
from dataclasses import MISSING, fields
from inspect import get_annotations
from pathlib import Path

import pytest
import yaml

from ds_sft import errors
from ds_sft.config.aliases import ALIASES
from ds_sft.config.arguments import DataArguments, LoraArguments, ModelArguments, TrainingArguments
from ds_sft.config.parse import parse
from ds_sft.errors import UsageError
from tests.conftest import ROOT
from tests.pages import TRAIN, blocks, page_commands

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted(
    str(file.relative_to(ROOT)) for ending in ("*.sh", "*.sbatch") for file in (ROOT / "launchers").rglob(ending)
)
REQUIRED = ["model_name_or_path", "data_path", "output_dir"]
# Built from parts, because this file is searched too.
FOREIGN = ["/" + "work/", "." + "library", "farm" + "-"]


def train_commands(text: str) -> list[list[str]]:
    """Give the words of the commands that run the main job with flags of their own; no other line is read as words."""
    joined = re.sub(r"\\+\n", " ", text).splitlines()
    return [
        shlex.split(line)
        for line in joined
        if f"{TRAIN} " in line.replace('"', " ") and " --" in line and not _passes_on(line)
    ]


def _passes_on(line: str) -> bool:
    """Tell whether a line is a comment, or hands the main job only what the launcher was given."""
    return line.lstrip().startswith("#") or re.search(rf'{TRAIN}"\s+"\$@"', line) is not None


def shipped_jobs() -> list[tuple[str, list[str]]]:
    """Give every command of a script that runs the main job with flags of its own, and that script."""
    return [
        (script, words) for script in SCRIPTS for words in train_commands((ROOT / script).read_text(encoding="utf-8"))
    ]


def as_started(words: list[str], recipe: Path) -> list[str]:
    """Give the arguments that train.py would see, with a value of its own for everything that the shell fills in."""
    index = next(number for number, word in enumerate(words) if word.endswith(TRAIN))
    # DeepSpeed's launcher puts the rank in front of everything else.
    given = ["--local_rank=0"] if any(Path(word).name == "deepspeed" for word in words[:index]) else []
    for position, word in enumerate(words[index + 1 :]):
        if word == "$@":
            continue
        is_recipe = position == 0 and not word.startswith("-")
        given.append(str(recipe) if is_recipe else "1" if "$((" in word else word.replace("$", ""))
    return given


def tree() -> list[str]:
    """Give the paths of the README's annotated tree; two spaces of indentation are one folder."""
    (block,) = blocks(README.split("\n## Files\n")[1], "text")
    paths: list[str] = []
    folders: list[str] = []
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        paths.append("".join(folders))
    return paths


def repository_files() -> list[str]:
    """Give every file that is, or is about to be, under version control."""
    told = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode:
        pytest.skip("this copy of the repository has no history")
    return [name for name in told.stdout.split("\0") if name and (ROOT / name).is_file()]


def own_flags() -> list[tuple[str, str]]:
    """Give name and default, as the README writes them, of every flag that is ours or differs from transformers."""
    own = set(get_annotations(TrainingArguments))
    chosen = [
        *fields(ModelArguments),
        *fields(DataArguments),
        *(field for field in fields(TrainingArguments) if field.name in own),
    ]
    return [(field.name, _written(field.default)) for field in chosen]


def _written(default: object) -> str:
    return "required" if default is MISSING else "not set" if default is None else f"`{default}`"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_launcher_is_a_script_that_bash_can_read(script: str) -> None:
    done = subprocess.run(["bash", "-n", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "words", [pytest.param(words, id=f"{where}-{number}") for number, (where, words) in enumerate(shipped_jobs())]
)
def test_every_main_job_of_a_script_is_accepted(words: list[str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(dict.fromkeys(REQUIRED, "unset")), encoding="utf-8")
    arguments = as_started(words, recipe)
    if "--help" in arguments:
        with pytest.raises(SystemExit) as left:
            parse(arguments)
        assert left.value.code == 0
    else:
        assert parse(arguments).notes == (), "a script must not use flags that need a translation"


def test_pages_and_scripts_show_the_main_job_under_every_launcher() -> None:
    jobs = [(page, words) for page, words in page_commands() if any(word.endswith(TRAIN) for word in words)]
    assert {"deepspeed", "torchrun", "accelerate", "python"} <= {words[0] for _, words in jobs}
    assert {page for page, _ in jobs} >= {"README.md", "launchers/README.md"}
    assert {script for script, _ in shipped_jobs()} >= {"launchers/quickstart.sh"}


def test_a_wrong_flag_of_a_page_would_be_found(tmp_path: Path) -> None:
    (words,) = train_commands(f"deepspeed {TRAIN} \\\n  --data_pat x\n")
    with pytest.raises(UsageError, match="--data_pat"):
        parse([*(word for name in REQUIRED for word in (f"--{name}", "x")), *as_started(words, tmp_path)])


@pytest.mark.parametrize(("name", "default"), own_flags())
def test_every_flag_of_ours_stands_in_the_readme_with_its_default(name: str, default: str) -> None:
    assert f"\n| `--{name}` | {default} | " in README


@pytest.mark.parametrize("name", [*ALIASES, *(field.name for field in fields(LoraArguments))])
def test_every_old_flag_and_every_flag_for_later_is_named_in_the_readme(name: str) -> None:
    assert re.search(rf"`--{name}[` ]", README)


@pytest.mark.parametrize(
    "code", [0, 130, *(value for name, value in sorted(vars(errors).items()) if name.startswith("EXIT_"))]
)
def test_every_exit_code_stands_in_the_readme(code: int) -> None:
    table = README.split("\n## Exit codes\n")[1].split("\n## ")[0]
    assert f"\n| {code} | " in table


def test_every_path_of_the_tree_exists() -> None:
    assert len(tree()) > 50
    assert [path for path in tree() if not (ROOT / path).exists()] == []
    assert [path for path in tree() if (ROOT / path).is_dir() != path.endswith("/")] == []


def test_the_tree_leaves_nothing_out() -> None:
    shown = set(tree())
    missing = [name for name in repository_files() if name not in shown and not name.startswith("tests/")]
    assert missing == []
    assert {f"{Path(name).parts[0]}/" for name in repository_files() if "/" in name} <= shown


@pytest.mark.parametrize("word", FOREIGN)
def test_no_file_knows_the_machine_it_was_written_on(word: str) -> None:
    names = repository_files()
    assert len(names) > 50
    assert [name for name in names if word in (ROOT / name).read_text(encoding="utf-8", errors="replace")] == []


def test_the_hooks_run_what_the_test_runner_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    checks = [
        " ".join(line.split(";", 1)[1].split())
        for line in re.sub(r"\\\n", " ", (ROOT / "tests" / "run.sh").read_text(encoding="utf-8")).splitlines()
        if line.startswith("say ") and ";" in line
    ]
    assert [hook["entry"] for hook in hooks] == checks
    assert {hook["language"] for hook in hooks} == {"system"}


def test_the_readme_has_no_figure_left_to_fill_in() -> None:
    assert "<<" not in (ROOT / "README.md").read_text(encoding="utf-8")
