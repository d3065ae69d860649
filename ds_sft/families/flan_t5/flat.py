"""T5 over flat batches: its own weights and parts, with an attention that stays inside each document.

transformers' stack would make the position bias of all tokens with all tokens. Here it is made for the longest
document, once for each stack, and every document sees the corner of its size: it depends on distances only.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from transformers.models.t5.modeling_t5 import T5Attention, T5Stack

from ds_sft.model.flat import Documents, attend_in_documents, attend_one_by_one, fused_attention
from ds_sft.model.loss import working_dtype


def run_stack(
    stack: T5Stack,
    ids: torch.Tensor,
    documents: Documents,
    *,
    encoded: torch.Tensor | None = None,
    sources: Documents | None = None,
) -> torch.Tensor:
    """Give the final states of an encoder or a decoder.

    Args:
        stack: The encoder or decoder.
        ids: Token ids, shape [1, T].
        documents: Where documents begin and end among them.
        encoded: For a decoder, the final states of the encoder, shape [1, S, H].
        sources: Where documents begin and end among these; as many as `documents`.

    Returns:
        Shape [1, T, H].

    Raises:
        ValueError: When the ids have another shape, or the attention cannot isolate.
    """
    documents.refuse_other_shape(ids)
    _refuse_other_attention(stack)
    states = stack.dropout(stack.embed_tokens(ids))
    blocks: Any = stack.block
    biases = position_biases(blocks[0].layer[0].SelfAttention, documents)
    for block in blocks:
        # As positional arguments: what a reentrant checkpoint finds elsewhere gets no gradient.
        states = _run(stack, partial(_block, block, documents, sources or documents), states, encoded, *biases)
    final: torch.Tensor = stack.dropout(stack.final_layer_norm(states))
    return final


def position_biases(attention: T5Attention, documents: Documents) -> tuple[torch.Tensor, ...]:
    """Give what is added to the scores of each document for the distance of two tokens.

    Args:
        attention: The one that owns the stack's table.
        documents: Of the stack.

    Returns:
        One for each document, shape [1, N, T, T], the same tensor for documents of the same length; in a decoder
        minus infinity for later tokens.
    """
    longest = documents.longest
    distances = torch.arange(1 - longest, longest, device=documents.boundaries.device)
    buckets = attention._relative_position_bucket(  # type: ignore[no-untyped-call]  # noqa: SLF001  # the one formula
        distances,
        bidirectional=not attention.is_decoder,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    by_distance = attention.relative_attention_bias(buckets).t()
    by_distance = by_distance.to(working_dtype(by_distance))
    if attention.is_decoder:
        by_distance = by_distance.masked_fill(distances > 0, float("-inf"))
    sizes = sorted(set(documents.lengths))
    made: tuple[torch.Tensor, ...] = _Toeplitz.apply(by_distance, *sizes)  # type: ignore[no-untyped-call]  # as torch has it
    by_length = dict(zip(sizes, made, strict=True))
    return tuple(by_length[length] for length in documents.lengths)


class _Toeplitz(torch.autograd.Function):
    """Lays one number for each distance out as matrices; the gradient sums along their diagonals."""

    @staticmethod
    def forward(ctx: Any, by_distance: torch.Tensor, *sizes: int) -> tuple[torch.Tensor, ...]:
        """Give a corner [1, N, size, size] of one matrix for each size; the last size is the largest."""
        ctx.sizes, ctx.like = sizes, by_distance
        ctx.set_materialize_grads(False)
        whole = by_distance.unfold(1, sizes[-1], 1).flip(1)[None]
        return tuple(whole[:, :, :size, :size] for size in sizes)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """Sum along the diagonals, in fp32 at least."""
        like, largest = ctx.like, ctx.sizes[-1]
        total = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
        for size, slope in zip(ctx.sizes, slopes, strict=True):
            if slope is not None:
                total[:, largest - size : largest + size - 1] += _diagonal_sums(slope[0])
        return (total.to(like.dtype), *[None] * len(ctx.sizes))


def _diagonal_sums(matrices: torch.Tensor) -> torch.Tensor:
    """Sum [N, L, L] along diagonals, from the lower left corner to the upper right, to [N, 2L - 1].

    Rows that are padded to 2L and read as rows of 2L - 1 move one place to the right from each to the next.
    """
    size = matrices.shape[1]
    skewed = functional.pad(matrices.flip(1), (0, size)).flatten(1)[:, : size * (2 * size - 1)]
    return skewed.view(-1, size, 2 * size - 1).sum(dim=1, dtype=torch.promote_types(matrices.dtype, torch.float32))


def _run(stack: T5Stack, block: Callable[..., torch.Tensor], *given: torch.Tensor | None) -> torch.Tensor:
    if stack.gradient_checkpointing and stack.training:
        states: torch.Tensor = stack._gradient_checkpointing_func(block, *given)  # noqa: SLF001  # as transformers' layers do
        return states
    return block(*given)


def _block(
    block: Any,
    documents: Documents,
    sources: Documents,
    states: torch.Tensor,
    encoded: torch.Tensor | None,
    *biases: torch.Tensor,
) -> torch.Tensor:
    """Run the layers of a T5Block one after the other."""
    own, *cross, feed_forward = block.layer
    attend = partial(_attend, own.SelfAttention, queries=documents, keys=documents, biases=biases)
    states = _attention(own, own.SelfAttention, attend, states)
    for layer in cross:
        attend = partial(_attend, layer.EncDecAttention, queries=documents, keys=sources)
        states = _attention(layer, layer.EncDecAttention, attend, states, encoded)
    transformed: torch.Tensor = feed_forward(states)
    return transformed


def _attention(
    layer: Any,
    attention: Any,
    attend: Callable[..., torch.Tensor],
    states: torch.Tensor,
    encoded: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run a layer of self-attention or, with encoded states, of cross-attention."""
    normed = layer.layer_norm(states)
    seen = normed if encoded is None else encoded
    parts = attention.q(normed), attention.k(seen), attention.v(seen)
    heads = (part.unflatten(-1, (-1, attention.key_value_proj_dim)).transpose(1, 2) for part in parts)
    out: torch.Tensor = states + layer.dropout(attention.o(attend(*heads).flatten(2)))
    return out


