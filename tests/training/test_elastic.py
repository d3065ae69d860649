"""A run that goes on with other ranks keeps what a step takes, and says what it changes for that."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ds_sft.config.parse import Settings, parse
from ds_sft.save.files import write_new_json
from ds_sft.save.manifest import FORMAT, Manifest, write_manifest
from ds_sft.training.elastic import fitted_to_checkpoint

SPLIT = ("per_device_train_batch_size", "gradient_accumulation_steps")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a run in a folder that is empty."""
    flags = {"model_name_or_path": "m", "data_path": "d.json", "output_dir": tmp_path / "out"}
    given = parse([word for name, value in flags.items() for word in (f"--{name}", str(value))])
    given.output_dir.mkdir()
    return training(given, packing=False)


def training(settings: Settings, **changes: Any) -> Settings:
    return replace(settings, training={**settings.training, **changes})


def whole(folder: Path, fingerprint: Mapping[str, int], *, world_size: int) -> Path:
    """Make a checkpoint that is whole."""
    folder.mkdir(parents=True)
    fact = write_new_json(folder / "run.json", {})
    write_manifest(folder, Manifest(FORMAT, 3, world_size, {"run.json": fact}, {"fingerprint": fingerprint}))
    return folder


def fitted(
    settings: Settings, *, stored: int, micro: int, accumulation: int, before: int, world_size: int
) -> tuple[int, int]:
    """Go on, with the flags of another number of ranks, from a checkpoint with so many samples a step."""
    whole(settings.output_dir / "checkpoint-3", {"samples of a step": stored}, world_size=before)
    given = training(settings, **dict(zip(SPLIT, (micro, accumulation), strict=True)))
    found = fitted_to_checkpoint(given, world_size=world_size).training
    assert {**found, **dict.fromkeys(SPLIT)} == {**given.training, **dict.fromkeys(SPLIT)}
    return found[SPLIT[0]], found[SPLIT[1]]


def test_half_the_ranks_accumulate_twice_as_often_and_it_is_said(
    settings: Settings, told: pytest.LogCaptureFixture
) -> None:
    assert fitted(settings, stored=4, micro=2, accumulation=1, before=2, world_size=1) == (2, 2)
    (line,) = told.messages
    assert line == (
        "gradient_accumulation_steps: 1 -> 2, because the checkpoint has 4 samples a step: 2 micro x 2 accumulate x "
        "1 ranks"
    )
    assert told.records[0].levelname == "WARNING"


def test_twice_the_ranks_take_half_the_micro_batch_and_it_is_said(
    settings: Settings, told: pytest.LogCaptureFixture
) -> None:
    assert fitted(settings, stored=4, micro=4, accumulation=1, before=1, world_size=2) == (2, 1)
    (line,) = told.messages
    assert line == (
        "per_device_train_batch_size: 4 -> 2, because the checkpoint has 4 samples a step: 2 micro x 1 accumulate x "
        "2 ranks"
    )


@pytest.mark.parametrize(
    ("stored", "micro", "accumulation", "before", "world_size", "expected"),
    [
        (16, 4, 2, 2, 4, (4, 1)),
        (16, 4, 2, 2, 1, (4, 4)),
        (20, 5, 1, 4, 2, (5, 2)),
        (30, 3, 1, 10, 3, (2, 5)),  # ten samples a rank, and no micro-batch above three that fits memory
        (14, 7, 1, 2, 14, (1, 1)),
    ],
)
def test_the_micro_batch_is_the_largest_that_fits_and_never_grows(
    *,
    settings: Settings,
    stored: int,
    micro: int,
    accumulation: int,
    before: int,
    world_size: int,
    expected: tuple[int, int],
) -> None:
    found = fitted(
        settings, stored=stored, micro=micro, accumulation=accumulation, before=before, world_size=world_size
    )
    assert found == expected
    assert found[0] * found[1] * world_size == stored


def test_a_batch_that_the_ranks_cannot_share_is_left_as_it_is(
    settings: Settings, told: pytest.LogCaptureFixture
) -> None:
    assert fitted(settings, stored=5, micro=5, accumulation=1, before=1, world_size=2) == (5, 1)
    assert told.messages == ["the checkpoint has 5 samples of a step, which 2 ranks cannot share evenly"]


