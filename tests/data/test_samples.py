"""Records become rows with the tokens that are counted, in parcels that lose none of them."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_sft.contracts import IGNORE_INDEX, LayoutOptions
from ds_sft.data import samples
from ds_sft.data.draft import Encoder
from ds_sft.data.read import RecordFile, open_records
from ds_sft.data.samples import (
    COUNTED_PLACES,
    PLACES,
    SAMPLES,
    Packed,
    labels_of,
    locate,
    locate_and_count,
    parcels_of,
    run_lengths,
    tokenise,
)
from ds_sft.data.table import Table
from ds_sft.data.table_file import write_table
from ds_sft.families import family_named
from ds_sft.families.flan_t5.template import DEFAULT_SYSTEM

IGNORE = IGNORE_INDEX
PROMPT = f"{DEFAULT_SYSTEM}\n\n### Human: What is it?\n### Assistant: "


def talk(*texts: str) -> dict[str, Any]:
    return {"conversations": [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]}


def records(folder: Path, *told: object) -> RecordFile:
    file = folder / "d.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in told), encoding="utf-8")
    return open_records(file)


def rows(packed: Packed, schema: Any, folder: Path) -> list[dict[str, Any]]:
    write_table(folder / "t.arrow", schema=schema, batches=[packed.batch], note=dict)
    table = Table(folder / "t.arrow")
    return [
        {name: np.asarray(value).tolist() for name, value in table.row(index).items()} for index in range(len(table))
    ]


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint: Path) -> Encoder:
    """The tiny model's tokenizer, with a limit that no sample reaches."""
    family = family_named("flan_t5")
    return Encoder(family, family.load_tokenizer(tiny_checkpoint), LayoutOptions(512))


@pytest.mark.parametrize(
    ("labels", "lengths"),
    [
        ([7], [0, 1]),
        ([IGNORE], [1]),
        ([7, 8, 9], [0, 3]),
        ([IGNORE, IGNORE, 7, IGNORE, 8, 9], [2, 1, 1, 2]),
        ([7, IGNORE], [0, 1, 1]),
    ],
)
def test_labels_are_kept_as_lengths_of_runs(labels: list[int], lengths: list[int]) -> None:
    assert run_lengths(labels) == lengths


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1))
def test_runs_give_the_labels_back(tokens: list[tuple[int, bool]]) -> None:
    ids = np.array([token for token, _ in tokens], np.int32)
    labels = [token if is_supervised else IGNORE for token, is_supervised in tokens]
    assert labels_of(ids, np.array(run_lengths(labels), np.int32)).tolist() == labels


def test_parcels_hold_every_record_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_PARCEL_BYTES", 300)
    told = [talk(f"question {number}", "x" * (number % 7) * 60) for number in range(40)]
    found = records(tmp_path, *told)
    parcels = list(parcels_of(found))
    assert [one for parcel in parcels for one in parcel.conversations()] == [
        replace(one, place=one.place.removeprefix(f"{found.path}:")) for one in found
    ]
    assert len(parcels) > 10
    assert all(len(parcel.text) <= 300 or len(parcel.spans) == 1 for parcel in parcels)
    assert max(len(parcel.spans) for parcel in parcels) > 1


def test_a_slice_of_the_records_makes_parcels_of_its_own(tmp_path: Path) -> None:
    found = records(tmp_path, *[talk(f"q{number}", "a") for number in range(9)])
    (parcel,) = parcels_of(found[3:5])
    assert [one.place for one in parcel.conversations()] == ["line 4", "line 5"]
    assert [one.turns[0].text for one in parcel.conversations()] == ["q3", "q4"]


def test_a_pair_is_kept_as_source_and_supervised_target(tmp_path: Path, encoder: Encoder) -> None:
    (parcel,) = parcels_of(records(tmp_path, talk("What is it?", "It is a loss.")))
    packed = tokenise(encoder, parcel)
    source, target = encoder.tokenizer(PROMPT)["input_ids"], encoder.tokenizer("It is a loss.\n")["input_ids"]
    expected = {"source": source, "target": target, "runs": [0, len(target)], "shared": 0}
    assert rows(packed, SAMPLES, tmp_path) == [expected]
    assert packed.counters == Counter(
        samples=1, tokens_total=len(source) + len(target), tokens_supervised=len(target), tokens_truncated=0
    )


