"""What the page for users of FastChat says: their commands, their flags, and what both make of one conversation."""

import json
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ds_sft.config.arguments import LoraArguments, TrainingArguments
from ds_sft.families import family_named
from ds_sft.tools.preview import Look, preview
from tests.jobs import read_json
from tests.pages import blocks, commands, section, table_rows, text_of
from tests.programs import run_main

PAGE = "launchers/moving_from_fastchat.md"
OWN_DATA = text_of(PAGE).split("\n### See it with your own data\n")[1].split("\n## ")[0]
WAYS = re.split(r"^### ", section(PAGE, "Commands"), flags=re.MULTILINE)[1:]
LOOK = Look(num=9, is_json=False, is_coloured=False, page=None)


def old_and_new(way: str) -> tuple[list[str], list[str]]:
    """Give the arguments of both programs."""
    (old,), (new,) = commands(blocks(way, "text")[0]), commands(blocks(way, "bash")[0])
    return arguments_of(old), arguments_of(new)


def arguments_of(words: list[str]) -> list[str]:
    return words[1 + next(place for place, word in enumerate(words) if word.endswith(".py")) :]


def flags_in(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("--")}


FAULT = pytest.param(64, 0, "tiny_checkpoint", id="Flan-T5"), pytest.param(64, 2, "tiny_checkpoint", id="LoRA")


@pytest.mark.parametrize(("code", "way", "model"), [*FAULT, pytest.param(0, 1, "tiny_yuan2", id="Yuan2")])
def test_an_old_command_ends_as_the_page_says(
    code: int, way: int, model: str, request: pytest.FixtureRequest, conversations_file: Path, tmp_path: Path
) -> None:
    named = {
        "MODEL": str(request.getfixturevalue(model)),
        "data.json": str(conversations_file),
        "runs/my-model": str(tmp_path / "out"),
        "runs/my-adapter": str(tmp_path / "out"),
    }
    old, _ = old_and_new(WAYS[way])
    ended = run_main([*(named.get(word, word) for word in old), "--max_steps", "1", "--report_to", "none"], tmp_path)
    expected = blocks(WAYS[way], "text")[1].splitlines()
    assert ended.code == code, ended.said
    assert [line for line in ended.said.splitlines() if line in expected] == expected, ended.said


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.split("\n")[0])
def test_every_flag_that_a_new_command_changes_stands_in_the_table(way: str) -> None:
    old, new = old_and_new(way)
    told = {flag for row in table_rows(section(PAGE, "Flags")) for flag in re.findall(r"--\w+", " ".join(row))}
    assert flags_in(old) ^ flags_in(new) <= told


@pytest.mark.parametrize(
    ("name", "group"),
    [("model_max_length", TrainingArguments), ("report_to", TrainingArguments), ("lora_r", LoraArguments)],
)
def test_a_default_of_the_table_is_ours(name: str, group: Any) -> None:
    (default,) = (field.default for field in fields(group) if field.name == name)
    (row,) = (row for row in table_rows(section(PAGE, "Flags")) if row[0] == f"`--{name}`")
    assert row[2].startswith({2048: "2048", "tensorboard": "`tensorboard`", None: "not set"}[default])


def test_the_targets_of_adapters_in_the_table_are_ours() -> None:
    (row,) = (row for row in table_rows(section(PAGE, "Flags")) if row[0] == "`--lora_target_modules`")
    t5, yuan2 = (" ".join(family_named(name).lora_targets) for name in ("flan_t5", "yuan2"))
    assert row[2] == f"T5 `{t5}`; Yuan2 `{yuan2}`"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The conversation of the page."""
    (text,) = blocks(text_of(PAGE), "json")
    file = tmp_path_factory.mktemp("data") / "data.json"
    file.write_text(text, encoding="utf-8")
    return file


SHOWN = list(zip(commands("".join(blocks(OWN_DATA, "bash"))), blocks(OWN_DATA, "text"), strict=True))


@pytest.mark.parametrize(("command", "shown"), SHOWN, ids=[shlex.join(command[6:]) for command, _ in SHOWN])
def test_preview_shows_what_the_page_shows(command: list[str], shown: str, data: Path, tiny_yuan2: Path) -> None:
    named = {"MODEL": str(tiny_yuan2), "data.json": str(data)}
    lines = [str(line) for line in preview([named.get(word, word) for word in command[2:]], LOOK)]
    samples = [line for told in lines for line in told.splitlines() if line.startswith("What is")]
    assert samples == shown.splitlines()


def fastchats_mask(text: str, tokenizer: Any, *, has_start: bool) -> str:
    """Count as FastChat's last-response and split losses do, and show what they train.

    The first token is masked; behind it each part between two `<sep>` takes as many places as it has tokens alone, the
    ones in the middle one more; the last part and all behind it is masked; where the places are not as many as the
    tokens of the whole, everything is.
    """

    def ids_of(part: str) -> list[int]:
        return [*([tokenizer.convert_tokens_to_ids("<s>")] if has_start else []), *tokenizer(part)["input_ids"]]

    ids, parts = ids_of(text), text.split("<sep>")
    sizes = [len(ids_of(part)) + (0 < place < len(parts) - 1) for place, part in enumerate(parts)]
    trained = range(1, 1 + sum(sizes[:-1])) if 1 + sum(sizes) == len(ids) else range(0)
    whole = tokenizer.decode(ids)
    if not trained:
        return str(whole)
    # Of what is in front, because a stretch alone is decoded without its first space.
    start, stop = (len(tokenizer.decode(ids[:place])) for place in (trained.start, trained.stop))
    return f"{whole[:start]}[[{whole[start:stop]}]]{whole[stop:]}"


def test_fastchat_trains_the_question_or_nothing(tiny_yuan2: Path, data: Path) -> None:
    turns = [turn["value"] for turn in read_json(data)[0]["conversations"]]
    text = "{}<n>{}<n>{}<sep>{}<eod>".format(*turns)
    tokenizer = family_named("yuan2").load_tokenizer(tiny_yuan2)
    shown = [fastchats_mask(text, tokenizer, has_start=has_start) for has_start in (False, True)]
    old_run = section(PAGE, "What your old Yuan2 run was trained on").split("\n### ")[0]
    assert shown == [block.strip() for block in blocks(old_run, "text")]


def test_a_short_answer_of_t5_is_a_sample(tiny_checkpoint: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Yes?"}, {"from": "gpt", "value": "A"}]
    (tmp_path / "d.json").write_text(json.dumps([{"conversations": turns}]), encoding="utf-8")
    flags = ["--model_name_or_path", str(tiny_checkpoint), "--data_path", str(tmp_path / "d.json")]
    (shown, _) = (json.loads(str(line)) for line in preview(flags, Look(9, is_json=True, is_coloured=False, page=None)))
    assert len(shown["labels"]) <= 5