def test_a_batch_that_is_the_same_is_left_as_it_is(settings: Settings, told: pytest.LogCaptureFixture) -> None:
    assert fitted(settings, stored=4, micro=1, accumulation=2, before=4, world_size=2) == (1, 2)
    assert told.messages == []


def test_a_batch_that_was_asked_for_anew_on_as_many_ranks_is_left_to_be_refused(settings: Settings) -> None:
    assert fitted(settings, stored=4, micro=8, accumulation=1, before=1, world_size=1) == (8, 1)


@pytest.mark.parametrize("asked", [None, "True", "False"])
def test_without_a_checkpoint_the_batch_is_left_as_it_is(settings: Settings, asked: str | None) -> None:
    given = training(settings, resume_from_checkpoint=asked)
    assert fitted_to_checkpoint(given, world_size=2) == given


def test_the_newest_checkpoint_that_may_be_whole_counts(settings: Settings) -> None:
    whole(settings.output_dir / "checkpoint-2", {"samples of a step": 2}, world_size=2)
    whole(settings.output_dir / "checkpoint-3", {"samples of a step": 6}, world_size=2)
    cut = whole(settings.output_dir / "checkpoint-4", {"samples of a step": 8}, world_size=2)
    (cut / "run.json").write_text("")
    (settings.output_dir / "checkpoint-5").mkdir()
    given = training(settings, per_device_train_batch_size=2, gradient_accumulation_steps=1)
    assert fitted_to_checkpoint(given, world_size=1).training["gradient_accumulation_steps"] == 3


def test_a_checkpoint_that_was_named_counts_alone(settings: Settings, tmp_path: Path) -> None:
    whole(settings.output_dir / "checkpoint-3", {"samples of a step": 6}, world_size=2)
    named = whole(tmp_path / "elsewhere" / "checkpoint-9", {"samples of a step": 8}, world_size=2)
    given = training(
        settings,
        resume_from_checkpoint=str(named),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
    )
    assert fitted_to_checkpoint(given, world_size=1).training["gradient_accumulation_steps"] == 4


def fitted_packed(settings: Settings, *, stored: int, accumulation: int, before: int, world_size: int) -> Settings:
    """Go on packed, with the flags of another number of ranks, from a checkpoint with so many micro-batches a step."""
    whole(settings.output_dir / "checkpoint-3", {"micro-batches of a step": stored}, world_size=before)
    given = training(settings, packing=True, gradient_accumulation_steps=accumulation)
    found = fitted_to_checkpoint(given, world_size=world_size)
    assert training(found, gradient_accumulation_steps=accumulation) == given
    return found


@pytest.mark.parametrize(("world_size", "expected"), [(1, 8), (2, 4), (8, 1)])
def test_packed_ranks_accumulate_so_that_a_step_has_as_many_micro_batches(
    settings: Settings, world_size: int, expected: int, told: pytest.LogCaptureFixture
) -> None:
    found = fitted_packed(settings, stored=8, accumulation=2, before=4, world_size=world_size)
    assert found.training["gradient_accumulation_steps"] == expected
    (line,) = told.messages
    assert line == (
        f"gradient_accumulation_steps: 2 -> {expected}, because the checkpoint has 8 micro-batches a step: "
        f"{expected} accumulate x {world_size} ranks"
    )


def test_micro_batches_that_the_ranks_cannot_share_are_left_and_it_is_said(
    settings: Settings, told: pytest.LogCaptureFixture
) -> None:
    found = fitted_packed(settings, stored=8, accumulation=2, before=4, world_size=3)
    assert found.training["gradient_accumulation_steps"] == 2
    assert told.messages == ["the checkpoint has 8 micro-batches of a step, which 3 ranks cannot share evenly"]


def test_a_packed_run_is_not_fitted_to_a_padded_one(settings: Settings) -> None:
    whole(settings.output_dir / "checkpoint-3", {"samples of a step": 8}, world_size=4)
    given = training(settings, packing=True)
    assert fitted_to_checkpoint(given, world_size=2) == given