def test_tokens_of_an_answer_that_are_cut_off_are_counted(tmp_path: Path, encoder: Encoder) -> None:
    answer = "It is a loss. " * 100
    whole = len(encoder.tokenizer(f"{answer}\n")["input_ids"])
    (parcel,) = parcels_of(records(tmp_path, talk("What is it?", answer)))
    packed = tokenise(replace(encoder, options=LayoutOptions(300)), parcel)
    assert packed.counters["tokens_truncated"] == whole - 300
    assert packed.counters["tokens_supervised"] == 300
    assert packed.counters["answer_truncated"] == 1


def test_rejected_records_are_counted_and_named_without_their_file(tmp_path: Path, encoder: Encoder) -> None:
    (parcel,) = parcels_of(records(tmp_path, talk("q", "a"), {"conversations": [{"from": "robot", "value": "x"}]}))
    for work in (tokenise, locate, locate_and_count):
        packed = work(encoder, parcel)
        assert packed.num_records == 2
        assert (packed.counters["samples"], packed.counters["rejected_unknown_role"]) == (1, 1)
        (line,) = packed.rejected
        assert line.startswith("line 2: unknown_role")


def test_places_tell_record_and_nth_sample(tmp_path: Path, encoder: Encoder) -> None:
    found = records(tmp_path, talk("q", "a", "q2", "a2"), talk("q3", "a3"))
    (parcel,) = parcels_of(found)
    (first, second) = found.boundaries.spans.tolist()
    told = rows(locate(encoder, parcel), PLACES, tmp_path)
    assert [{name: row[name] for name in ("start", "end", "number", "nth")} for row in told] == [
        {"start": first[0], "end": first[1], "number": 1, "nth": 0},
        {"start": first[0], "end": first[1], "number": 1, "nth": 1},
        {"start": second[0], "end": second[1], "number": 2, "nth": 0},
    ]
    assert told[0]["size"] == len(f"{DEFAULT_SYSTEM}\n\n### Human: q\n### Assistant: </s>") + len("a\n</s>")


def test_only_records_that_may_be_too_long_are_tokenised_to_be_placed(tmp_path: Path, encoder: Encoder) -> None:
    long = talk("q", "a " * 400)
    (parcel,) = parcels_of(records(tmp_path, talk("q", "a"), long, talk("q2", "a2"), long))
    fresh = replace(encoder)
    assert locate(fresh, parcel).counters["measured_records"] == 1, "the second long one is the same text"


def test_records_without_samples_make_no_rows(tmp_path: Path, encoder: Encoder) -> None:
    (parcel,) = parcels_of(records(tmp_path, {"conversations": []}))
    assert rows(tokenise(encoder, parcel), SAMPLES, tmp_path) == []
    assert rows(locate(encoder, parcel), PLACES, tmp_path) == []
    assert rows(locate_and_count(encoder, parcel), COUNTED_PLACES, tmp_path) == []


def test_counted_places_tell_the_tokens_of_both_sides(tmp_path: Path, encoder: Encoder) -> None:
    (parcel,) = parcels_of(records(tmp_path, talk("q", "a", "q2", "a2"), talk("q3", "a3 " * 9)))
    places = rows(locate(encoder, parcel), PLACES, tmp_path)
    counted = rows(locate_and_count(encoder, parcel), COUNTED_PLACES, tmp_path)
    samples = rows(tokenise(encoder, parcel), SAMPLES, tmp_path)
    names = ("start", "end", "number", "nth")
    assert [[row[name] for name in names] for row in counted] == [[row[name] for name in names] for row in places]
    assert [(row["source"], row["target"]) for row in counted] == [
        (len(row["source"]), len(row["target"])) for row in samples
    ]
