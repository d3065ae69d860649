"""A run goes on only from a whole checkpoint of the same run, and every other case is told with its remedy."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ds_sft.config.parse import Settings, parse
from ds_sft.errors import ConfigError, DsSftError, MissingInputError, ModelError
from ds_sft.model.folder import ModelFolder
from ds_sft.save.files import write_new_json
from ds_sft.save.manifest import FORMAT, MANIFEST, Manifest, write_manifest
from ds_sft.save.staging import Disk
from ds_sft.training.resume import (
    Facts,
    checkpoint_to_resume,
    is_finished,
    refuse_another_run,
    resume_faults,
    run_facts,
)
from tests.ranks import run_ranks
from tests.state_jobs import begin_on_two_hosts

FACTS: Facts = {
    "fingerprint": {"model": "a" * 64, "learning_rate": 0.001, "samples of a step": 4, "seed": 7},
    "versions": {"ds_sft": "1.0", "torch": "2.13.0"},
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a run in a folder that is empty."""
    flags = {"model_name_or_path": "m", "data_path": "d.json", "output_dir": tmp_path / "out", "seed": 7}
    given = parse([word for name, value in flags.items() for word in (f"--{name}", str(value))])
    given.output_dir.mkdir()
    return given


def training(settings: Settings, **changes: Any) -> Settings:
    return replace(settings, training={**settings.training, **changes})


def changed(**changes: Any) -> Facts:
    """Give the facts of a run that differs in its fingerprint."""
    return {**FACTS, "fingerprint": {**FACTS["fingerprint"], **changes}}


def whole(folder: Path, facts: Facts = FACTS, *, world_size: int = 1) -> Path:
    """Make a folder that is whole."""
    (folder / "state").mkdir(parents=True, exist_ok=True)
    name = "state/rank-0-of-1.json"
    fact = write_new_json(folder / name, {"starts": {}, "numbers": {}, "own": {}})
    write_manifest(folder, Manifest(FORMAT, 3, world_size, {name: fact}, facts))
    return folder


def damaged(folder: Path, facts: Facts = FACTS) -> Path:
    """Make a folder whose file is not what was written; its size is."""
    file = whole(folder, facts) / "state" / "rank-0-of-1.json"
    file.write_text(file.read_text().replace("own", "0wn"))
    return folder


def cut(folder: Path, facts: Facts = FACTS) -> Path:
    """Make a folder whose file is too short."""
    (whole(folder, facts) / "state" / "rank-0-of-1.json").write_text("{}")
    return folder


def without_manifest(folder: Path) -> Path:
    """Make a folder as transformers leaves it."""
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    return folder


def exported(folder: Path, facts: Facts = FACTS) -> Path:
    """Make a whole folder that holds a model only."""
    folder.mkdir(parents=True, exist_ok=True)
    fact = write_new_json(folder / "config.json", {})
    write_manifest(folder, Manifest(FORMAT, 3, 1, {"config.json": fact}, facts))
    return folder


# ---- another run


