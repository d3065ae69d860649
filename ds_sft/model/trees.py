"""Documents of a flat batch that begin with the same tokens: these are stored and computed once, as a trunk.

Nothing is lost by that in a causal model: a token's states depend on the tokens before it alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise

import torch

from ds_sft.model.flat import (
    Documents,
    attend_in_documents,
    attend_one_by_one,
    documents_of,
    fused_attention,
    has_kernel,
)


@dataclass(frozen=True)
class Trees:
    """Documents, each of which may begin with tokens of the one before it.

    Args:
        whole: Where the documents would lie if nothing were shared, U tokens.
        stored: Where the tokens of each lie that it does not share with the one before it, T tokens.
        places: Of the U tokens among the T stored ones, shape [U].
        positions: Of the stored tokens in their documents, shape [1, T].
        firsts: Places of the first stored token of each document that shares some, shape [branches].
        parents: Places of the tokens right before those, shape [branches].
    """

    whole: Documents
    stored: Documents
    places: torch.Tensor
    positions: torch.Tensor
    firsts: torch.Tensor
    parents: torch.Tensor

    @cached_property
    def seen(self) -> list[torch.Tensor | None]:
        """What the stored tokens of each document see of all of its tokens, [stored, all]; None where that is all."""
        sizes = zip(self.stored.lengths, self.whole.lengths, strict=True)
        device = self.places.device
        return [
            None if own == all_ else torch.ones(own, all_, dtype=torch.bool, device=device).tril(all_ - own)
            for own, all_ in sizes
        ]


def trees_of(offsets: torch.Tensor, shared: torch.Tensor, *, device: torch.device) -> Trees:
    """Find out how the documents of a flat batch share tokens; where both are on the CPU, no device is waited for.

    Args:
        offsets: Of the documents with nothing shared, shape [D + 1].
        shared: How many tokens each begins with as the one before it does, shape [D].
        device: Of the batch.

    Returns:
        The trees.

    Raises:
        ValueError: When a document shares more than the one before it has, or has no token of its own.
    """
    whole = documents_of(offsets, device=device)
    common: list[int] = shared.tolist()
    _refuse_too_much(whole.lengths, common)
    own = torch.tensor([0, *(length - num for length, num in zip(whole.lengths, common, strict=True))])
    stored = documents_of(own.cumsum(0).to(torch.int32), device=device)
    paths: list[torch.Tensor] = [torch.arange(0)]
    for (begin, end), num in zip(pairwise(stored.offsets), common, strict=True):
        paths.append(torch.cat([paths[-1][:num], torch.arange(begin, end)]))
    branches = [path[num - 1 : num + 1] for path, num in zip(paths[1:], common, strict=True) if num]
    parents, firsts = torch.cat([torch.arange(0), *branches]).reshape(-1, 2).unbind(dim=1)
    positions = torch.cat([torch.arange(num, len(path)) for path, num in zip(paths[1:], common, strict=True)])
    on_device = (each.to(device, non_blocking=True) for each in (torch.cat(paths), positions[None], firsts, parents))
    return Trees(whole, stored, *on_device)


def attend_in_trees(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    trees: Trees,
    scale: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attend causally from each token to those before it in its document, shared or not.

    Keys and values are laid out for each document whole, by one copy, and queries are not: projections and all that is
    done token by token are the larger part of the work. A mask over all pairs of tokens would be slower.

    Args:
        query: Shape [1, N, T, D].
        key: Shape [1, N, T, D].
        value: Shape [1, N, T, D].
        trees: Of the T tokens.
        scale: Factor of the scores.
        dropout: Must be 0: documents of their own would drop other probabilities.

    Returns:
        Shape [1, T, N, D].
    """
    if dropout:
        raise AssertionError(f"dropout must be 0 where documents share tokens, but is {dropout}")
    key, value = (states.index_select(2, trees.places) for states in (key, value))
    sizes = {"queries": trees.stored, "keys": trees.whole}
    if has_kernel(query):
        return attend_in_documents(query, key, value, **sizes, is_causal=True, scale=scale, dropout=0.0)
    attend = partial(_attend, scale=scale)
    return attend_one_by_one(attend, query, key, value, **sizes, biases=trees.seen)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor | None, *, scale: float
) -> torch.Tensor:
    return fused_attention(query, key, value, seen, is_causal=seen is None, scale=scale, dropout=0.0)


def _refuse_too_much(lengths: Sequence[int], common: Sequence[int]) -> None:
    if len(common) != len(lengths):
        raise ValueError(f"shared: must have a number for each of {len(lengths)} documents, but has {len(common)}")
    for number, (before, own, num) in enumerate(zip([0, *lengths], lengths, common, strict=False)):
        if not 0 <= num < min(before + 1, own):
            raise ValueError(
                f"shared: document {number} must share at most the {before} tokens of the one before it, and not all "
                f"of its own {own}, but shares {num}"
            )
