"""Flags of the loss that contradict each other or the family are told."""

from typing import Any

import pytest

from ds_sft.config.losses import loss_faults, say_which_loss
from ds_sft.config.sources import DataArguments
from ds_sft.families import family_named


def data(**flags: Any) -> DataArguments:
    return DataArguments(data_path="d", **flags)


def faults(family: str, **flags: Any) -> list[str]:
    return [str(fault) for fault in loss_faults(data(**flags), family=family_named(family))]


@pytest.mark.parametrize("family", ["flan_t5", "yuan2"])
def test_two_losses_are_one_fault_that_names_both(family: str) -> None:
    assert faults(family, last_response_loss=True, efficient_loss=True) == [
        "loss mode: at most one may be given, but there are --last_response_loss and --efficient_loss; keep one"
    ]


def test_fastchats_layout_goes_with_the_efficient_loss_only() -> None:
    assert faults("yuan2", layout="fastchat", split_example_loss=True) == [
        "layout: fastchat goes with --efficient_loss only, but --split_example_loss is given; drop one"
    ]
    assert faults("yuan2", layout="fastchat", efficient_loss=True) == []
    assert faults("yuan2", layout="fastchat") == []


def test_without_a_flag_it_is_said_that_every_answer_is_trained(told: pytest.LogCaptureFixture) -> None:
    say_which_loss(data(), family=family_named("yuan2"))
    assert told.messages == [
        "loss mode: none was asked for, so every answer carries loss, as with --efficient_loss True"
    ]


def test_a_loss_that_was_asked_for_needs_no_word(told: pytest.LogCaptureFixture) -> None:
    say_which_loss(data(efficient_loss=True), family=family_named("yuan2"))
    assert told.messages == []


def test_what_a_family_cannot_do_is_said(told: pytest.LogCaptureFixture) -> None:
    say_which_loss(data(split_example_loss=True, layout="fastchat"), family=family_named("flan_t5"))
    assert told.messages == [
        "split_example_loss: ignored, because flan_t5 has one loss only: on every answer",
        "layout: fastchat -> native, because flan_t5 has one layout only",
    ]


def test_flags_that_a_family_ignores_do_not_contradict_each_other() -> None:
    assert faults("flan_t5", layout="fastchat", split_example_loss=True) == []
