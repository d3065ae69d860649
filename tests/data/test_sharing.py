"""Samples of a conversation become a tree that holds what they begin with once, and nothing of them is lost."""

import json
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_sft.config.sources import DataArguments
from ds_sft.contracts import IGNORE_INDEX, LayoutOptions, LossMode
from ds_sft.data.collate import FlatCollatorForCausalDataset, TreeCollatorForCausalDataset
from ds_sft.data.datasets import Row, SampleDataset, build_dataset
from ds_sft.data.draft import Encoder
from ds_sft.data.fillers import WithFillers, filler_of
from ds_sft.data.samples import num_shared
from ds_sft.data.sharing import SampleTrees, starts_of_trees, tree_of
from ds_sft.families import family_named
from ds_sft.model.trees import trees_of
from tests.flat import CPU

IGNORE = IGNORE_INDEX
FEW_TOKENS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=7)
"""So few different ones that samples begin alike."""


def row(*ids: int) -> Row:
    """Give a sample of which the later half is supervised."""
    labels = [*[IGNORE] * (len(ids) // 2), *ids[len(ids) // 2 :]]
    return {"input_ids": np.array(ids, np.int32), "labels": np.array(labels, np.int32)}


@dataclass(frozen=True)
class Talks:
    """Samples of given conversations."""

    conversations: list[list[list[int]]]

    def __len__(self) -> int:
        return sum(map(len, self.conversations))

    def __getitem__(self, index: int) -> Row:
        return row(*[ids for talk in self.conversations for ids in talk][index])

    def num_tokens(self) -> npt.NDArray[np.int32]:
        lengths = [len(ids) for talk in self.conversations for ids in talk]
        return np.array([[0] * len(lengths), lengths], np.int32)

    def shared(self) -> npt.NDArray[np.int32]:
        befores = [[[], *talk[:-1]] for talk in self.conversations]
        pairs = [
            pair
            for talk, before in zip(self.conversations, befores, strict=True)
            for pair in zip(before, talk, strict=True)
        ]
        return np.array([num_shared(*pair) for pair in pairs], np.int32)


def trees(*conversations: list[list[int]], budget: int = 99) -> SampleTrees:
    samples: Any = Talks(list(conversations))
    return SampleTrees(samples, budget=budget)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [1, 2, 4, 5], 2),
        ([1, 2, 3], [2, 2, 3], 0),
        ([1, 2, 3], [1, 2, 3], 2),
        ([1, 2], [1, 2, 3], 1),
        ([], [1], 0),
        ([1], [1, 2], 0),
    ],
)
def test_samples_share_what_they_begin_with_but_for_a_token_of_their_own(
    first: list[int], second: list[int], expected: int
) -> None:
    assert num_shared(first, second) == num_shared(second, first) == expected


def test_a_conversation_becomes_its_last_sample_with_branches_for_the_others() -> None:
    tree = trees([[1, 2, 8, 9], [1, 2, 3, 4, 7], [1, 2, 3, 5, 6, 6]])[0]
    assert {name: values.tolist() for name, values in tree.items()} == {
        "input_ids": [1, 2, 3, 5, 6, 6, 4, 7, 8, 9],
        "labels": [IGNORE, IGNORE, IGNORE, 5, 6, 6, IGNORE, IGNORE, 3, 4, 7, IGNORE, IGNORE, 8, 9],
        "lengths": [6, 5, 4],
        "shared": [0, 3, 2],
    }


def test_tokens_that_are_not_alike_are_no_tree() -> None:
    with pytest.raises(AssertionError, match="begin with the same 2 tokens"):
        tree_of([row(1, 2, 3), row(1, 3, 3)], np.array([0, 2], np.int32))


