"""The first samples are shown as training sees them: as text, as JSON, or on a page."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from ds_sft.contracts import IGNORE_INDEX, Layout, LayoutOptions
from ds_sft.data.draft import Encoder, draft_conversation
from ds_sft.data.read import open_records, texts_of
from ds_sft.errors import DataError
from ds_sft.families import family_named
from ds_sft.tools.preview import Look, preview

GOLDEN = Path(__file__).parents[1] / "golden" / "conversations"
LOOK = Look(num=5, is_json=False, is_coloured=False, page=None)
ALL = Look(num=10**9, is_json=True, is_coloured=False, page=None)
MODES = {
    "last_response": ["--last_response_loss"],
    "split": ["--split_example_loss"],
    "efficient": ["--efficient_loss"],
    "efficient_fastchat_layout": ["--efficient_loss", "--layout", "fastchat"],
}


def golden_rows(name: str) -> list[dict[str, Any]]:
    """Give the oracle's rows without a limit; those with one count characters."""
    rows: list[dict[str, Any]] = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    return [row for row in rows if not row["max_len"]]


T5_ROWS, YUAN2_ROWS = golden_rows("expected_semantics.json"), golden_rows("expected_semantics_yuan2.json")


@pytest.fixture(scope="module")
def golden_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints whose tokenizers have a piece for every character of the golden conversations."""
    texts = texts_of(open_records(GOLDEN / "conversations.json"))
    folders = {name: tmp_path_factory.mktemp(name) for name in ("flan_t5", "yuan2")}
    for name, folder in folders.items():
        family_named(name).write_tiny_checkpoint(folder, texts)
    return folders


def flags(model: Path, file: Path) -> list[str]:
    return ["--model_name_or_path", str(model), "--data_path", str(file)]


def plain(lines: list[str | Text]) -> str:
    return "\n".join(line if isinstance(line, str) else line.plain for line in lines)


def objects(arguments: list[str], look: Look = ALL) -> list[dict[str, Any]]:
    return [json.loads(str(line)) for line in preview(arguments, look)]


def stretches(segments: list[dict[str, Any]], *, side: str | None = None) -> list[str]:
    """Join the texts of neighbouring supervised segments."""
    found, before = [], False
    for one in segments:
        if one.get("side") == side and one["loss"]:
            found += [""] * (not before)
            found[-1] += one["text"]
        before = one["loss"]
    return found


def test_an_object_of_a_pair_holds_ids_labels_and_segments_of_both_sides(
    tiny_checkpoint: Path, conversations_file: Path
) -> None:
    family = family_named("flan_t5")
    encoder = Encoder(family, family.load_tokenizer(tiny_checkpoint), LayoutOptions(max_tokens=2048))
    layout, _ = draft_conversation(open_records(conversations_file)[0], encoder)
    assert isinstance(layout, Layout)
    (draft,) = layout.drafts
    expected = encoder.example(draft)
    first, counters = objects(flags(tiny_checkpoint, conversations_file), replace(ALL, num=1))
    assert first == {
        "record": 1,
        "id": "qs-001",
        "sample": 0,
        "input_ids": expected.input_ids,
        "labels": expected.labels,
        "segments": [
            {"side": "source", "kind": "text", "text": "".join(one.text for one in draft.source[:-1]), "loss": False},
            {"side": "source", "kind": "eos", "text": "</s>", "loss": False},
            {"side": "target", "kind": "text", "text": draft.target[0].text, "loss": True},
            {"side": "target", "kind": "eos", "text": "</s>", "loss": True},
        ],
    }
    num_tokens = len(expected.input_ids) + len(expected.labels)
    assert {name: counters["counters"][name] for name in ("records", "samples", "tokens_total")} == {
        "records": 1,
        "samples": 1,
        "tokens_total": num_tokens,
    }


def golden_samples(model: Path, *mode: str) -> list[dict[str, Any]]:
    """Show all of the golden conversations, with a limit that none reaches."""
    return objects([*flags(model, GOLDEN / "conversations.json"), "--model_max_length", "100000", *mode])[:-1]


def test_the_oracle_agrees_on_every_pair_on_real_pieces(golden_folders: dict[str, Path]) -> None:
    shown = golden_samples(golden_folders["flan_t5"])
    for row in T5_ROWS:
        mine = [one for one in shown if one["id"] == row["id"]]
        assert [
            (joined(one, "source"), joined(one, "target"), stretches(one["segments"], side="target")) for one in mine
        ] == [(sample["source_full"], sample["target_full"], sample["supervised"]) for sample in row["samples"]]
    assert len(shown) == sum(len(row["samples"]) for row in T5_ROWS) > 30


@pytest.mark.parametrize("mode", MODES)
def test_the_oracle_agrees_on_every_sequence_on_real_pieces(mode: str, golden_folders: dict[str, Path]) -> None:
    shown = golden_samples(golden_folders["yuan2"], *MODES[mode])
    rows = [row for row in YUAN2_ROWS if row["mode"] == mode]
    for row in rows:
        mine = [one for one in shown if one["id"] == row["id"]]
        assert [(joined(one, None), stretches(one["segments"])) for one in mine] == [
            (sample["full"], sample["supervised"]) for sample in row["samples"]
        ]
    assert len(shown) == sum(len(row["samples"]) for row in rows) > 15


def joined(shown: dict[str, Any], side: str | None) -> str:
    return "".join(one["text"] for one in shown["segments"] if one.get("side") == side)


def test_control_tokens_of_a_sequence_are_segments_of_their_own(golden_folders: dict[str, Path]) -> None:
    first = objects(flags(golden_folders["yuan2"], GOLDEN / "conversations.json"), replace(ALL, num=1))[0]
    assert [(one["kind"], one["loss"]) for one in first["segments"]] == [
        ("text", False),
        ("sep", False),
        ("text", True),
        ("eod", True),
    ]
    masked = [label == IGNORE_INDEX for label in first["labels"]]
    assert masked == sorted(masked, reverse=True)
    assert [label for label in first["labels"] if label != IGNORE_INDEX] == first["input_ids"][sum(masked) :]


def test_json_holds_no_character_that_a_terminal_would_obey(tiny_yuan2: Path, tmp_path: Path) -> None:
    evil = "\x1b[2J\x7f\x9b\u202e"
    turns = [{"from": "human", "value": evil}, {"from": "gpt", "value": evil}]
    (tmp_path / "d.json").write_text(json.dumps([{"id": evil, "conversations": turns}]), encoding="utf-8")
    lines = list(preview(flags(tiny_yuan2, tmp_path / "d.json"), ALL))
    assert [line for line in lines if not (isinstance(line, str) and line.isascii() and line.isprintable())] == []
    shown = json.loads(str(lines[0]))
    assert (shown["id"], shown["segments"][0]["text"]) == (evil, evil)


def test_text_begins_with_what_the_marks_mean_and_has_one_block_a_sample(
    tiny_checkpoint: Path, conversations_file: Path, told: pytest.LogCaptureFixture
) -> None:
    lines = list(preview(flags(tiny_checkpoint, conversations_file), replace(LOOK, num=2)))
    assert plain(lines[:1]) == "[[trained]] masked\n"
    assert [plain([line]).split(":")[0] for line in lines[1:]] == [
        "record 1 'qs-001', sample 0",
        "record 2 'qs-002', sample 0",
    ]
    assert told.messages[-1].startswith("next: ds-sft train ")


def test_a_page_is_written_instead_of_text(tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "mask.html"
    assert list(preview(flags(tiny_checkpoint, conversations_file), replace(LOOK, num=3, page=page))) == []
    data = page.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0]
    assert len(json.loads(data)["samples"]) == 3


def test_a_page_and_json_can_be_had_at_once(tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "mask.html"
    shown = objects(flags(tiny_checkpoint, conversations_file), replace(ALL, num=3, page=page))
    assert [set(one) == {"counters"} for one in shown] == [False, False, False, True]
    assert page.is_file()


def test_without_a_sample_the_data_is_at_fault(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text('[{"conversations": [{"from": "robot", "value": "x"}]}]')
    with pytest.raises(DataError, match=r"none of 1 records gave one \(1 records, 1 rejected_unknown_role\)"):
        list(preview(flags(tiny_checkpoint, tmp_path / "d.json"), LOOK))


def test_samples_that_teach_next_to_nothing_are_told_in_one_line(
    tiny_yuan2: Path, tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    turns = [{"from": "human", "value": "x y z " * 80}, {"from": "gpt", "value": "a"}]
    (tmp_path / "d.json").write_text(json.dumps([{"conversations": turns}] * 2), encoding="utf-8")
    list(preview(flags(tiny_yuan2, tmp_path / "d.json"), LOOK))
    assert "2 samples train below 5 % of their labels, first: record 1, sample 0" in told.messages
