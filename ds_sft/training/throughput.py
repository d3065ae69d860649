"""Tokens of a run and the time they took; what is not training does not count as time."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.data.collate import Batch


class Throughput:
    """Counts tokens on the device, without waiting for it.

    Args:
        device: Where batches lie.
        counts_targets: Whether targets are tokens of their own, as in an encoder-decoder.
    """

    def __init__(self, device: torch.device, *, counts_targets: bool) -> None:
        self._counts = torch.zeros(2, dtype=torch.long, device=device)
        self._counts_targets = counts_targets
        self._begin = time.perf_counter()
        self.tokens_seen = 0

    @property
    def counts(self) -> list[int]:
        """Tokens and supervised tokens of this rank since the last report."""
        counts: list[int] = self._counts.tolist()
        return counts

    def count(self, batch: Batch) -> None:
        """Add the tokens of a micro-batch.

        Args:
            batch: Flat or padded.
        """
        is_supervised = batch["labels"].ne(IGNORE_INDEX)
        supervised = is_supervised.sum()
        # A row without a supervised token is a filler, and its tokens are no more of the data. A flat batch is one row
        # without a mask: all of its tokens are real.
        is_real = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        tokens = (is_real * is_supervised.any(dim=1, keepdim=True)).sum()
        if self._counts_targets:
            tokens = tokens + supervised
        self._counts += torch.stack([tokens, supervised]).to(self._counts.device)

    def restart(self) -> None:
        """Let the time begin now."""
        self._begin = time.perf_counter()

    def restore(self, counts: Sequence[int], *, tokens_seen: int) -> None:
        """Put back what a checkpoint holds.

        Args:
            counts: Of this rank.
            tokens_seen: By all ranks.
        """
        self._counts.copy_(torch.tensor(counts))
        self.tokens_seen = tokens_seen

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time that is spent inside.

        Yields:
            Nothing.
        """
        started = time.perf_counter()
        yield
        self._begin += time.perf_counter() - started

    def report(self, add_up: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Give the figures since the last report; every rank must call this.

        Args:
            add_up: Sums a tensor over all ranks.

        Returns:
            Tokens per second, and all tokens so far.
        """
        tokens, supervised = add_up(self._counts).tolist()
        seconds = time.perf_counter() - self._begin
        self._counts.zero_()
        self.restart()
        self.tokens_seen += tokens
        return {
            "tokens_per_second": round(tokens / seconds, 1),
            "supervised_tokens_per_second": round(supervised / seconds, 1),
            "num_input_tokens_seen": self.tokens_seen,
        }