@given(conversations=st.lists(FEW_TOKENS, min_size=1, max_size=4), budget=st.integers(9, 40))
def test_every_tree_gives_its_samples_back_and_stays_within_the_budget(
    conversations: list[list[list[int]]], budget: int
) -> None:
    dataset = trees(*conversations, budget=budget)
    found: list[Any] = [dataset[number] for number in range(len(dataset))]
    stored = dataset.num_tokens()[1].tolist()
    assert [len(tree["input_ids"]) for tree in found] == stored
    assert max(stored) <= budget
    batch, samples = TreeCollatorForCausalDataset()(found), []
    laid = trees_of(batch["offsets"], batch["shared"], device=CPU)
    for begin, end in pairwise(laid.whole.offsets):
        samples.append(batch["input_ids"][0, laid.places[begin:end]].tolist())
    assert sorted(samples) == sorted(ids for talk in conversations for ids in talk)


def test_the_labels_of_a_batch_are_those_of_the_samples_laid_flat() -> None:
    talks = [[[1, 2, 8, 9], [1, 2, 3, 4, 7]], [[5]], [[1, 2], [1, 3]]]
    dataset = trees(*talks)
    laid: list[Any] = [dataset[number] for number in range(len(dataset))]
    samples: list[Any] = [row(*ids) for talk in talks for ids in talk[::-1]]
    batch, flat = TreeCollatorForCausalDataset()(laid), FlatCollatorForCausalDataset()(samples)
    assert batch["labels"].tolist() == flat["labels"].tolist()
    assert batch["offsets"].tolist() == flat["offsets"].tolist()
    assert batch["shared"].tolist() == [0, 2, 0, 0, 1]
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 7, 8, 9, 5, 1, 3, 2]]


@pytest.mark.parametrize(
    ("budget", "expected"), [(99, [0, 3, 5]), (13, [0, 3, 5]), (12, [0, 2, 3, 5]), (6, [0, 1, 2, 3, 4, 5])]
)
def test_a_tree_over_the_budget_becomes_several(budget: int, expected: list[int]) -> None:
    lengths, shared = np.array([4, 6, 5, 3, 5]), np.array([0, 1, 1, 0, 1])
    assert starts_of_trees(lengths, shared, budget=budget).tolist() == expected


def test_a_filler_of_a_tree_teaches_nothing() -> None:
    filler = WithFillers(trees([[1, 2, 8], [1, 2, 3]]))[filler_of(0)]
    assert filler["labels"].tolist() == [IGNORE] * 6
    assert filler["input_ids"].tolist() == [1, 2, 3, 8]


@pytest.mark.parametrize("is_lazy", [False, True])
@pytest.mark.parametrize(
    ("name", "mode"), [("yuan2", "split_example"), ("yuan2", "efficient"), ("flan_t5", "efficient")]
)
def test_what_samples_share_is_known_of_each_conversation(
    name: str, mode: LossMode, is_lazy: bool, tiny_yuan2: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    dataset = _dataset({"yuan2": tiny_yuan2, "flan_t5": tiny_checkpoint}[name], name, mode, is_lazy, tmp_path)
    samples = [dataset[number]["input_ids"].tolist() for number in range(len(dataset))]
    if mode == "split_example":
        assert len(samples) == 4
        # The second conversation begins like the first one, but is another.
        alike = [takewhile(lambda pair: pair[0] == pair[1], zip(*samples[at : at + 2], strict=False)) for at in (0, 1)]
        expected = [0, *(len(list(pairs)) for pairs in alike), 0]
        assert min(expected[1:3]) > 4
    else:
        expected = [0] * len(samples)
    assert dataset.shared().tolist() == expected


def _dataset(folder: Path, name: str, mode: LossMode, is_lazy: bool, tmp_path: Path) -> SampleDataset:
    talks = [[("who are you", "a model"), ("who made you", "people"), ("why", "for a test")], [("who are you", "no")]]
    records = [
        {
            "conversations": [
                {"from": role, "value": text}
                for pair in talk
                for role, text in zip(("human", "gpt"), pair, strict=True)
            ]
        }
        for talk in talks
    ]
    file = tmp_path / "d.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    family = family_named(name)
    encoder = Encoder(family, family.load_tokenizer(folder), LayoutOptions(250, loss_mode=mode))
    data = DataArguments(data_path=str(file), lazy_preprocess=is_lazy)
    return build_dataset(file, data=data, encoder=encoder, counts_tokens=True)
