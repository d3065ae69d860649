"""The datasets: eager and lazy, with the same samples in the same order; neither grows a process with its data."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from ds_sft.config.sources import DataArguments
from ds_sft.contracts import IGNORE_INDEX, Rejection
from ds_sft.data.account import Account, refuse_useless, report
from ds_sft.data.boundaries import Boundaries
from ds_sft.data.content import Content
from ds_sft.data.draft import Encoder, draft_conversation
from ds_sft.data.prepare import prepare
from ds_sft.data.read import RecordFile
from ds_sft.data.samples import labels_of
from ds_sft.data.table import Table

Row = dict[str, npt.NDArray[np.int32]]
"""One sample: `input_ids` and `labels`."""


class SupervisedDataset(Dataset[Row]):
    """Samples that were tokenised beforehand, in a file that is mapped.

    Args:
        table: Of `SAMPLES`.
        account: What became of the data.
    """

    def __init__(self, table: Table, account: Account) -> None:
        super().__init__()
        self._table = table
        self.account = account

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Row:
        row = self._table.row(index)
        target = row["target"]
        source = row["source"] if len(row["source"]) else target
        # Copies, because rows are views of a file that nobody may write to.
        return {"input_ids": source.copy(), "labels": labels_of(target, row["runs"])}

    def lengths(self) -> npt.NDArray[np.int32]:
        """Give the number of tokens of each sample, source and target together, without reading any.

        Returns:
            The lengths, shape [samples].
        """
        return self._table.lengths("source") + self._table.lengths("target")

    def num_tokens(self) -> npt.NDArray[np.int32]:
        """Give the number of tokens of source (0 without one) and target of each sample, without reading any.

        Returns:
            The numbers, shape [2, samples].
        """
        return np.stack([self._table.lengths("source"), self._table.lengths("target")])

    def shared(self) -> npt.NDArray[np.int32]:
        """Give the number of tokens with which each sample begins as the one before it of the same conversation does.

        Returns:
            The numbers, shape [samples].
        """
        return self._table.column("shared").astype(np.int32)


class LazySupervisedDataset(Dataset[Row]):
    """Samples that are read, laid out and tokenised when they are asked for.

    Args:
        table: Of `PLACES` or `COUNTED_PLACES`.
        account: What became of the data.
        encoder: Family, tokenizer and layout, as when the table was made.
    """

    def __init__(self, table: Table, account: Account, encoder: Encoder) -> None:
        super().__init__()
        self._table = table
        self._content = Content(account.data)
        self._encoder = encoder
        self.account = account

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Row:
        row = self._table.row(index)
        boundaries = Boundaries(np.array([[row["start"], row["end"]]]), [int(row["number"])], self._table.note["unit"])
        conversation = RecordFile(self._content, boundaries)[0]
        outcome, _ = draft_conversation(conversation, self._encoder)
        if isinstance(outcome, Rejection):
            raise AssertionError(f"{conversation.place}: gave samples before, but not now: {outcome}")  # noqa: TRY004
        example = self._encoder.example(outcome.drafts[row["nth"]])
        return {"input_ids": np.array(example.input_ids, np.int32), "labels": np.array(example.labels, np.int32)}

    def lengths(self) -> npt.NDArray[np.int32]:
        """Give the number of characters of each sample: its tokens are not known yet, but go with them.

        Returns:
            The lengths, shape [samples].
        """
        return self._table.column("size").astype(np.int32)

    def num_tokens(self) -> npt.NDArray[np.int32]:
        """Give the number of tokens of source (0 without one) and target of each sample, if they were counted.

        Returns:
            The numbers, shape [2, samples].
        """
        return np.stack([self._table.column("source"), self._table.column("target")])

    def shared(self) -> npt.NDArray[np.int32]:
        """Give the number of tokens with which each sample begins as the one before it of the same conversation does.

        Returns:
            The numbers, shape [samples], if tokens were counted.
        """
        return self._table.column("shared").astype(np.int32)


SampleDataset = SupervisedDataset | LazySupervisedDataset


def load_datasets(
    data: DataArguments, *, encoder: Encoder, counts_tokens: bool = False
) -> tuple[SampleDataset, SampleDataset | None]:
    """Make the datasets of a run.

    Args:
        data: Which files, and how.
        encoder: Family, tokenizer and layout.
        counts_tokens: Whether the tokens of each sample must be known.

    Returns:
        The training samples, and the evaluation samples where a file is given.
    """
    train = build_dataset(Path(data.data_path), data=data, encoder=encoder, counts_tokens=counts_tokens)
    if not data.eval_data_path:
        return train, None
    # num_data makes a small training run; an evaluation must stay comparable.
    whole = replace(data, num_data=-1)
    evaluated = Path(data.eval_data_path)
    return train, build_dataset(evaluated, data=whole, encoder=encoder, role="eval", counts_tokens=counts_tokens)


def build_dataset(
    path: Path, *, data: DataArguments, encoder: Encoder, role: str = "train", counts_tokens: bool = False
) -> SampleDataset:
    """Make the dataset of a data file.

    Args:
        path: The data file.
        data: How many of its records, eager or lazy, strict or not, where to keep what was tokenised.
        encoder: Family, tokenizer and layout.
        role: `train` or `eval`.
        counts_tokens: Whether the tokens of each sample must be known; for lazy samples all is tokenised once then.

    Returns:
        The samples in file order.

    Raises:
        DataError: When no conversation teaches a single token.
    """
    file = path.expanduser()
    table = prepare(file, role=role, data=data, encoder=encoder, counts_tokens=counts_tokens)
    note = table.note
    mode = encoder.options.loss_mode if encoder.family.loss_modes else "pairs"
    account = Account(file, mode, table.file, note["counters"], tuple(note["rejected"]), note["parts"])
    report(account)
    dataset = (
        LazySupervisedDataset(table, account, encoder) if data.lazy_preprocess else SupervisedDataset(table, account)
    )
    # Nearly always the first sample tells.
    if not any((row["labels"] != IGNORE_INDEX).any() for row in map(dataset.__getitem__, range(len(dataset)))):
        refuse_useless(account)
    return dataset
