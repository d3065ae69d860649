"""What became of the data is told in the log and kept in the run's folder."""

import json
import logging
from pathlib import Path

import pytest

from ds_sft.data.account import Account, refuse_rejected, refuse_useless, report, write_counters
from ds_sft.errors import DataError

COUNTERS = {"records": 3, "rejected_unknown_role": 1, "empty_answer": 0, "samples": 2, "tokens_total": 90}
PARTS = {"data": "1f0c", "tokenizer": "9b2e"}
ACCOUNT = Account(Path("d.json"), "efficient", Path("/c/k.arrow"), COUNTERS, ("record 3: unknown_role: robot",), PARTS)


def test_the_log_tells_the_counters_and_the_rejected_records(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ds_sft")
    report(ACCOUNT)
    assert caplog.messages == [
        "d.json: 3 records, 1 rejected_unknown_role, 2 samples, 90 tokens_total (efficient)",
        "rejected d.json:record 3: unknown_role: robot",
    ]


def test_the_folder_of_the_run_keeps_both_accounts(tmp_path: Path) -> None:
    write_counters(ACCOUNT, ACCOUNT, into=tmp_path)
    write_counters(ACCOUNT, None, into=tmp_path)
    told = {
        "data": "d.json",
        "mode": "efficient",
        "cache": "/c/k.arrow",
        "counters": COUNTERS,
        "rejected": ["record 3: unknown_role: robot"],
        "parts": PARTS,
    }
    (file,) = tmp_path.iterdir()
    assert file.name == "data_counters.json"
    assert json.loads(file.read_text(encoding="utf-8")) == {"train": told}
    write_counters(ACCOUNT, ACCOUNT, into=tmp_path)
    assert json.loads(file.read_text(encoding="utf-8")) == {"train": told, "eval": told}


def test_a_strict_run_stops_at_the_first_rejected_record() -> None:
    refuse_rejected(Path("d.json"), [])
    with pytest.raises(DataError) as caught:
        refuse_rejected(Path("d.json"), ["record 3: unknown_role: robot", "record 4: no_exchange"])
    assert str(caught.value) == (
        "d.json:record 3: must be usable, but: unknown_role: robot; mend it or drop --strict_data"
    )


def test_data_that_teach_nothing_are_refused_in_one_sentence() -> None:
    with pytest.raises(DataError) as caught:
        refuse_useless(ACCOUNT)
    assert str(caught.value) == (
        "d.json: must hold at least one sample with an answer, but none of 3 records gave one (3 records, 1 "
        "rejected_unknown_role, 2 samples, 90 tokens_total); mend the records named above, or raise --model_max_length"
    )


@pytest.mark.parametrize("name", ["data_counters.json", ".data_counters.json.part"])
def test_the_counters_take_the_place_of_a_planted_link(name: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "victim").write_text("old")
    (tmp_path / "run" / name).symlink_to(tmp_path / "victim")
    write_counters(ACCOUNT, None, into=tmp_path / "run")
    assert (tmp_path / "victim").read_text() == "old"
    assert [(file.name, file.is_symlink()) for file in (tmp_path / "run").iterdir()] == [("data_counters.json", False)]
