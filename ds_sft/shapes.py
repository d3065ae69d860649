"""What a model is made of, as far as it can be told without making one: kinds of weights, and stacks of layers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Reader = Literal["source", "target", "supervised", "nothing"]
"""Which tokens are multiplied with a weight; `nothing` for vectors and tables that are only looked up."""


@dataclass(frozen=True)
class Weight:
    """Weights of one kind, equal in shape.

    Args:
        name: Last parts of their names in the model, without `weight`, for example `SelfAttention.q`.
        shape: Of one of them.
        num: How many there are.
        reader: Which tokens are multiplied with them.
        is_linear: Whether they belong to linear layers, which adapters and 4 bits are for.
        stays_wide: Whether transformers holds them in fp32 in a model that is held in 4 bits.
    """

    name: str
    shape: tuple[int, ...]
    num: int
    reader: Reader = "nothing"
    is_linear: bool = False
    stays_wide: bool = False


Kept = Mapping[Literal["fp32", "16 bits", "autocast"], int]
"""Bytes kept for each token, by how a model computes: in fp32, in 16 bits, or in 16 bits from fp32 weights."""


@dataclass(frozen=True)
class Stack:
    """Equal layers, and what they keep from the forward pass for the backward pass.

    Args:
        reader: Which tokens run through them.
        num: How many layers.
        kept: By one layer for a token.
        inner: Width of the feed-forward part.
        kept_for_source: By one layer of a decoder for a token of the source.
        kept_on_cpu: By one layer for a pair of tokens that attend to each other, where a CPU has no fused kernel.
        kept_across_on_cpu: The same for a token and one of the source.
        bias_heads: Heads of a table of distances, laid out once for the longest document; 0 without one.
    """

    reader: Literal["source", "target"]
    num: int
    kept: Kept
    inner: int
    kept_for_source: Kept = field(default_factory=dict)
    kept_on_cpu: int = 0
    kept_across_on_cpu: int = 0
    bias_heads: int = 0
