"""A power cut loses what was not synced; what the reader then picks is whole."""

import shutil
from pathlib import Path

import pytest

from ds_sft.save.staging import Disk, clear, newest_whole
from tests.conftest import CONFIGS
from tests.faults import shim, tree
from tests.faults.power_cut import trees
from tests.faults.runner import Fault, FaultyRanks, log_of
from tests.jobs import main_flags, train_and_log

FEW, MANY = 60, 500


@pytest.mark.parametrize(
    ("stage", "count"),
    [("zero2.json", FEW), pytest.param("zero3.json", MANY, marks=pytest.mark.slow)],
)
def test_after_any_power_cut_the_newest_checkpoint_that_was_promised_is_there(
    *,
    stage: str,
    count: int,
    faulty_ranks: FaultyRanks,
    tiny_checkpoint: Path,
    conversations_file: Path,
    tmp_path: Path,
) -> None:
    output = tmp_path / "run"
    flags = main_flags(
        *(tiny_checkpoint, conversations_file, output),
        max_steps=3,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=9,  # the bytes of files that are removed are not known to the log
        deepspeed=CONFIGS / stage,
    )
    fault = Fault(output, log=tmp_path / "log")
    faulty_ranks(train_and_log, flags, world_size=2, fault=fault)
    done = shim.read_log(log_of(fault, 0), log_of(fault, 1))
    num_with_a_checkpoint = 0
    for cut in trees(done, root=output, finished=output, into=tmp_path / "cuts", seed=1, count=count):
        promised = [int(name.rsplit("-", 1)[1]) for name in cut.promised if name.startswith("checkpoint-")]
        folder = tmp_path / "found"
        shutil.copytree(cut.folder, folder)
        disk = Disk(folder, (0,), 0)
        clear(disk)
        found = newest_whole(disk)
        step = 0 if found is None else int(found.name.rsplit("-", 1)[1])
        assert step >= max(promised, default=0), f"cut after operation {cut.after}"
        if found is not None:
            num_with_a_checkpoint += 1
            assert [line for line in tree.violations(folder) if line.startswith(f"{found.name}:")] == []
        assert tree.leftovers(folder) == []
        shutil.rmtree(folder)
    assert num_with_a_checkpoint > count // 3
