"""What a model is asked with: a batch on its device, and what was found out about it before it went there."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ds_sft.model.flat import documents_of
from ds_sft.model.loss import targets_of
from ds_sft.model.trees import trees_of

_DOCUMENTS = {"offsets": "documents", "decoder_offsets": "decoder_documents"}
_ON_CPU = {*_DOCUMENTS, "shared"}
"""Boundaries and what is told with them: numbers that are needed on the CPU must not have been copied to a device."""


def inputs_of(
    batch: Mapping[str, torch.Tensor], *, device: torch.device, label_smoothing: float = 0.0
) -> dict[str, Any]:
    """Copy a batch to a device without waiting for it; what has a size that depends on the data is made before.

    Args:
        batch: From a collator: flat, with shared beginnings or not, or padded.
        device: Of the model.
        label_smoothing: Share of a target's weight that is spread over the vocabulary.

    Returns:
        The arguments of a family's model, and `labels` beside them.
    """
    targets = targets_of(batch["labels"], label_smoothing=label_smoothing).to(device)
    documents: dict[str, Any] = {
        _DOCUMENTS[name]: documents_of(batch[name], device=device) for name in _DOCUMENTS if name in batch
    }
    tensors = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items() if name not in _ON_CPU}
    if "shared" in batch:
        trees = trees_of(batch["offsets"], batch["shared"], device=device)
        # A token that several documents share may have a target for each of them.
        targets = replace(targets, places=trees.places[targets.places])
        documents["documents"] = trees
    return {**tensors, **documents, "targets": targets}
