"""What is trained in the benchmark: seeded documents of random tokens, and the shapes of random models."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from ds_sft.contracts import IGNORE_INDEX

Ids = npt.NDArray[np.int32]
FIRST_TOKEN = 3
"""Smaller ids are pad, end and start."""
_END, _BEFORE_ANSWER = 1, 2
_JOINT = np.array([3, 4, 5], np.int32)
"""Stands between questions and answers that were given before: ordinary tokens."""
_LONGEST_EXCHANGE = 0.5
_SPREAD = 0.6
"""Sigma of all lognormal lengths."""


@dataclass(frozen=True)
class Workload:
    """Documents and a model.

    Args:
        name: Of the row in the results.
        family: Folder name below `ds_sft/families/`.
        shape: Of the model, by the names of config.json.
        max_length: Most tokens of a sequence; FastChat's Yuan2 trainer pads to it.
        batch_size: Samples of a padded batch.
        num_samples: Of an epoch.
        fill: Mean tokens of a sample, with `turns` of a question and its answer, as a share of `max_length`.
        baseline: The variant that `ratio` is against.
        turns: Mean answers of a conversation, each of which is a sample behind all that was said before; 0 for samples
            that have nothing in common. `num_samples` counts conversations then.
    """

    name: str
    family: str
    shape: Mapping[str, Any]
    max_length: int
    batch_size: int
    num_samples: int
    fill: float
    baseline: str = "fastchat"
    turns: float = 0.0


class Samples(Dataset[dict[str, Ids]]):
    """The samples of an epoch, as `ds_sft.data.datasets` gives them.

    Args:
        rows: With `input_ids` and `labels`.
        has_sources: Whether `input_ids` are the source of an encoder, and not the tokens behind `labels`.
        shared: How many tokens each begins with as the one before it of the same conversation does; none by default.
    """

    def __init__(self, rows: Sequence[dict[str, Ids]], *, has_sources: bool, shared: Sequence[int] = ()) -> None:
        self.rows = rows
        self.has_sources = has_sources
        self._shared = shared or [0] * len(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Ids]:
        return self.rows[index]

    def num_tokens(self) -> Ids:
        """Give the number of tokens of source (0 without one) and target of each sample.

        Returns:
            The numbers, shape [2, samples].
        """
        sources = [len(row["input_ids"]) * self.has_sources for row in self.rows]
        return np.array([sources, [len(row["labels"]) for row in self.rows]], np.int32)

    def shared(self) -> Ids:
        """Give the number of tokens that each sample shares with the one before it.

        Returns:
            The numbers, shape [samples].
        """
        return np.array(self._shared, np.int32)

    def num_distinct(self) -> int:
        """Give the number of tokens that must be computed when nothing is computed twice.

        Returns:
            Of all samples.
        """
        return int(self.num_tokens().sum() - self.shared().sum())

    def num_supervised(self) -> Ids:
        """Give the number of supervised tokens of each sample.

        Returns:
            The numbers, shape [samples].
        """
        return np.array([(row["labels"] != IGNORE_INDEX).sum() for row in self.rows], np.int32)

    def digest(self) -> str:
        """Name the samples.

        Returns:
            The first 16 hexadecimal digits of a hash over all tokens.
        """
        found = hashlib.sha256()
        for row in self.rows:
            found.update(row["input_ids"].tobytes() + b"|" + row["labels"].tobytes() + b";")
        return found.hexdigest()[:16]


def samples_of(workload: Workload, *, seed: int) -> Samples:
    """Draw the samples of a workload.

    Args:
        workload: Their number and lengths.
        seed: Of the draw.

    Returns:
        The same ones for the same seed.
    """
    generator = np.random.default_rng(seed)
    if workload.turns:
        return _split_conversations(workload, generator)
    with_encoder = "d_model" in workload.shape
    lengths = _lengths(workload, generator)
    draw = _pair if with_encoder else _conversation
    vocab_size = int(workload.shape["vocab_size"])
    return Samples([draw(length, vocab_size, generator) for length in lengths], has_sources=with_encoder)


def _lengths(workload: Workload, generator: np.random.Generator) -> list[int]:
    """Draw lognormal lengths whose mean is the fill of the workload after they were cut to its longest."""
    drawn = generator.lognormal(0.0, _SPREAD, workload.num_samples)
    low, high = 0.0, float(workload.max_length)
    for _ in range(50):
        middle = (low + high) / 2
        mean = np.minimum(drawn * middle, workload.max_length).mean()
        low, high = (middle, high) if mean < workload.fill * workload.max_length else (low, middle)
    return [int(length) for length in np.clip(drawn * low, 8, workload.max_length)]


def _conversation(length: int, vocab_size: int, generator: np.random.Generator) -> dict[str, Ids]:
    """Give questions and answers in turn; the answers are supervised."""
    ids = generator.integers(FIRST_TOKEN, vocab_size, length, dtype=np.int32)
    labels = ids.copy()
    place, turn = 0, 0
    while place < length:
        end = place + max(2, int(length * _LONGEST_EXCHANGE * generator.random()))
        if turn % 2 == 0:
            labels[place:end] = IGNORE_INDEX
        place, turn = end, turn + 1
    labels[length - 2 :] = ids[length - 2 :]  # none without an answer
    return {"input_ids": ids, "labels": labels}


def _split_conversations(workload: Workload, generator: np.random.Generator) -> Samples:
    """Give a sample for each answer, as split_example_loss does: what was said before, a sign, the answer and the end.

    How many answers conversations have is geometric; evenly spaced quantiles stand for many conversations.
    """
    rows, shared = [], []
    quantiles = (np.arange(workload.num_samples) + 0.5) / workload.num_samples
    for turns in np.ceil(np.log(1 - quantiles) / np.log(1 - 1 / workload.turns)).astype(int):
        history = told = np.zeros(0, np.int32)
        for _ in range(turns):
            question, answer = _exchange(workload, generator)
            ids = np.concatenate([history, question, [_BEFORE_ANSWER], answer, [_END]]).astype(np.int32)
            if len(ids) > workload.max_length:
                break
            labels = ids.copy()
            labels[: -len(answer) - 1] = IGNORE_INDEX
            rows.append({"input_ids": ids, "labels": labels})
            shared.append(len(told))
            told = np.concatenate([history, question])
            history = np.concatenate([told, _JOINT, answer, _JOINT])
    return Samples(rows, has_sources=False, shared=shared)


def _exchange(workload: Workload, generator: np.random.Generator) -> tuple[Ids, Ids]:
    """Draw a question and an answer of lognormal lengths."""
    mean = workload.fill * workload.max_length / 2 / np.exp(_SPREAD**2 / 2)
    lengths = (mean * generator.lognormal(0.0, _SPREAD, 2)).astype(int) + 1
    vocab_size = int(workload.shape["vocab_size"])
    question, answer = (generator.integers(FIRST_TOKEN, vocab_size, length, dtype=np.int32) for length in lengths)
    return question, answer


def _pair(length: int, vocab_size: int, generator: np.random.Generator) -> dict[str, Ids]:
    """Give a history and the answer to it, which is a fifth to a half as long."""
    answer = max(2, int(length * generator.uniform(0.2, 0.5)))
    source, target = (generator.integers(FIRST_TOKEN, vocab_size, num, dtype=np.int32) for num in (length, answer))
    return {"input_ids": source, "labels": target}


def _yuan2(vocab_size: int, width: int, num_layers: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": width // 64,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    } | more


def _t5(width: int, num_layers: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 32_128,
        "d_model": width,
        "d_kv": 64,
        "d_ff": 4 * width,
        "num_layers": num_layers,
        "num_heads": width // 64,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    } | more


SUITES: Mapping[str, tuple[Workload, ...]] = {
    "cpu": (
        Workload("yuan-vocab", "yuan2", _yuan2(135_040, 192, 4), 512, 4, 8, 0.55),
        Workload("yuan-share", "yuan2", _yuan2(6_144, 256, 12), 512, 4, 12, 0.40),
        Workload("yuan-split", "yuan2", _yuan2(6_144, 256, 12), 512, 4, 8, 0.08, baseline="flat_split", turns=4.5),
        Workload("t5-small", "flan_t5", _t5(512, 2), 512, 4, 12, 0.40, baseline="hf_grouped"),
    ),
    "gpu": (
        Workload("yuan-vocab", "yuan2", _yuan2(135_040, 1024, 8), 2048, 4, 32, 0.40),
        Workload("yuan-share", "yuan2", _yuan2(32_768, 2048, 24), 2048, 4, 32, 0.40),
        Workload("yuan-split", "yuan2", _yuan2(32_768, 2048, 24), 2048, 4, 24, 0.08, baseline="flat_split", turns=4.5),
        Workload("t5-small", "flan_t5", _t5(512, 6), 1024, 16, 128, 0.40, baseline="hf_grouped"),
    ),
}
