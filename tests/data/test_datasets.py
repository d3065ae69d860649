"""Eager and lazy give the same samples, from one process or many, from data or cache; memory does not grow."""

import gzip
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from torch.utils.data import DataLoader

from ds_sft.config.sources import DataArguments
from ds_sft.contracts import LayoutOptions, LossMode
from ds_sft.data import prepare, samples
from ds_sft.data.account import Account
from ds_sft.data.datasets import LazySupervisedDataset, SampleDataset, SupervisedDataset, build_dataset, load_datasets
from ds_sft.data.draft import Encoder
from ds_sft.data.read import open_records
from ds_sft.data.samples import PLACES, SAMPLES
from ds_sft.data.table import Table, pack, ragged
from ds_sft.data.table_file import write_table
from ds_sft.errors import DataError, MissingInputError, SaveError
from ds_sft.families import family_named
from ds_sft.families.flan_t5.template import DEFAULT_SYSTEM

ROOT = Path(__file__).parents[2]
TOKENIZERS = ROOT.parent / "shared" / "fixtures" / "tokenizers"
GOLDEN = ROOT / "tests" / "golden" / "conversations" / "conversations.json"
ANSWERED = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "It is a loss."}]
SECOND = [{"from": "human", "value": "And then?"}, {"from": "gpt", "value": "A step."}]
UNKNOWN_ROLE = [{"from": "robot", "value": "x"}]
MODES: list[LossMode] = ["last_response", "split_example", "efficient"]


def real(name: str, folder: str, mode: LossMode, limit: int) -> Any:
    reason = f"the real tokenizers are not part of this repository: {TOKENIZERS}"
    return pytest.param((name, folder), mode, limit, marks=pytest.mark.skipif(not TOKENIZERS.is_dir(), reason=reason))


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint: Path) -> Encoder:
    """The tiny model's tokenizer, with a limit that no sample reaches."""
    family = family_named("flan_t5")
    return Encoder(family, family.load_tokenizer(tiny_checkpoint), LayoutOptions(512))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that nobody has used."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DS_SFT_CACHE", str(folder))
    return folder


def write(file: Path, *conversations: object) -> Path:
    file.write_text(json.dumps([{"conversations": one} for one in conversations]), encoding="utf-8")
    return file


def rows(dataset: SampleDataset) -> list[dict[str, list[int]]]:
    return [{name: ids.tolist() for name, ids in dataset[index].items()} for index in range(len(dataset))]


def build(file: Path, encoder: Encoder, **flags: Any) -> SampleDataset:
    return build_dataset(file, data=DataArguments(data_path=str(file), **flags), encoder=encoder)


def counters(dataset: SampleDataset) -> dict[str, int]:
    return dict(dataset.account.counters)


@pytest.mark.parametrize(
    ("family_folder", "mode", "limit"),
    [
        *((("flan_t5", ""), "efficient", limit) for limit in (150, 2048)),
        real("flan_t5", "t5", "efficient", 100),
        *((("yuan2", ""), mode, limit) for mode in MODES for limit in (40, 2048)),
        real("yuan2", "yuan", "efficient", 40),
    ],
    ids=str,
)
def test_eager_and_lazy_give_the_same_samples_in_the_same_order(
    tiny_checkpoint: Path,
    tiny_yuan2: Path,
    family_folder: tuple[str, str],
    mode: LossMode,
    limit: int,
    cache: Path,
) -> None:
    name, folder = family_folder
    family = family_named(name)
    tiny = {"flan_t5": tiny_checkpoint, "yuan2": tiny_yuan2}[name]
    tokenizer = family.load_tokenizer(TOKENIZERS / folder if folder else tiny)
    encoder = Encoder(family, tokenizer, LayoutOptions(limit, mode))
    eager, lazy = build(GOLDEN, encoder), build(GOLDEN, replace(encoder), lazy_preprocess=True)
    assert isinstance(eager, SupervisedDataset)
    assert isinstance(lazy, LazySupervisedDataset)
    assert rows(eager) == rows(lazy)
    assert len({str(row) for row in rows(eager)}) > 5
    dropped = {name: count for name, count in counters(eager).items() if not name.startswith("tokens_")}
    assert {name: count for name, count in counters(lazy).items() if name != "measured_records"} == dropped