def _attend(
    attention: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    queries: Documents,
    keys: Documents,
    biases: Sequence[torch.Tensor] | None = None,
) -> torch.Tensor:
    numbers = {"scale": attention.scaling, "dropout": attention.dropout if attention.training else 0.0}
    kind = attention.config._attn_implementation  # noqa: SLF001  # transformers offers no public way to ask
    if kind == "sdpa" and biases is None:
        return attend_in_documents(query, key, value, queries=queries, keys=keys, is_causal=False, **numbers)
    attend = partial(_ATTENTIONS[kind], **numbers)
    return attend_one_by_one(attend, query, key, value, queries=queries, keys=keys, biases=biases)


def _plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    scale: float,
    dropout: float,
) -> torch.Tensor:
    scores = query @ key.transpose(2, 3) * scale
    probabilities = (scores if bias is None else scores + bias).softmax(dim=-1)
    return functional.dropout(probabilities, dropout) @ value


_ATTENTIONS: Mapping[str, Callable[..., torch.Tensor]] = {"sdpa": fused_attention, "eager": _plain_attention}


def _refuse_other_attention(stack: T5Stack) -> None:
    kind = stack.config._attn_implementation  # noqa: SLF001  # transformers offers no public way to ask
    if kind not in _ATTENTIONS:
        raise ValueError(
            f"attn_implementation: must be able to keep documents apart ({', '.join(_ATTENTIONS)}), but is {kind!r}; "
            "choose another, or pass --packing False"
        )
