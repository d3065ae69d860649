"""Flat batches of given documents, made by hand, for the tests of both families."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.model.flat import Documents, documents_of
from ds_sft.model.loss import targets_of
from ds_sft.model.trees import trees_of

CPU = torch.device("cpu")
Pieces = Sequence[torch.Tensor]


def documents(pieces: Pieces) -> Documents:
    return documents_of(torch.tensor([0, *accumulate(map(len, pieces))], dtype=torch.int32), device=CPU)


def flat(pieces: Pieces) -> torch.Tensor:
    return torch.cat(list(pieces))[None]


def causal(ids: Pieces, labels: Pieces) -> dict[str, Any]:
    """Give what a decoder-only model is asked with."""
    return {"input_ids": flat(ids), "documents": documents(ids), "targets": targets_of(flat(labels))}


def shared(ids: Pieces, labels: Pieces, num_shared: Sequence[int]) -> dict[str, Any]:
    """Give the same of documents that begin with so many tokens as the one before does."""
    offsets = torch.tensor([0, *accumulate(map(len, ids))], dtype=torch.int32)
    trees = trees_of(offsets, torch.tensor(num_shared), device=CPU)
    targets = targets_of(flat(labels))
    stored = [piece[num:] for piece, num in zip(ids, num_shared, strict=True)]
    targets = replace(targets, places=trees.places[targets.places])
    return {"input_ids": flat(stored), "documents": trees, "targets": targets}


def with_encoder(sources: Pieces, decoder_ids: Pieces, labels: Pieces) -> dict[str, Any]:
    """Give what an encoder-decoder is asked with."""
    return {
        "input_ids": flat(sources),
        "documents": documents(sources),
        "decoder_input_ids": flat(decoder_ids),
        "decoder_documents": documents(decoder_ids),
        "targets": targets_of(flat(labels)),
    }


def tokens(lengths: Sequence[int], *, vocabulary: int, seed: int, ignored: float = 0.0) -> list[torch.Tensor]:
    """Give random ids for documents; that share of them is ignored."""
    random = torch.Generator().manual_seed(seed)
    ids = [torch.randint(vocabulary, (length,), generator=random) for length in lengths]
    return [one.masked_fill(torch.rand(len(one), generator=random) < ignored, IGNORE_INDEX) for one in ids]


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Give the gradient of every parameter."""
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def worst_difference(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Give the largest difference of two gradients, relative to the norm of that parameter's."""
    assert list(found) == list(wanted)
    assert all(slope.norm() > 0 for slope in wanted.values()), "a gradient of zeros would prove nothing"
    return max(float((found[name] - slope).norm() / slope.norm()) for name, slope in wanted.items())