@pytest.mark.parametrize("is_lazy", [False, True])
@pytest.mark.parametrize("name", ["flan_t5", "yuan2"])
def test_the_tokens_of_samples_are_counted_as_they_come(
    tiny_checkpoint: Path, tiny_yuan2: Path, name: str, is_lazy: bool, cache: Path
) -> None:
    family = family_named(name)
    tokenizer = family.load_tokenizer({"flan_t5": tiny_checkpoint, "yuan2": tiny_yuan2}[name])
    data = DataArguments(data_path=str(GOLDEN), lazy_preprocess=is_lazy)
    dataset = build_dataset(
        GOLDEN, data=data, encoder=Encoder(family, tokenizer, LayoutOptions(150)), counts_tokens=True
    )
    counted = [[len(row["input_ids"]), len(row["labels"])] for row in rows(dataset)]
    expected = counted if family.is_encoder_decoder else [[0, target] for _, target in counted]
    assert dataset.num_tokens().T.tolist() == expected
    assert len({str(both) for both in expected}) > 5


def test_places_without_counts_are_not_taken_for_counted_ones(tmp_path: Path, encoder: Encoder, cache: Path) -> None:
    file = write(tmp_path / "d.json", ANSWERED)
    build(file, encoder, lazy_preprocess=True)
    data = DataArguments(data_path=str(file), lazy_preprocess=True)
    counted = build_dataset(file, data=data, encoder=encoder, counts_tokens=True)
    assert counted.num_tokens().shape == (2, 1)
    assert len(list(cache.glob("*.arrow"))) == 2