def test_the_same_run_is_not_refused(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    refuse_another_run(whole(tmp_path / "checkpoint-3"), FACTS, is_allowed=False)
    assert told.messages == []


def test_every_difference_is_told_with_both_values_and_what_to_do(tmp_path: Path) -> None:
    checkpoint = whole(tmp_path / "checkpoint-3")
    now = changed(model="b" * 64, learning_rate=0.5, new="x")
    del now["fingerprint"]["seed"]
    with pytest.raises(ConfigError) as caught:
        refuse_another_run(checkpoint, now, is_allowed=False)
    remedy = "change it back, name another output_dir, or add --allow_resume_mismatch True"
    assert caught.value.exit_code == 64
    assert sorted(caught.value.faults) == [
        f"learning_rate: must be 0.001 as in {checkpoint}, but is 0.5; {remedy}",
        f"model: must be 'aaaaaaaaaaaa...' as in {checkpoint}, but is 'bbbbbbbbbbbb...'; {remedy}",
        f"new: must be None as in {checkpoint}, but is 'x'; {remedy}",
        f"seed: must be 7 as in {checkpoint}, but is None; {remedy}",
    ]


def test_a_mismatch_that_is_allowed_is_told_and_goes_on(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    checkpoint = whole(tmp_path / "checkpoint-3")
    refuse_another_run(checkpoint, changed(learning_rate=0.5, seed=8), is_allowed=True)
    assert told.messages == [
        f"learning_rate: must be 0.001 as in {checkpoint}, but is 0.5; going on, as allow_resume_mismatch says",
        f"seed: must be 7 as in {checkpoint}, but is 8; going on, as allow_resume_mismatch says",
    ]
    assert {record.levelname for record in told.records} == {"WARNING"}


@pytest.mark.parametrize("is_allowed", [True, False])
def test_other_versions_are_told_and_go_on(tmp_path: Path, told: pytest.LogCaptureFixture, is_allowed: bool) -> None:
    now = {**FACTS, "versions": {"ds_sft": "1.1", "torch": "2.13.0"}}
    refuse_another_run(whole(tmp_path / "checkpoint-3"), now, is_allowed=is_allowed)
    assert told.messages == ["ds_sft: '1.0' when the checkpoint was written, '1.1' now"]
    assert {record.levelname for record in told.records} == {"WARNING"}


# ---- what a run is


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    """A folder with a config and one weight file."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"weights")
    return ModelFolder(tmp_path / "m", {})


DATA = {name: name for name in ("data", "tokenizer", "family", "layout", "num_data", "code")}


def test_what_a_run_is_comes_back_from_a_manifest(settings: Settings, model: ModelFolder) -> None:
    facts = run_facts(settings, folder=model, data=DATA, world_size=1)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_the_number_of_ranks_is_no_difference_where_a_step_has_as_many_samples(
    settings: Settings, model: ModelFolder
) -> None:
    one, two = (
        run_facts(
            training(settings, per_device_train_batch_size=size, gradient_accumulation_steps=1, packing=False),
            folder=model,
            data=DATA,
            world_size=4 // size,
        )
        for size in (4, 2)
    )
    assert one == two


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 0.5},
        {"seed": 8},
        {"optim": "sgd"},
        {"bf16": True},
        {"max_steps": 3},
        {"per_device_train_batch_size": 3},
    ],
)
def test_what_changes_the_losses_is_a_difference(
    settings: Settings, model: ModelFolder, changes: dict[str, Any]
) -> None:
    facts = run_facts(settings, folder=model, data=DATA, world_size=1)
    other = run_facts(training(settings, **changes), folder=model, data=DATA, world_size=1)
    assert other["fingerprint"] != facts["fingerprint"]
    assert other["versions"] == facts["versions"]


STEP = ("micro-batches of a step", "tokens_per_batch", "target_tokens_per_batch")
PACKED = {"packing": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"packing": False}, {"packing", "samples of a step", *STEP}),
        ({"tokens_per_batch": 1000}, {"tokens_per_batch"}),
        ({"target_tokens_per_batch": 1000}, {"target_tokens_per_batch"}),
        ({"per_device_train_batch_size": 3}, {"tokens_per_batch", "target_tokens_per_batch"}),
        ({"gradient_accumulation_steps": 3}, {"micro-batches of a step"}),
        ({"tokens_per_batch": 2 * 2048}, set()),
    ],
)
def test_what_changes_a_packed_step_is_a_difference(
    settings: Settings, model: ModelFolder, changes: dict[str, Any], differing: set[str]
) -> None:
    facts, other = (
        run_facts(training(settings, **given), folder=model, data=DATA, world_size=1)["fingerprint"]
        for given in (PACKED, {**PACKED, **changes})
    )
    assert {name for name in {*facts, *other} if facts.get(name) != other.get(name)} == differing


def test_the_number_of_ranks_is_no_difference_where_a_packed_step_has_as_many_micro_batches(
    settings: Settings, model: ModelFolder
) -> None:
    four, one = (
        run_facts(
            training(settings, **{**PACKED, "gradient_accumulation_steps": accumulation}),
            folder=model,
            data=DATA,
            world_size=4 // accumulation,
        )
        for accumulation in (1, 4)
    )
    assert four == one
    assert four["fingerprint"]["micro-batches of a step"] == 4


@pytest.mark.parametrize("changes", [{"save_steps": 3}, {"logging_steps": 3}, {"output_dir": "x"}, {"bf16": False}])
def test_what_does_not_change_the_losses_is_none(
    settings: Settings, model: ModelFolder, changes: dict[str, Any]
) -> None:
    facts = run_facts(settings, folder=model, data=DATA, world_size=1)
    assert run_facts(training(settings, **changes), folder=model, data=DATA, world_size=1) == facts


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "model-00002.safetensors"])
def test_another_model_is_a_difference(settings: Settings, model: ModelFolder, file: str) -> None:
    facts = run_facts(settings, folder=model, data=DATA, world_size=1)
    (model.path / file).write_bytes(b"{ }")
    other = run_facts(settings, folder=model, data=DATA, world_size=1)
    assert {name for name, value in other["fingerprint"].items() if value != facts["fingerprint"][name]} == {"model"}


@pytest.mark.parametrize("name", [name for name in DATA if name != "code"])
def test_other_data_are_a_difference(settings: Settings, model: ModelFolder, name: str) -> None:
    facts = run_facts(settings, folder=model, data=DATA, world_size=1)
    other = run_facts(settings, folder=model, data={**DATA, name: "x"}, world_size=1)
    assert other["fingerprint"] == {**facts["fingerprint"], name: "x"}


def test_other_code_is_another_version_only(settings: Settings, model: ModelFolder) -> None:
    facts = run_facts(settings, folder=model, data=DATA, world_size=1)
    other = run_facts(settings, folder=model, data={**DATA, "code": "x"}, world_size=1)
    assert other == {**facts, "versions": {**facts["versions"], "code": "x"}}


# ---- a run that is finished


def test_a_whole_export_of_the_same_run_is_finished(settings: Settings) -> None:
    exported(settings.output_dir)
    assert is_finished(settings, facts=FACTS) is True


def test_a_finished_run_stays_finished_under_other_versions(settings: Settings, told: pytest.LogCaptureFixture) -> None:
    exported(settings.output_dir)
    assert is_finished(settings, facts={**FACTS, "versions": {}}) is True
    assert len(told.messages) == 2


@pytest.mark.parametrize("state", ["empty", "without a manifest", "cut"])
def test_a_run_without_a_whole_export_is_not_finished(settings: Settings, state: str) -> None:
    if state != "empty":
        exported(settings.output_dir)
    if state == "without a manifest":
        (settings.output_dir / MANIFEST).unlink()
    elif state == "cut":
        (settings.output_dir / "config.json").write_text("")
    assert is_finished(settings, facts=FACTS) is False


def test_a_run_that_shall_begin_anew_is_not_finished(settings: Settings) -> None:
    exported(settings.output_dir)
    assert is_finished(training(settings, resume_from_checkpoint="False"), facts=FACTS) is False


def test_the_export_of_another_run_is_refused(settings: Settings) -> None:
    exported(settings.output_dir)
    with pytest.raises(ConfigError, match=r"^seed: must be 7 as in .*, but is 8; change it back"):
        is_finished(settings, facts=changed(seed=8))


@pytest.mark.parametrize("stored", [FACTS, {}])
def test_the_export_of_another_run_is_trained_on_where_that_is_allowed(settings: Settings, stored: Facts) -> None:
    exported(settings.output_dir, stored)
    assert is_finished(training(settings, allow_resume_mismatch=True), facts=changed(seed=8)) is False


@pytest.mark.parametrize("has_checkpoint", [True, False])
@pytest.mark.parametrize("has_export", [True, False])
def test_all_hosts_begin_alike(
    settings: Settings, model: ModelFolder, tmp_path: Path, has_export: bool, has_checkpoint: bool
) -> None:
    given = training(settings, output_dir="run")
    facts = run_facts(given, folder=model, data=DATA, world_size=2)
    for name in ("host-0", "host-1"):
        (tmp_path / name).mkdir()
        if has_checkpoint:
            whole(tmp_path / name / "run" / "checkpoint-3", facts)
    if has_export:
        # Rank zero alone writes it, so only the first host has it where hosts have disks of their own.
        exported(tmp_path / "host-0" / "run", facts)
    goes_on = None if has_export or not has_checkpoint else "run/checkpoint-3"
    found = run_ranks(begin_on_two_hosts, tmp_path, given, model, DATA, world_size=2)
    assert found == [(has_export, goes_on)] * 2


# ---- where a run goes on


def resumed(settings: Settings, asked: object, facts: Facts = FACTS, **changes: Any) -> Path | None:
    given = training(settings, resume_from_checkpoint=None if asked is None else str(asked), **changes)
    return checkpoint_to_resume(given, disk=Disk.find(settings.output_dir), facts=facts)


@pytest.mark.parametrize("asked", [None, "False", "false"])
def test_an_empty_folder_begins_a_run(settings: Settings, asked: str | None) -> None:
    assert resumed(settings, asked) is None


@pytest.mark.parametrize("asked", [None, "True", "true"])
def test_the_newest_whole_checkpoint_is_gone_on_from(settings: Settings, asked: str | None) -> None:
    for step in (9, 10):
        whole(settings.output_dir / f"checkpoint-{step}")
    damaged(settings.output_dir / "checkpoint-11")
    assert resumed(settings, asked) == settings.output_dir / "checkpoint-10"


@pytest.mark.parametrize("asked", [None, "True"])
def test_checkpoints_of_which_none_is_whole_are_never_overwritten(settings: Settings, asked: str | None) -> None:
    damaged(settings.output_dir / "checkpoint-11")
    with pytest.raises(MissingInputError) as caught:
        resumed(settings, asked)
    assert caught.value.exit_code == 66
    assert str(caught.value) == (
        f"resume_from_checkpoint: there must be a whole checkpoint, but {settings.output_dir} has none; remove what is "
        "left of them, or name another output_dir, to start from the beginning"
    )


def test_a_checkpoint_that_must_be_there_is_missed(settings: Settings) -> None:
    with pytest.raises(MissingInputError, match="there must be a whole checkpoint"):
        resumed(settings, "True")


def test_a_checkpoint_outside_may_be_named(settings: Settings, tmp_path: Path) -> None:
    whole(settings.output_dir / "checkpoint-11")
    outside = whole(tmp_path / "elsewhere" / "checkpoint-3")
    assert resumed(settings, outside) == outside


def test_a_named_checkpoint_that_is_damaged_is_refused(settings: Settings) -> None:
    named = damaged(settings.output_dir / "checkpoint-11")
    whole(settings.output_dir / "checkpoint-10")
    with pytest.raises(ModelError) as caught:
        resumed(settings, named)
    assert caught.value.exit_code == 65
    assert str(caught.value) == (
        f"resume_from_checkpoint: {named} must be whole, but state/rank-0-of-1.json is not what was written (its hash "
        "differs); name another checkpoint"
    )


def test_a_named_folder_that_holds_the_model_only_is_refused(settings: Settings, tmp_path: Path) -> None:
    named = exported(tmp_path / "elsewhere" / "checkpoint-3", {**FACTS, "resumable": False})
    with pytest.raises(DsSftError, match=str(named)):
        resumed(settings, named)


@pytest.mark.parametrize("is_named", [True, False])
def test_a_checkpoint_of_another_run_is_refused_unless_that_is_allowed(settings: Settings, is_named: bool) -> None:
    checkpoint = whole(settings.output_dir / "checkpoint-3")
    asked = checkpoint if is_named else None
    with pytest.raises(ConfigError, match=r"^seed: must be 7 as in .*, but is 8; change it back"):
        resumed(settings, asked, changed(seed=8))
    assert resumed(settings, asked, changed(seed=8), allow_resume_mismatch=True) == checkpoint


# ---- what is known before anything is loaded


def faults(settings: Settings, asked: object) -> list[DsSftError]:
    return list(resume_faults(training(settings, resume_from_checkpoint=None if asked is None else str(asked))))


def fault(settings: Settings, asked: object, *, code: int) -> str:
    (found,) = faults(settings, asked)
    assert found.exit_code == code
    return str(found)


@pytest.mark.parametrize("asked", [None, "False"])
def test_a_run_in_an_empty_folder_has_no_fault(settings: Settings, asked: str | None) -> None:
    assert faults(settings, asked) == []


@pytest.mark.parametrize("asked", [None, "True", "out"])
@pytest.mark.parametrize("make", [whole, damaged])
def test_a_run_with_a_checkpoint_has_no_fault(
    settings: Settings, asked: str | None, make: Callable[[Path], Path]
) -> None:
    named = make(settings.output_dir / "checkpoint-3")
    without_manifest(settings.output_dir / "checkpoint-2")
    assert faults(settings, named if asked == "out" else asked) == []


def test_false_is_refused_where_checkpoints_are(settings: Settings) -> None:
    whole(settings.output_dir / "checkpoint-2")
    newest = whole(settings.output_dir / "checkpoint-10")
    assert fault(settings, "False", code=64) == (
        f"resume_from_checkpoint: must not be False where checkpoints are, but {newest} is there; leave it out to go "
        "on, or name another output_dir"
    )


def test_true_without_a_checkpoint_is_told(settings: Settings) -> None:
    assert fault(settings, "True", code=66) == (
        f"resume_from_checkpoint: there must be a checkpoint to resume, but {settings.output_dir} has none; leave the "
        "flag out to start from the beginning"
    )


@pytest.mark.parametrize("asked", [None, "True"])
def test_checkpoints_of_other_programs_are_told(settings: Settings, asked: str | None) -> None:
    without_manifest(settings.output_dir / "checkpoint-3")
    assert fault(settings, asked, code=66) == (
        f"resume_from_checkpoint: a checkpoint must have MANIFEST.json, but none in {settings.output_dir} has: other "
        "versions or programs wrote them; name another output_dir"
    )


@pytest.mark.parametrize("kind", ["missing", "a file", "without a manifest", "the folder of checkpoints"])
def test_what_is_named_must_be_a_checkpoint(settings: Settings, tmp_path: Path, kind: str) -> None:
    named = tmp_path / "named"
    if kind == "a file":
        named.touch()
    elif kind == "without a manifest":
        without_manifest(named)
    elif kind == "the folder of checkpoints":
        whole(named / "checkpoint-3")
    assert fault(settings, named, code=66) == (
        f"resume_from_checkpoint: must be a folder with MANIFEST.json, but {named} is not; name checkpoint-N"
    )


@pytest.mark.parametrize("spelled", ["{}", "{}/", "{}/../checkpoint-2"])
def test_an_older_checkpoint_is_refused_however_it_is_spelled(settings: Settings, spelled: str) -> None:
    older = whole(settings.output_dir / "checkpoint-2")
    newest = whole(settings.output_dir / "checkpoint-10")
    asked = spelled.format(older)
    assert fault(settings, asked, code=64) == (
        f"resume_from_checkpoint: must be the newest of its folder, but {asked} is older than {newest}, from which the "
        "run would go on after a stop; move the newer ones away, or name another output_dir"
    )


def test_an_older_checkpoint_is_refused_through_a_link(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(whole(settings.output_dir / "checkpoint-2"))
    whole(settings.output_dir / "checkpoint-10")
    assert fault(settings, tmp_path / "link", code=64).startswith("resume_from_checkpoint: must be the newest of its")


def test_the_newest_checkpoint_may_be_named(settings: Settings) -> None:
    whole(settings.output_dir / "checkpoint-2")
    assert faults(settings, whole(settings.output_dir / "checkpoint-10")) == []


@pytest.mark.parametrize("has_own", [True, False])
def test_a_checkpoint_outside_has_no_fault(settings: Settings, tmp_path: Path, has_own: bool) -> None:
    if has_own:
        whole(settings.output_dir / "checkpoint-10")
    assert faults(settings, whole(tmp_path / "elsewhere" / "checkpoint-2")) == []
