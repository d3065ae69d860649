"""Which tokens may see which where documents share their beginnings: those before them in their own document."""

from functools import partial
from typing import Any

import torch
from transformers import Cache

from ds_sft.families.yuan2.native.configuration import Yuan2Config
from ds_sft.families.yuan2.native.documents import View, goes_on_of, refuse_contradictions
from ds_sft.families.yuan2.native.layers import flat_attention
from ds_sft.model.trees import Trees, attend_in_trees


def view_of_trees(
    states: torch.Tensor,
    trees: Trees,
    *,
    config: Yuan2Config,
    attention_mask: Any,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
) -> View:
    """Let each document see what it shares with others and what is its own.

    Args:
        states: Embedded tokens, shape [1, T, H].
        trees: How the documents share tokens.
        config: Names the attention implementation, which must be `sdpa`.
        attention_mask: Must be None.
        position_ids: Must be None: they are counted in each document.
        cache: Must be None.

    Returns:
        The view.

    Raises:
        ValueError: When something else is given, or the attention cannot follow the branches.
    """
    attention = config._attn_implementation  # noqa: SLF001  # transformers offers no public way to ask
    if attention != "sdpa":
        raise ValueError(
            f"attn_implementation: must be sdpa where documents share tokens, but is {attention!r}; choose that, or "
            "train with --share_prefixes False"
        )
    document_ids = trees.stored.ids()
    refuse_contradictions(states, document_ids, config, attention_mask, None, cache)
    if position_ids is not None:
        raise ValueError("position_ids: are counted where documents share tokens, but are given; leave them out")
    return View(
        trees.positions,
        goes_on=goes_on_of(document_ids)[..., None],
        branches=(trees.firsts, trees.parents),
        more={"attend": partial(flat_attention, partial(attend_in_trees, trees=trees))},
    )