@pytest.mark.parametrize("is_lazy", [False, True])
def test_several_processes_give_the_samples_and_counters_of_one(
    encoder: Encoder, is_lazy: bool, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone = build(GOLDEN, encoder, lazy_preprocess=is_lazy)
    monkeypatch.setenv("DS_SFT_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(samples, "_PARCEL_BYTES", 1000)
    monkeypatch.setattr(prepare, "_BYTES_OF_ONE_PROCESS", 0)
    monkeypatch.setattr(prepare, "num_cores", lambda: 3)
    together = build(GOLDEN, encoder, lazy_preprocess=is_lazy)
    assert rows(together) == rows(alone)
    assert list(counters(together).items()) == list(counters(alone).items())
    assert together.account.rejected == alone.account.rejected
    assert len(together.account.rejected) == 3


@pytest.mark.parametrize("is_lazy", [False, True])
def test_a_compressed_file_gives_the_samples_of_its_content(tmp_path: Path, encoder: Encoder, is_lazy: bool) -> None:
    packed = tmp_path / "conversations.json.gz"
    packed.write_bytes(gzip.compress(GOLDEN.read_bytes()))
    assert rows(build(packed, encoder, lazy_preprocess=is_lazy)) == rows(build(GOLDEN, encoder))


def test_a_sample_holds_the_ids_of_question_and_answer(tmp_path: Path, encoder: Encoder) -> None:
    (row,) = rows(build(write(tmp_path / "d.json", ANSWERED), encoder))
    assert encoder.tokenizer.decode(row["labels"]) == "It is a loss.\n</s>"
    prompt = f"{DEFAULT_SYSTEM}\n\n### Human: What is it?\n### Assistant: "
    assert row["input_ids"] == encoder.tokenizer(prompt)["input_ids"]


def test_every_answer_of_a_conversation_is_a_sample(tmp_path: Path, encoder: Encoder) -> None:
    dataset = build(write(tmp_path / "d.json", ANSWERED + SECOND), encoder)
    assert [encoder.tokenizer.decode(row["labels"]) for row in rows(dataset)] == [
        "It is a loss.\n</s>",
        "A step.\n</s>",
    ]


@pytest.mark.parametrize("is_lazy", [False, True])
def test_num_data_takes_the_first_conversations(tmp_path: Path, encoder: Encoder, is_lazy: bool) -> None:
    file = write(tmp_path / "d.json", *[[{"from": "human", "value": "q"}, {"from": "gpt", "value": a}] for a in "abc"])
    found = rows(build(file, encoder, num_data=2, lazy_preprocess=is_lazy))
    assert [encoder.tokenizer.decode(row["labels"][:-2]) for row in found] == ["a", "b"]


@pytest.mark.parametrize("is_lazy", [False, True])
def test_samples_may_be_taken_by_a_loop_and_from_the_end(tmp_path: Path, encoder: Encoder, is_lazy: bool) -> None:
    dataset = build(write(tmp_path / "d.json", ANSWERED + SECOND), encoder, lazy_preprocess=is_lazy)
    looped: Any = dataset
    found = [row["labels"].tolist() for row in looped]
    assert found == [row["labels"] for row in rows(dataset)]
    assert dataset[-1]["labels"].tolist() == found[-1]


@pytest.mark.parametrize("is_lazy", [False, True])
def test_samples_may_be_written_to_without_changing_the_next_ones(
    tmp_path: Path, encoder: Encoder, is_lazy: bool
) -> None:
    dataset = build(write(tmp_path / "d.json", ANSWERED), encoder, lazy_preprocess=is_lazy)
    before = rows(dataset)
    for ids in dataset[0].values():
        ids[:] = 0
    assert rows(dataset) == before


def test_rejected_conversations_are_counted_and_named_every_time(
    tmp_path: Path, encoder: Encoder, cache: Path, told: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "d.json", UNKNOWN_ROLE, ANSWERED, [])
    for _ in range(2):
        told.clear()
        dataset = build(file, encoder)
        num_tokens = sum(len(ids) for ids in dataset[0].values())
        (kept, summary, *rejected) = [line for line in told.messages if "prepared in" not in line]
        assert kept.startswith(f"1 samples in {cache}")
        assert summary == (
            f"{file}: 3 records, 1 rejected_unknown_role, 1 samples, {num_tokens} tokens_total, "
            f"{len(dataset[0]['labels'])} tokens_supervised, 1 rejected_no_exchange (pairs)"
        )
        assert [line.split(": ")[:2] for line in rejected] == [
            [f"rejected {file}:record 1", "unknown_role"],
            [f"rejected {file}:record 3", "no_exchange"],
        ]


def test_only_the_first_ten_rejections_are_named(tmp_path: Path, encoder: Encoder) -> None:
    file = write(tmp_path / "d.json", *[UNKNOWN_ROLE] * 12, ANSWERED)
    found = build(file, encoder).account.rejected
    assert [line.split(":")[0] for line in found] == [f"record {number}" for number in range(1, 11)]


@pytest.mark.parametrize("is_lazy", [False, True])
def test_strict_data_stops_at_the_first_rejected_conversation_also_in_the_cache(
    tmp_path: Path, encoder: Encoder, cache: Path, is_lazy: bool
) -> None:
    file = write(tmp_path / "d.json", ANSWERED, UNKNOWN_ROLE, [])
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            build(file, encoder, strict_data=True, lazy_preprocess=is_lazy)
        assert caught.value.exit_code == 65
        assert str(caught.value).startswith(f"{file}:record 2: must be usable, but: unknown_role")
        assert str(caught.value).endswith("; mend it or drop --strict_data")
        build(file, encoder, lazy_preprocess=is_lazy)


@pytest.mark.parametrize("is_lazy", [False, True])
def test_data_that_teach_nothing_are_refused_with_the_counts(
    tmp_path: Path, encoder: Encoder, cache: Path, is_lazy: bool
) -> None:
    file = write(tmp_path / "d.json", UNKNOWN_ROLE, [])
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            build(file, encoder, lazy_preprocess=is_lazy)
        assert str(caught.value) == (
            f"{file}: must hold at least one sample with an answer, but none of 2 records gave one "
            "(2 records, 1 rejected_unknown_role, 1 rejected_no_exchange); "
            "mend the records named above, or raise --model_max_length"
        )


@pytest.mark.parametrize("is_lazy", [False, True])
def test_data_whose_every_sample_is_too_long_are_refused(tmp_path: Path, encoder: Encoder, is_lazy: bool) -> None:
    file = write(tmp_path / "d.json", ANSWERED)
    with pytest.raises(DataError, match=r"1 records, (1 measured_records, )?1 prompt_too_long"):
        build(file, replace(encoder, options=LayoutOptions(8)), lazy_preprocess=is_lazy)


def test_samples_without_a_supervised_token_are_refused(tmp_path: Path, encoder: Encoder) -> None:
    lay_out = encoder.family.lay_out

    def without_loss(*arguments: Any) -> Any:
        layout = lay_out(*arguments)
        layout.drafts = [
            replace(draft, target=tuple(replace(part, loss=False) for part in draft.target)) for draft in layout.drafts
        ]
        return layout

    family = replace(encoder.family, lay_out=without_loss)
    with pytest.raises(DataError, match="must hold at least one sample with an answer, but none of 1 records gave one"):
        build(write(tmp_path / "d.json", ANSWERED), replace(encoder, family=family))


def test_a_file_without_conversations_is_refused(tmp_path: Path, encoder: Encoder) -> None:
    file = write(tmp_path / "d.json")
    with pytest.raises(DataError) as caught:
        build(file, encoder)
    assert str(caught.value) == f"{file}: must hold at least one conversation, but has 0; add some"


def test_a_file_that_is_not_there_is_told(tmp_path: Path, encoder: Encoder) -> None:
    with pytest.raises(MissingInputError, match="data_path: file must exist"):
        build(tmp_path / "none.json", encoder)


def test_both_datasets_are_loaded_when_both_files_are_given(tmp_path: Path, encoder: Encoder) -> None:
    train, evaluation = write(tmp_path / "t.json", ANSWERED, ANSWERED), write(tmp_path / "e.json", ANSWERED, SECOND)
    data = DataArguments(data_path=str(train), eval_data_path=str(evaluation), num_data=1)
    loaded = load_datasets(data, encoder=encoder)
    assert [len(one) for one in loaded if one is not None] == [1, 2]
    assert load_datasets(DataArguments(data_path=str(train)), encoder=encoder)[1] is None


def test_a_tilde_in_data_path_is_the_home_folder(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "t.json", ANSWERED)
    assert len(load_datasets(DataArguments(data_path="~/t.json"), encoder=encoder)[0]) == 1


def test_a_second_run_tokenises_nothing(
    tmp_path: Path, encoder: Encoder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "t.json", ANSWERED)
    first = rows(build(file, encoder))
    # Anything that opens the records to tokenise them fails from here on.
    monkeypatch.setattr(prepare, "open_records", None)
    assert rows(build(file, encoder)) == first


def test_named_files_hold_the_samples_of_training_and_evaluation(
    tmp_path: Path, encoder: Encoder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, evaluation = write(tmp_path / "t.json", ANSWERED), write(tmp_path / "e.json", SECOND)
    named = tmp_path / "made" / "samples.arrow"
    data = DataArguments(data_path=str(train), eval_data_path=str(evaluation), preprocessed_path=str(named))
    first = [rows(one) for one in load_datasets(data, encoder=encoder) if one is not None]
    assert {file.name for file in named.parent.glob("[!.]*")} == {"samples.arrow", "samples-eval.arrow"}
    assert not cache.exists()
    monkeypatch.setattr(prepare, "open_records", None)
    assert [rows(one) for one in load_datasets(data, encoder=encoder) if one is not None] == first


def test_a_named_file_of_other_data_is_never_used(
    tmp_path: Path, encoder: Encoder, told: pytest.LogCaptureFixture
) -> None:
    file, named = write(tmp_path / "t.json", ANSWERED), tmp_path / "samples.arrow"
    build(file, encoder, preprocessed_path=str(named))
    write(file, SECOND)
    (row,) = rows(build(file, encoder, preprocessed_path=str(named)))
    assert encoder.tokenizer.decode(row["labels"]) == "A step.\n</s>"
    assert [line.split("(")[1] for line in told.messages if "was built under key" in line] == [
        "changed: data): building it anew"
    ]


def test_samples_that_cannot_be_written_end_in_a_save_error(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "file").write_text("x")
    named = tmp_path / "file" / "samples.arrow"
    with pytest.raises(SaveError) as caught:
        build(write(tmp_path / "t.json", ANSWERED), encoder, preprocessed_path=str(named))
    assert caught.value.exit_code == 74


def test_data_that_change_while_they_are_tokenised_are_refused(
    tmp_path: Path, encoder: Encoder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "t.json", ANSWERED)

    def open_and_change(path: Path) -> Any:
        found = open_records(path)
        with path.open("a") as more:
            more.write(" ")
        return found

    monkeypatch.setattr(prepare, "open_records", open_and_change)
    with pytest.raises(DataError, match="must stay as it is"):
        build(file, encoder)
    assert list(cache.glob("*.arrow")) == []


@pytest.mark.parametrize("is_lazy", [False, True])
def test_workers_of_a_data_loader_give_the_samples_of_this_process(
    conversations_file: Path, encoder: Encoder, is_lazy: bool
) -> None:
    dataset = build(conversations_file, encoder, lazy_preprocess=is_lazy)
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=None, num_workers=2)
    loaded = [{name: np.asarray(ids).tolist() for name, ids in row.items()} for row in loader]
    assert loaded == rows(dataset)


@pytest.mark.parametrize("is_lazy", [False, True])
def test_a_pickled_dataset_gives_the_same_samples(tmp_path: Path, encoder: Encoder, is_lazy: bool) -> None:
    dataset = build(write(tmp_path / "d.json", ANSWERED + SECOND), encoder, lazy_preprocess=is_lazy)
    sent = pickle.dumps(dataset)
    assert rows(pickle.loads(sent)) == rows(dataset)  # noqa: S301
    assert is_lazy or len(sent) < 1500


def test_lengths_of_eager_samples_are_their_tokens(conversations_file: Path, encoder: Encoder) -> None:
    dataset = build(conversations_file, encoder)
    assert dataset.lengths().tolist() == [len(row["input_ids"]) + len(row["labels"]) for row in rows(dataset)]


def test_lengths_of_lazy_samples_go_with_their_tokens(conversations_file: Path, encoder: Encoder) -> None:
    lazy, eager = build(conversations_file, encoder, lazy_preprocess=True), build(conversations_file, encoder)
    assert np.corrcoef(lazy.lengths(), eager.lengths())[0, 1] > 0.9


GROWTH = """
import sys
from pathlib import Path
from tests.data.test_datasets import *

def resident_kib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

kind, folder, checkpoint = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
family = family_named("flan_t5")
encoder = Encoder(family, family.load_tokenizer(checkpoint), LayoutOptions(512))
told = []
for name in ("small", "large"):
    dataset = big_dataset(kind, folder / name, encoder)
    for index in range(0, len(dataset), len(dataset) // 2000):
        dataset[index]
    told.append(resident_kib())
print(len(dataset), *told, file=sys.stdout)
"""


def write_big(kind: str, folder: Path, num_rows: int) -> None:
    """Write a table of many rows: samples of 100 tokens, or places that are all the same one."""
    folder.mkdir()
    file = write(folder / "d.json", ANSWERED)
    (start, end), rows_of_batch = open_records(file).boundaries.spans[0], 4000
    ids = ragged(np.arange(0, 50 * rows_of_batch + 1, 50, dtype=np.int32), np.ones(50 * rows_of_batch, np.int32))
    runs = ragged(np.arange(0, 2 * rows_of_batch + 1, 2, dtype=np.int32), np.tile([0, 50], rows_of_batch))
    shared = pa.array(np.zeros(rows_of_batch, np.int32))
    schema, columns = SAMPLES, {"source": ids, "target": ids, "runs": runs, "shared": shared}
    if kind == "places":
        row = {"start": start, "end": end, "number": 1, "nth": 0, "size": 100}
        schema, columns = (
            PLACES,
            {name: pa.array([one] * rows_of_batch, PLACES.field(name).type) for name, one in row.items()},
        )
    batches = [pack(schema, columns)] * (num_rows // rows_of_batch)
    write_table(folder / "t.arrow", schema=schema, batches=batches, note=lambda: {"unit": "record"})


def big_dataset(kind: str, folder: Path, encoder: Encoder) -> SampleDataset:
    account = Account(folder / "d.json", "pairs", folder / "t.arrow", {}, (), {})
    table = Table(folder / "t.arrow")
    return SupervisedDataset(table, account) if kind == "samples" else LazySupervisedDataset(table, account, encoder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["samples", "places"])
def test_the_memory_of_a_process_does_not_grow_with_its_data(kind: str, tmp_path: Path, tiny_checkpoint: Path) -> None:
    for name, num_rows in (("small", 4_000), ("large", 400_000)):
        write_big(kind, tmp_path / name, num_rows)
    command = [sys.executable, "-c", GROWTH, kind, str(tmp_path), str(tiny_checkpoint)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    num_rows, small, large = map(int, done.stdout.split())
    assert num_rows == 400_000
    # Held in memory, ids alone would take 160 MiB, and places 11 MiB.
    assert large - small < 4 * 1024
