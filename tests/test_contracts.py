"""The nouns cannot be changed after they are made, and the ignored label is the one that torch ignores."""

from dataclasses import FrozenInstanceError, fields
from inspect import signature

import pytest
import torch

from ds_sft.contracts import IGNORE_INDEX, Conversation, Draft, Example, Exchange, Layout, Segment, Turn


def test_the_ignored_label_is_the_one_that_torch_ignores() -> None:
    assert signature(torch.nn.functional.cross_entropy).parameters["ignore_index"].default == IGNORE_INDEX


@pytest.mark.parametrize(
    "noun",
    [
        Turn("human", "x"),
        Conversation((), "here"),
        Exchange("q", "a"),
        Segment("text", "x"),
        Draft(()),
        Example([1], [1]),
    ],
    ids=lambda noun: type(noun).__name__,
)
def test_a_noun_cannot_be_changed(noun: object) -> None:
    name = next(iter(vars(noun)))
    with pytest.raises(FrozenInstanceError):
        setattr(noun, name, None)


def test_a_segment_has_no_loss_unless_it_is_asked_for() -> None:
    assert Segment("text", "x").loss is False


def test_two_layouts_share_nothing() -> None:
    one, two = Layout(), Layout()
    one.drafts.append(Draft(()))
    one.counters["x"] += 1
    assert (two.drafts, dict(two.counters)) == ([], {})


def test_a_draft_without_a_source_is_one_of_a_decoder_only_model() -> None:
    assert {field.name: field.default for field in fields(Draft) if field.name == "source"} == {"source": ()}
