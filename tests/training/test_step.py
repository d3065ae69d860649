"""Budgets come from the flags with an equation that is told; what does not fit or has no effect is told as well."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ds_sft.config.budgets import budgets_of
from ds_sft.config.parse import Settings, parse
from ds_sft.errors import ConfigError
from ds_sft.families import family_named
from ds_sft.training.step import (
    evaluation_budgets,
    packing_faults,
    refuse_long_samples,
    say_what_packing_changes,
    told_budgets,
)

T5, YUAN2 = family_named("flan_t5"), family_named("yuan2")
FLAGS: dict[str, Any] = {
    "packing": True,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 3,
    "model_max_length": 100,
    "tokens_per_batch": None,
    "target_tokens_per_batch": None,
}


@pytest.fixture
def settings() -> Settings:
    """Settings of a packed run."""
    given = parse(["--model_name_or_path", "m", "--data_path", "d.json", "--output_dir", "out"])
    return training(given, packing=True)


def training(settings: Settings, **changes: Any) -> Settings:
    return replace(settings, training={**settings.training, **changes})


@dataclass(frozen=True)
class FileOnly:
    """An account that knows the file only."""

    data: Path = Path("d.json")


class Counted:
    """Three samples with known numbers of tokens."""

    account = FileOnly()

    def num_tokens(self) -> npt.NDArray[np.int32]:
        return np.array([[20, 60, 40], [50, 10, 90]], np.int32)


def refuse(family: Any, **changes: Any) -> None:
    samples: Any = Counted()
    refuse_long_samples(samples, {**FLAGS, **changes}, family=family)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (400, 400)),
        ({"tokens_per_batch": 500}, (500, 400)),
        ({"target_tokens_per_batch": 50}, (400, 50)),
        ({"tokens_per_batch": 500, "target_tokens_per_batch": 50}, (500, 50)),
    ],
)
def test_a_budget_is_as_given_or_batch_times_limit(given: dict[str, int], expected: tuple[int, int]) -> None:
    flags = {**FLAGS, **given}
    assert budgets_of(flags, is_encoder_decoder=True) == expected
    assert budgets_of(flags, is_encoder_decoder=False) == expected[:1]


def test_budgets_of_an_evaluation_come_from_its_own_batch_size() -> None:
    flags = {**FLAGS, "tokens_per_batch": 7}
    assert evaluation_budgets(flags, is_encoder_decoder=True) == (300, 300)
    assert evaluation_budgets(flags, is_encoder_decoder=False) == (300,)


def test_budgets_are_told_with_their_equation() -> None:
    derived = "= 4 per_device_train_batch_size x 100 model_max_length"
    assert told_budgets(FLAGS, is_encoder_decoder=False) == f"up to 400 tokens ({derived})"
    assert told_budgets({**FLAGS, "tokens_per_batch": 512}, is_encoder_decoder=True) == (
        f"up to 512 source tokens (--tokens_per_batch) and up to 400 target tokens ({derived})"
    )


def test_a_sample_over_the_budget_is_told_with_its_length_and_what_to_do() -> None:
    with pytest.raises(ConfigError) as caught:
        refuse(YUAN2, tokens_per_batch=89)
    assert str(caught.value) == (
        "tokens_per_batch: must hold every sample, but is 89, and sample 3 of d.json has 90 tokens; raise it to 90 or "
        "more, or lower --model_max_length"
    )


def test_source_and_target_have_budgets_of_their_own() -> None:
    with pytest.raises(ConfigError, match=r"^tokens_per_batch: .* is 59, and sample 2 of d.json has 60 tokens"):
        refuse(T5, tokens_per_batch=59)
    with pytest.raises(ConfigError, match=r"^target_tokens_per_batch: .* is 89, and sample 3 of d.json has 90 tokens"):
        refuse(T5, target_tokens_per_batch=89)


@pytest.mark.parametrize(
    ("family", "flags"),
    [
        (T5, {"tokens_per_batch": 60, "target_tokens_per_batch": 90}),
        (YUAN2, {"tokens_per_batch": 90, "target_tokens_per_batch": 1}),
        (YUAN2, {"tokens_per_batch": 1, "packing": False}),
    ],
)
def test_samples_that_fit_are_not_refused(family: Any, flags: dict[str, Any]) -> None:
    refuse(family, **flags)


@pytest.mark.parametrize("name", ["tokens_per_batch", "target_tokens_per_batch"])
@pytest.mark.parametrize("value", [0, -5])
def test_a_budget_below_one_is_a_fault(settings: Settings, name: str, value: int) -> None:
    (fault,) = packing_faults(training(settings, **{name: value}))
    assert str(fault) == f"{name}: must be at least 1, but is {value}; give another value, or leave it out"


def test_budgets_without_packing_are_told_to_be_ignored(settings: Settings, told: pytest.LogCaptureFixture) -> None:
    given = training(settings, packing=False, tokens_per_batch=5, target_tokens_per_batch=6)
    say_what_packing_changes(given, family=T5)
    assert told.messages == [
        "tokens_per_batch: 5 is ignored, because packing is False",
        "target_tokens_per_batch: 6 is ignored, because packing is False",
    ]


def test_flags_about_padding_are_told_to_have_no_effect_with_packing(
    settings: Settings, told: pytest.LogCaptureFixture
) -> None:
    given = training(settings, train_sampling_strategy="group_by_length", target_tokens_per_batch=6)
    say_what_packing_changes(replace(given, model=replace(given.model, padding_side="left")), family=YUAN2)
    ignored, unsorted, unpadded = told.messages
    assert ignored == "target_tokens_per_batch: 6 is ignored, because yuan2 has no targets apart"
    assert unsorted == (
        "train_sampling_strategy: group_by_length has no effect with packing: there is no padding to save, so the "
        "order is random"
    )
    assert unpadded == "padding_side: left has no effect with packing: nothing is padded"
    assert {record.levelname for record in told.records} == {"WARNING"}


def test_nothing_is_said_about_defaults(settings: Settings, told: pytest.LogCaptureFixture) -> None:
    for is_packed in (True, False):
        say_what_packing_changes(training(settings, packing=is_packed), family=T5)
    assert told.messages == []
