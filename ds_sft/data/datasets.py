"""The datasets: eager and lazy, with the same samples in the same order; what became of the data is counted."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
from torch.utils.data import Dataset

from ds_sft.config.arguments import DataArguments
from ds_sft.contracts import IGNORE_INDEX, Draft, Example
from ds_sft.data.draft import Drafts, Encoder, draft_samples, told
from ds_sft.data.read import read_conversations
from ds_sft.errors import DataError, SaveError
from ds_sft.reporting import rank

log = logging.getLogger(__name__)

Row = dict[str, Sequence[int]]
"""One sample: `input_ids` and `labels`."""


class SupervisedDataset(Dataset[Row]):
    """Samples that were tokenised beforehand.

    Args:
        examples: Ids and labels of every sample.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        super().__init__()
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Row:
        return _as_row(self._examples[index])


class LazySupervisedDataset(Dataset[Row]):
    """Samples that are tokenised when they are asked for.

    Args:
        drafts: Every sample as segments.
        encoder: Tokenises them.
    """

    def __init__(self, drafts: Sequence[Draft], encoder: Encoder) -> None:
        super().__init__()
        self._drafts = drafts
        self._encoder = encoder

    def __len__(self) -> int:
        return len(self._drafts)

    def __getitem__(self, index: int) -> Row:
        return _as_row(self._encoder.example(self._drafts[index]))


SampleDataset = SupervisedDataset | LazySupervisedDataset


def load_datasets(data: DataArguments, *, encoder: Encoder) -> tuple[SampleDataset, SampleDataset | None]:
    """Make the datasets of a run.

    Args:
        data: Which files, and how.
        encoder: Family, tokenizer and limit.

    Returns:
        The training samples, and the evaluation samples where a file is given.
    """
    cache = Path(data.preprocessed_path).expanduser() if data.preprocessed_path else None
    if cache is not None and cache.is_file():
        train = _read_samples(cache, num_tokens=len(encoder.tokenizer))
    else:
        train = build_dataset(Path(data.data_path).expanduser(), data=data, encoder=encoder)
        if cache is not None and rank() == 0:
            _write_samples(train, cache)
    if not data.eval_data_path:
        return train, None
    # num_data makes a small training run; an evaluation must stay comparable.
    whole = replace(data, num_data=-1)
    return train, build_dataset(Path(data.eval_data_path).expanduser(), data=whole, encoder=encoder)


def build_dataset(path: Path, *, data: DataArguments, encoder: Encoder) -> SampleDataset:
    """Read a data file and make its dataset.

    Args:
        path: ShareGPT conversations.
        data: How many of them, eager or lazy, strict or not.
        encoder: Family, tokenizer and limit.

    Returns:
        The samples in file order.

    Raises:
        DataError: When no conversation teaches a single token.
    """
    conversations = read_conversations(path)
    if not conversations:
        raise DataError(f"{path}: must hold at least one conversation, but has {len(conversations)}; add some")
    chosen = conversations[: data.num_data] if data.num_data >= 0 else conversations
    drafts = draft_samples(chosen, encoder, is_strict=data.strict_data)
    _report(path, drafts)
    if not drafts.items:
        raise DataError(
            f"{path}: must hold at least one sample with an answer, but none of {len(chosen)} records gave one "
            f"({told(drafts.counters)}); mend the records named above, or raise --model_max_length"
        )
    if data.lazy_preprocess:
        return LazySupervisedDataset(drafts.items, encoder)
    return SupervisedDataset([encoder.example(draft) for draft in drafts.items])


def _read_samples(file: Path, *, num_tokens: int) -> SampleDataset:
    try:
        examples = msgspec.json.decode(file.read_bytes(), type=list[Example])
    except msgspec.DecodeError as error:
        raise DataError(f"{file}: preprocessed_path must hold samples, but: {error}; delete the file") from error
    if not examples:
        raise DataError(f"{file}: preprocessed_path must hold samples, but has {len(examples)}; delete the file")
    for number, example in enumerate(examples, start=1):
        ids = [*example.input_ids, *(label for label in example.labels if label != IGNORE_INDEX)]
        if not example.input_ids or not example.labels or not 0 <= min(ids) <= max(ids) < num_tokens:
            raise DataError(
                f"{file}:sample {number}: must hold ids from 0 to {num_tokens - 1} on both sides, but does not; "
                "delete the file"
            )
    log.warning("read %d samples from %s: data_path, num_data and model_max_length have no effect", len(examples), file)
    return SupervisedDataset(examples)


def _write_samples(samples: SampleDataset, file: Path) -> None:
    part = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(msgspec.json.encode([samples[index] for index in range(len(samples))]))
        part.replace(file)
    except OSError as error:
        raise SaveError(f"preprocessed_path: must be writable, but {file}: {error}; name another file") from error


def _as_row(example: Example) -> Row:
    return {"input_ids": example.input_ids, "labels": example.labels}


def _report(path: Path, drafts: Drafts) -> None:
    log.info("%s: %s", path, told(drafts.counters))
    for line in drafts.rejected:
        log.warning("rejected %s", line)
