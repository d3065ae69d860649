"""What became of a data file, in numbers: told in the log, kept in the run's folder."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ds_sft.data.draft import told
from ds_sft.errors import DataError

log = logging.getLogger(__name__)

FILE_NAME = "data_counters.json"
PLACES_SHOWN = 10


@dataclass(frozen=True)
class Account:
    """What became of a data file.

    Args:
        data: The data file.
        mode: How answers became samples: the loss mode, or `pairs` for families with one way only.
        cache: Where the samples are kept, or the places of those that are made on access.
        counters: `records`, `rejected_<reason>`, `samples`, `tokens_total` (both sides of a sample together),
            `tokens_supervised`, `tokens_truncated`, and what was merged or dropped. Samples made on access have no
            `tokens_*`, but `measured_records`: how many had to be tokenised to know their samples.
        rejected: Place and reason of the first rejected records, without the name of the file.
        parts: What decides the samples, by name: digests of the data, the tokenizer and the code, and settings.
    """

    data: Path
    mode: str
    cache: Path
    counters: Mapping[str, int]
    rejected: tuple[str, ...]
    parts: Mapping[str, str]

    def told(self) -> str:
        """Put the counters into words.

        Returns:
            Those above zero.
        """
        return told(Counter(self.counters))


def report(account: Account) -> None:
    """Log what became of a data file.

    Args:
        account: Of the file.
    """
    log.info("%s: %s (%s)", account.data, account.told(), account.mode)
    for line in account.rejected:
        log.warning("rejected %s:%s", account.data, line)


def refuse_rejected(data: Path, rejected: Sequence[str]) -> None:
    """Stop a strict run.

    Args:
        data: The data file.
        rejected: Place and reason of each rejected record.

    Raises:
        DataError: When there is any; names the first one.
    """
    if rejected:
        place, reason = rejected[0].split(": ", 1)
        raise DataError(f"{data}:{place}: must be usable, but: {reason}; mend it or drop --strict_data")


def refuse_useless(account: Account) -> None:
    """Stop a run that would learn nothing.

    Args:
        account: Of a file without a supervised token.

    Raises:
        DataError: Always.
    """
    raise DataError(
        f"{account.data}: must hold at least one sample with an answer, but none of {account.counters['records']} "
        f"records gave one ({account.told()}); mend the records named above, or raise --model_max_length"
    )


def write_counters(train: Account, evaluation: Account | None, *, into: Path) -> None:
    """Keep what became of the data in the folder of a run.

    Args:
        train: Of the training data.
        evaluation: Of the evaluation data, where there is any.
        into: The folder; `data_counters.json` in it is replaced.
    """
    accounts = {"train": train} if evaluation is None else {"train": train, "eval": evaluation}
    text = json.dumps({role: asdict(account) for role, account in accounts.items()}, indent=2, default=str) + "\n"
    part = into / f".{FILE_NAME}.part"
    part.unlink(missing_ok=True)
    # Only what did not exist is opened: a link that somebody put there leads out of the folder.
    with part.open("x", encoding="utf-8") as stream:
        stream.write(text)
    part.replace(into / FILE_NAME)
