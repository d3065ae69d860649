"""Flat batches: documents laid one behind the other without padding, and attention that stays inside each of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise, repeat
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Takes query [1, N, T, D], key and value [1, N, S, D], and a bias [1, N, T, S] or None; gives [1, N, T, D]."""

_OF_KERNELS = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Documents:
    """Where the documents of a flat batch begin and end: on the CPU, where shapes are needed, and on the device.

    Args:
        offsets: Document d is tokens offsets[d] to offsets[d + 1]; D + 1 numbers, the first one 0.
        boundaries: The same on the device of the batch, int32, shape [D + 1].
    """

    offsets: tuple[int, ...]
    boundaries: torch.Tensor

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each document."""
        return [end - begin for begin, end in pairwise(self.offsets)]

    @property
    def longest(self) -> int:
        """Most tokens of one."""
        return max(self.lengths)

    def ids(self) -> torch.Tensor:
        """Tell of each token which document it belongs to.

        Returns:
            Numbers from 0, shape [1, T].
        """
        index = torch.arange(self.offsets[-1], dtype=torch.int32, device=self.boundaries.device)
        return torch.bucketize(index, self.boundaries[1:], right=True)[None]

    def refuse_other_shape(self, ids: torch.Tensor) -> None:
        """Refuse tokens that are no flat batch of these documents.

        Args:
            ids: Token ids.

        Raises:
            ValueError: When their shape is another.
        """
        if list(ids.shape) != [1, self.offsets[-1]]:
            raise ValueError(
                f"input ids: must have the shape [1, {self.offsets[-1]}] that the offsets end with, but have "
                f"{list(ids.shape)}; lay the documents one behind the other"
            )


def documents_of(offsets: torch.Tensor, *, device: torch.device) -> Documents:
    """Read the offsets of a flat batch; where they are on the CPU, no device is waited for.

    Args:
        offsets: Shape [D + 1].
        device: Of the batch.

    Returns:
        The documents.

    Raises:
        ValueError: When they do not begin with 0 or do not go up.
    """
    numbers = tuple(offsets.tolist())
    if numbers[0] != 0 or any(end <= begin for begin, end in pairwise(numbers)) or len(numbers) == 1:
        raise ValueError(
            f"offsets: must begin with 0 and go up, at least once, but are {list(numbers)}; leave out documents "
            "without a token"
        )
    return Documents(numbers, offsets.to(device, torch.int32, non_blocking=True))


def attend_in_documents(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    queries: Documents,
    keys: Documents,
    is_causal: bool,
    scale: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attend with torch's fused kernels: on a GPU in 16 bits by one for all documents, else by one for each.

    Args:
        query: Shape [1, N, T, D].
        key: Shape [1, N, S, D].
        value: Shape [1, N, S, D].
        queries: Documents of the T tokens.
        keys: Documents of the S tokens, as many.
        is_causal: Whether a token sees no later ones. Where a document has fewer queries than keys, which only the
            kernel for all documents takes, they are the last ones.
        scale: Factor of the scores.
        dropout: Share of the probabilities that is dropped.

    Returns:
        Shape [1, T, N, D].
    """
    if has_kernel(query) and dropout == 0:
        query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
        sizes = (queries.boundaries, keys.boundaries, queries.longest, keys.longest)
        attended: Any = varlen_attn(query, key, value, *sizes, scale=scale, window_size=(-1, 0 if is_causal else -1))
        kept: torch.Tensor = attended[None]
        return kept
    attend = partial(fused_attention, is_causal=is_causal, scale=scale, dropout=dropout)
    return attend_one_by_one(attend, query, key, value, queries=queries, keys=keys)


def has_kernel(query: torch.Tensor) -> bool:
    """Tell whether torch has one kernel for all documents.

    Args:
        query: Tells device and dtype.

    Returns:
        True on a GPU in 16 bits.
    """
    return query.is_cuda and query.dtype in _OF_KERNELS


def attend_one_by_one(
    attend: Attend,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    queries: Documents,
    keys: Documents,
    biases: Sequence[torch.Tensor | None] | None = None,
) -> torch.Tensor:
    """Attend in each document by itself, so that no number of one depends on another.

    Args:
        attend: What to do in one.
        query: Shape [1, N, T, D].
        key: Shape [1, N, S, D].
        value: Shape [1, N, S, D].
        queries: Documents of the T tokens.
        keys: Documents of the S tokens, as many.
        biases: One for each document.

    Returns:
        Shape [1, T, N, D].
    """
    parts = zip(
        torch.split(query, queries.lengths, dim=2),
        torch.split(key, keys.lengths, dim=2),
        torch.split(value, keys.lengths, dim=2),
        biases or repeat(None, len(keys.lengths)),
        strict=True,
    )
    return torch.cat([attend(*part).transpose(1, 2) for part in parts], dim=1)


def fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    scale: float,
    dropout: float,
    is_causal: bool = False,
) -> torch.Tensor:
    """Attend with torch's kernel for one document.

    Args:
        query: Shape [1, N, T, D].
        key: Shape [1, N, S, D].
        value: Shape [1, N, S, D].
        bias: Added to the scores, shape [1, N, T, S], or False where nothing is seen, shape [T, S]; or None.
        scale: Factor of the scores.
        dropout: Share of the probabilities that is dropped.
        is_causal: Whether a token sees no later ones; not together with a bias.

    Returns:
        Shape [1, N, T, D].
    """
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=dropout, is_causal=is_causal, scale=scale
    )
