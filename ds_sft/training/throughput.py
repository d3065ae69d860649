"""Tokens of a run and the time and memory they took; what is not training does not count as time."""

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.data.collate import Batch
from ds_sft.training.compute import Compute

_BYTES_PER_KIB = 2**10
_MICRO, _KILO = 1_000_000, 1_000
"""Ranks tell each other whole numbers: microseconds, and thousands of operations."""


class Throughput:
    """Counts tokens on the device, without waiting for it.

    Args:
        device: Where batches lie.
        counts_targets: Whether targets are tokens of their own, as in an encoder-decoder.
        compute: Tells the operations of a batch and the peak of this rank; without it there is no MFU.
    """

    def __init__(self, device: torch.device, *, counts_targets: bool, compute: Compute | None = None) -> None:
        self._counts = torch.zeros(2, dtype=torch.long, device=device)
        self._counts_targets = counts_targets
        self._compute = compute
        self._begin = self._run_begin = time.perf_counter()
        self._waited = self._flops = 0.0
        self._first_step = 0
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

    def taken(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Measure how long batches are waited for, and what they cost; all of it on the host, so no device need stop.

        Args:
            batches: From the loader.

        Yields:
            The same batches.
        """
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            if self._compute is not None:
                self._flops += self._compute.flops_of(batch)
            yield batch

    def begin(self, step: int) -> None:
        """Let the time of this start begin now.

        Args:
            step: Done before; above zero after a resume.
        """
        self._first_step = step
        self._run_begin = time.perf_counter()
        self.restart()

    def restart(self) -> None:
        """Let the time begin now."""
        self._begin = time.perf_counter()
        self._waited = self._flops = 0.0

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

    def report(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Give the figures since the last report; every rank must call this.

        Args:
            gather: Puts the rows of all ranks below each other.

        Returns:
            Tokens per second of all ranks, and of one where there are several; as shares from 0 to 1, what of the peaks
            of all ranks was used and the time in which the slowest loader was waited for; the peak of the rank that
            needs most memory; all tokens so far.
        """
        ranks = gather(self._row()[None]).tolist()
        seconds = time.perf_counter() - self._begin
        self._counts.zero_()
        self.restart()
        tokens, supervised, work, peak, *_ = (sum(column) for column in zip(*ranks, strict=True))
        *_, waited, memory = (max(column) for column in zip(*ranks, strict=True))
        self.tokens_seen += tokens
        per_rank = {"tokens_per_second_per_rank": round(tokens / seconds / len(ranks), 1)} if len(ranks) > 1 else {}
        return {
            "tokens_per_second": round(tokens / seconds, 1),
            "supervised_tokens_per_second": round(supervised / seconds, 1),
            **per_rank,
            **({"mfu": float(f"{work / seconds / peak:.4g}")} if peak else {}),
            "data_wait_share": round(waited / _MICRO / seconds, 4),
            "peak_memory_bytes": memory,
            "num_input_tokens_seen": self.tokens_seen,
        }

    def seconds_left(self, step: int, *, last_step: int) -> float:
        """Tell how long the run goes on as it has gone since its start, with all that is not training.

        Args:
            step: Done so far.
            last_step: Of the run.

        Returns:
            Seconds.
        """
        a_step = (time.perf_counter() - self._run_begin) / max(step - self._first_step, 1)
        return round(a_step * (last_step - step), 1)

    def _row(self) -> torch.Tensor:
        """Give what this rank tells the others, shape [6]."""
        peak = self._compute.peak if self._compute else 0.0
        of_host = [round(self._flops / _KILO), round(peak / _KILO), round(_MICRO * self._waited), peak_memory_bytes()]
        return torch.cat([self._counts, torch.tensor(of_host, device=self._counts.device)])


def peak_memory_bytes() -> int:
    """Give the peak of this rank.

    Returns:
        What was allocated on its GPU, or the resident memory of its process where there is none.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_PER_KIB
