"""What is found in a data file is counted as written down by hand, and stretches add up to the whole."""

import json
from pathlib import Path
from typing import Any

import pytest

from ds_sft.contracts import IGNORE_INDEX, Family, Layout, LayoutOptions
from ds_sft.data.draft import Encoder, draft_conversation
from ds_sft.data.read import open_records
from ds_sft.families import family_named
from ds_sft.tools.findings import PLACES_SHOWN, Findings, control_tokens, find
from tests.tools.characters import encoder_of, inputs_of


def write(file: Path, *conversations: list[tuple[str, str]]) -> Path:
    content = [{"conversations": [{"from": role, "value": text} for role, text in one]} for one in conversations]
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def found(file: Path, encoder: Encoder, *, stretch: range | None = None) -> Findings:
    inputs = inputs_of(file, encoder)
    return find(inputs, range(len(inputs.records)) if stretch is None else stretch)


def asked(question: str, answer: str) -> list[tuple[str, str]]:
    return [("human", question), ("gpt", answer)]


def test_records_samples_and_tokens_are_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "d.json", asked("qq", "abc"), [("robot", "x")], asked("q", "abcdef"))
    findings = found(file, encoder_of("yuan2", max_tokens=9))
    # prefix q q sep prefix a b c eod fits; prefix q sep prefix a b c d e f eod is cut by two.
    assert {name: count for name, count in findings.counters.items() if not name.startswith("text_")} == {
        "records": 3,
        "usable": 2,
        "samples": 2,
        "rejected_unknown_role": 1,
        "answer_truncated": 1,
        "tokens_total": 18,
        "tokens_supervised": 5 + 6,
        "tokens_truncated": 2,
    }
    assert findings.lengths == {"sequence": {9: 2}}


def test_source_and_target_are_measured_apart(tmp_path: Path) -> None:
    file = write(tmp_path / "d.json", [("system", "s"), *asked("q", "a")])
    findings = found(file, encoder_of("flan_t5", has_prefix=False))
    source = "s\n\n### Human: q\n### Assistant: "
    assert findings.lengths == {"source": {len(source) + 1: 1}, "target": {len("a\n") + 1: 1}}
    assert findings.counters["tokens_total"] == len(source) + 1 + 3


@pytest.mark.parametrize(("family", "folder"), [("flan_t5", "tiny_checkpoint"), ("yuan2", "tiny_yuan2")])
def test_the_counts_are_those_of_the_samples_of_training(
    family: str, folder: str, request: pytest.FixtureRequest, conversations_file: Path
) -> None:
    card: Family = family_named(family)
    tokenizer = card.load_tokenizer(request.getfixturevalue(folder))
    encoder = Encoder(card, tokenizer, LayoutOptions(max_tokens=120, loss_mode="last_response"))
    outcomes = [draft_conversation(one, encoder)[0] for one in open_records(conversations_file)]
    layouts = [outcome for outcome in outcomes if isinstance(outcome, Layout)]
    examples = [encoder.example(draft) for layout in layouts for draft in layout.drafts]
    counters = found(conversations_file, encoder).counters
    assert counters["samples"] == len(examples) > 0
    assert counters["tokens_supervised"] == sum(label != IGNORE_INDEX for one in examples for label in one.labels)
    assert counters["tokens_total"] == sum(
        len(one.labels) + (len(one.input_ids) if card.is_encoder_decoder else 0) for one in examples
    )


def test_what_the_tokenizer_does_not_know_or_give_back_is_counted_over_the_messages(tmp_path: Path) -> None:
    file = write(tmp_path / "d.json", asked("a b\tc", "d ?"), [("robot", "? ?")])
    counters = found(file, encoder_of("yuan2")).counters
    # A prefix and every character but the tabulator are tokens.
    assert {name: counters[name] for name in counters if name.startswith("text_")} == {
        "text_tokens": 1 + 4 + 1 + 3,
        "text_unknown": 1,
        "text_whitespace": 3,
        "text_whitespace_lost": 1,
    }


def test_records_without_a_sample_are_not_usable_and_their_messages_not_read_back(tmp_path: Path) -> None:
    file = write(tmp_path / "d.json", asked("a question over the limit", "a"))
    counters = found(file, encoder_of("yuan2", max_tokens=5)).counters
    assert {name: count for name, count in counters.items() if count} == {"records": 1, "prompt_too_long": 1}


def test_messages_that_spell_a_control_token_are_counted_once_each(tmp_path: Path) -> None:
    file = write(tmp_path / "d.json", asked("</s></s>", "<sep> </s>"), asked("<word>", "<Sep>"), asked("a", "<unk>"))
    findings = found(file, encoder_of("yuan2"))
    assert findings.control_strings == {"</s>": 2, "<sep>": 1, "<unk>": 1}
    assert findings.places["</s>"] == [f"{file}:record 1"]
    assert findings.places["<unk>"] == [f"{file}:record 3"]


def test_a_name_is_looked_for_before_its_beginnings() -> None:
    names = control_tokens(encoder_of("yuan2"))
    assert names == ["<sep>", "<unk>", "</s>"]


@pytest.mark.parametrize(("family", "folder"), [("flan_t5", "tiny_checkpoint"), ("yuan2", "tiny_yuan2")])
def test_control_tokens_are_the_special_ones_of_the_family(
    family: str, folder: str, request: pytest.FixtureRequest
) -> None:
    card = family_named(family)
    tokenizer = card.load_tokenizer(request.getfixturevalue(folder))
    names = control_tokens(Encoder(card, tokenizer, LayoutOptions(max_tokens=9)))
    expected = {"flan_t5": {"</s>", "<pad>", "<unk>", "[PAD]", "<extra_id_0>"}, "yuan2": {"<sep>", "<eod>", "<pad>"}}
    assert expected[family] <= set(names)
    assert not {" ", "\n", "<", "<n>"} & set(names)


def test_places_tell_reasons_and_are_the_first_ones(tmp_path: Path) -> None:
    file = write(tmp_path / "d.json", *[[("robot", "x")]] * (PLACES_SHOWN + 3), [("gpt", "x")])
    findings = found(file, encoder_of("yuan2"))
    numbers = range(1, PLACES_SHOWN + 1)
    told = "unknown_role: turn 1 has role 'robot'; known are human, user, gpt, assistant, chatgpt, system"
    assert findings.places["rejected_unknown_role"] == [f"{file}:record {number}: {told}" for number in numbers]
    assert findings.places["leading_gpt"] == [f"{file}:record {PLACES_SHOWN + 4}"]


def test_stretches_add_up_to_the_whole_file(tmp_path: Path) -> None:
    one: list[Any] = [asked("</s>", "a?"), [("robot", "x")], [("gpt", "x"), *asked("q", "long answer")]]
    file = write(tmp_path / "d.json", *one * 7)
    encoder = encoder_of("yuan2", max_tokens=12)
    added = Findings()
    for start in range(0, 21, 4):
        added.add(found(file, encoder, stretch=range(start, min(start + 4, 21))))
    assert added == found(file, encoder)
    assert len(added.places["rejected_unknown_role"]) == PLACES_SHOWN
