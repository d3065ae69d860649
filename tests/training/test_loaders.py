"""Every sample is trained and evaluated once, flat or padded, on any number of ranks; and what an epoch is, is told."""

from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ds_sft.data.collate import Batch, FlatCollatorForSupervisedDataset
from ds_sft.data.datasets import Row
from ds_sft.data.fillers import filler_of
from ds_sft.training.loaders import evaluation_batches, loader_of, training_batches

NUM_SAMPLES = 50
SOURCES = 5 + np.random.RandomState(0).randint(0, 60, NUM_SAMPLES)
SHORTEST = int(np.argmin(SOURCES))


class Samples:
    """Samples whose every id is their own number, with targets of three tokens."""

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> Row:
        return {"input_ids": np.full(SOURCES[index], index, np.int32), "labels": np.full(3, index, np.int32)}

    def num_tokens(self) -> npt.NDArray[np.int32]:
        return np.stack([SOURCES, np.full(NUM_SAMPLES, 3)]).astype(np.int32)


SAMPLES: Any = Samples()


def args_of(*, rank: int = 0, world_size: int = 1, **changes: Any) -> Any:
    given = {
        "packing": True,
        "share_prefixes": None,
        "tokens_per_batch": None,
        "target_tokens_per_batch": None,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,
        "train_batch_size": 2,
        "eval_batch_size": 3,
        "model_max_length": 64,
        "gradient_accumulation_steps": 1,
        "train_sampling_strategy": "random",
        "seed": 7,
        "data_seed": None,
        "dataloader_drop_last": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "dataloader_prefetch_factor": None,
        "dataloader_multiprocessing_context": None,
        "process_index": rank,
        "world_size": world_size,
    }
    return SimpleNamespace(**{**given, **changes})


def dealt(deal: Any, *, world_size: int, epoch: int = 0, **changes: Any) -> list[list[list[int]]]:
    """Give the micro-batches of each rank."""
    ranks = []
    for rank in range(world_size):
        batches = deal(SAMPLES, args_of(rank=rank, world_size=world_size, **changes), is_encoder_decoder=True)
        batches.set_epoch(epoch)
        ranks.append(list(batches))
    return ranks


def steps(ranks: list[list[list[int]]], accumulation: int) -> list[set[int]]:
    micro_steps = list(zip(*ranks, strict=True))
    return [
        {sample for batch in chain(*micro_steps[start : start + accumulation]) for sample in batch if sample >= 0}
        for start in range(0, len(micro_steps), accumulation)
    ]


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("strategy", ["random", "sequential"])
def test_a_packed_step_has_the_same_samples_on_one_two_and_four_ranks(strategy: str, epoch: int) -> None:
    found = [
        steps(
            dealt(
                training_batches,
                world_size=world_size,
                epoch=epoch,
                gradient_accumulation_steps=4 // world_size,
                train_sampling_strategy=strategy,
            ),
            4 // world_size,
        )
        for world_size in (1, 2, 4)
    ]
    assert found[0] == found[1] == found[2]
    assert sorted(chain(*found[0])) == list(range(NUM_SAMPLES))
    assert len(found[0]) > 2


def test_packed_samples_in_order_stay_in_order() -> None:
    (batches,) = dealt(training_batches, world_size=1, train_sampling_strategy="sequential")
    assert list(chain(*batches)) == list(range(NUM_SAMPLES))


def test_the_seed_of_the_data_decides_the_packing_where_it_is_given() -> None:
    found = [
        dealt(training_batches, world_size=1, seed=seed, data_seed=data_seed)
        for seed, data_seed in ((7, None), (8, 7), (8, None))
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_an_evaluation_has_every_sample_once_and_as_many_batches_on_each_rank(is_packed: bool, world_size: int) -> None:
    ranks = dealt(evaluation_batches, world_size=world_size, packing=is_packed, dataloader_drop_last=True)
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(sample for sample in chain(*chain(*ranks)) if sample >= 0) == list(range(NUM_SAMPLES))


@pytest.mark.parametrize("is_packed", [True, False])
def test_an_evaluation_does_not_depend_on_the_seed(is_packed: bool) -> None:
    first, other_seed = (dealt(evaluation_batches, world_size=2, packing=is_packed, seed=seed) for seed in (0, 1))
    assert first == other_seed


def test_budgets_of_an_evaluation_hold() -> None:
    (batches,) = dealt(evaluation_batches, world_size=1, per_device_eval_batch_size=2)
    totals = [int(SOURCES[batch].sum()) for batch in batches]
    assert max(totals) <= 128
    assert sum(totals) / (128 * len(totals)) > 0.85


def test_a_rank_without_a_micro_batch_gets_the_shortest_sample_as_a_filler() -> None:
    # Each sample alone, so that 50 micro-batches meet 4 ranks.
    ranks = dealt(training_batches, world_size=4, train_sampling_strategy="sequential", target_tokens_per_batch=3)
    assert [batches[-1] for batches in ranks] == [[48], [49], [filler_of(SHORTEST)], [filler_of(SHORTEST)]]


def test_a_loader_gives_flat_batches_of_samples_and_fillers() -> None:
    collate = FlatCollatorForSupervisedDataset(decoder_start_token_id=0, decoder_pad_token_id=0)
    batches: Any = [[4, 2], [filler_of(3)]]
    first, second = loader_of(SAMPLES, batches, args_of(), collate)

    def told(batch: Batch) -> tuple[list[int], list[int]]:
        return batch["offsets"].tolist(), batch["labels"][0].tolist()

    assert told(first) == ([0, SOURCES[4], SOURCES[4] + SOURCES[2]], [4, 4, 4, 2, 2, 2])
    assert told(second) == ([0, SOURCES[3]], [-100] * 3)


def test_what_an_epoch_is_made_of_is_told_once(told: pytest.LogCaptureFixture) -> None:
    args = args_of(world_size=2, gradient_accumulation_steps=2)
    batches = training_batches(SAMPLES, args, is_encoder_decoder=True)
    num = 2 * len(batches)
    fill = 100 * SOURCES.sum() / 128 / num
    derived = "= 2 per_device_train_batch_size x 64 model_max_length"
    budgets, epoch = told.messages
    assert budgets == (
        f"packing: a micro-batch takes up to 128 source tokens ({derived}) and up to 128 target tokens ({derived})"
    )
    assert epoch == (
        f"packing: an epoch has 50 samples in {num} micro-batches, {fill:.1f} % full: {num // 4} steps x 2 accumulate "
        "x 2 ranks"
    )


def test_nothing_is_told_of_packing_without_it(told: pytest.LogCaptureFixture) -> None:
    (batches,) = dealt(training_batches, world_size=1, packing=False)
    assert told.messages == []
    assert [len(batch) for batch in batches] == [2] * 25
