"""Which tokens may see which: causal attention inside one document, never into padding, or an error.

An attention that cannot keep documents apart is refused here: plain causal attention over packed documents trains
without a word of warning, and trains the wrong thing.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import Cache
from transformers.masking_utils import create_causal_mask, packed_sequence_mask_function
from transformers.utils.generic import is_flash_attention_requested
from transformers.utils.import_utils import is_tracing

from ds_sft.families.yuan2.native.configuration import Yuan2Config
from ds_sft.families.yuan2.native.filtering import Branches
from ds_sft.families.yuan2.native.layers import flat_attention
from ds_sft.families.yuan2.native.rotary import DEPENDS_ON_LENGTH
from ds_sft.model.flat import Documents, attend_in_documents

_MASKED = ("eager", "sdpa", "flex_attention")
_NUM_MASK_DIMENSIONS = 2


@dataclass(frozen=True)
class View:
    """What each token may see.

    Args:
        positions: Position of each token in its document, shape [B, T] or [1, T].
        mask: As the attention implementation takes it; None for plain causal attention.
        is_token: False on padding, shape [B, T, 1]; None where there is none.
        goes_on: False on the first token of a document, shape [B, T, 1]; None for one document a row.
        branches: Tokens whose token before lies elsewhere in the row, and the places of those.
        more: For the attention: document boundaries, for kernels that take those instead of a mask; or the function
            that attends in each document.
    """

    positions: torch.Tensor
    mask: Any = None
    is_token: torch.Tensor | None = None
    goes_on: torch.Tensor | None = None
    branches: Branches | None = None
    more: dict[str, Any] = field(default_factory=dict)


def view_of_documents(
    states: torch.Tensor,
    packed: torch.Tensor | Documents,
    *,
    config: Yuan2Config,
    attention_mask: Any,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
) -> View:
    """Keep packed documents apart.

    Args:
        states: Embedded tokens, shape [B, T, H].
        packed: Numbers that are equal inside a document, -1 on padding, shape [B, T]; the same number behind another
            document begins a new one. Or where the documents of a flat batch lie: then `sdpa` needs no mask.
        config: Names the attention implementation.
        attention_mask: None, or the mask that the document ids imply.
        position_ids: None, or positions that go up by one inside each document.
        cache: Must be None.

    Returns:
        The view.

    Raises:
        ValueError: When the arguments contradict each other, or the attention cannot isolate.
    """
    document_ids = packed.ids() if isinstance(packed, Documents) else packed
    refuse_contradictions(states, document_ids, config, attention_mask, position_ids, cache)
    goes_on = goes_on_of(document_ids)
    positions = _restarting_positions(goes_on) if position_ids is None else position_ids
    if isinstance(packed, Documents) and config._attn_implementation == "sdpa":  # noqa: SLF001  # as below
        attend = partial(attend_in_documents, queries=packed, keys=packed, is_causal=True)
        return View(positions, goes_on=goes_on[..., None], more={"attend": partial(flat_attention, attend)})
    if is_flash_attention_requested(config):
        return View(positions, goes_on=goes_on[..., None], more=_lengths(goes_on))
    mask = create_causal_mask(
        config=config,
        inputs_embeds=states,
        attention_mask=None,
        past_key_values=None,
        and_mask_function=packed_sequence_mask_function((~goes_on).cumsum(dim=1)),
    )
    return View(positions, mask=mask, goes_on=goes_on[..., None])


def view_of_rows(
    states: torch.Tensor,
    *,
    config: Yuan2Config,
    attention_mask: Any,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
) -> View:
    """Let each row be one document, padded or not, and perhaps continued from a cache.

    Args:
        states: Embedded tokens, shape [B, T, H].
        config: Names the attention implementation.
        attention_mask: 1 on tokens and 0 on padding, for cached and new tokens, shape [B, past + T]; or None; or the
            masks that `generate` makes in advance for a static cache, by kind.
        position_ids: Shape [B, T]; None to count tokens.
        cache: Keys, values and filter states of earlier tokens.

    Returns:
        The view.

    Raises:
        ValueError: When the positions restart inside a row, which only packed documents do.
    """
    num_tokens = states.shape[1]
    if isinstance(attention_mask, dict):
        full, padding = attention_mask["full_attention"], attention_mask["linear_attention"]
    else:
        padding = _padding(attention_mask)
        _refuse_wrong_length(padding, num_tokens, cache)
        full = create_causal_mask(
            config=config, inputs_embeds=states, attention_mask=padding, past_key_values=cache, position_ids=None
        )
    counted = _counted_positions(num_tokens, padding, cache, states.device)
    if position_ids is None:
        position_ids = counted
    elif not isinstance(attention_mask, dict):
        _refuse_other_beginning(position_ids, counted, padding, cache)
    new = None if padding is None else padding[:, -num_tokens:].bool()
    _refuse_restarts(position_ids, new)
    has_padding = new is not None and (is_tracing(new) or not bool(new.all()))
    return View(position_ids, mask=full, is_token=new[..., None] if has_padding and new is not None else None)


def goes_on_of(document_ids: torch.Tensor) -> torch.Tensor:
    """Tell which tokens have a token of their own document right before them.

    Args:
        document_ids: Numbers that are equal inside a document, shape [B, T].

    Returns:
        Shape [B, T].
    """
    first = torch.zeros_like(document_ids[:, :1], dtype=torch.bool)
    return torch.cat([first, document_ids[:, 1:] == document_ids[:, :-1]], dim=1)


def _restarting_positions(goes_on: torch.Tensor) -> torch.Tensor:
    index = torch.arange(goes_on.shape[1], device=goes_on.device).expand(goes_on.shape)
    return index - index.masked_fill(goes_on, 0).cummax(dim=1).values


def _lengths(goes_on: torch.Tensor) -> dict[str, Any]:
    """Give the boundaries of all documents, rows laid end to end; a run of padding counts as a document."""
    starts = (~goes_on).flatten().nonzero().flatten()
    ends = torch.cat([starts, starts.new_tensor([goes_on.numel()])]).to(torch.int32)
    longest = int(ends.diff().max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def _padding(attention_mask: Any) -> torch.Tensor | None:
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != _NUM_MASK_DIMENSIONS:
        shape = list(attention_mask.shape) if isinstance(attention_mask, torch.Tensor) else type(attention_mask)
        raise ValueError(
            f"attention_mask: must have shape [B, tokens], but has {shape}: the filter needs to know which tokens are "
            "neighbours; give document_ids for packed documents"
        )
    if not is_tracing(attention_mask) and not bool(((attention_mask == 0) | (attention_mask == 1)).all()):
        raise ValueError(
            f"attention_mask: must be 0 or 1 for each token, but goes up to {attention_mask.max().item()}; give "
            "numbers of documents as document_ids"
        )
    return attention_mask


def _refuse_wrong_length(padding: torch.Tensor | None, num_tokens: int, cache: Cache | None) -> None:
    if padding is None or is_tracing(padding):
        return
    past = int(cache.get_seq_length()) if cache is not None else 0
    if padding.shape[1] != past + num_tokens:
        raise ValueError(
            f"attention_mask: must cover {past} cached and {num_tokens} new tokens, but covers {padding.shape[1]}; "
            "give one number for each"
        )


def _counted_positions(
    num_tokens: int, padding: torch.Tensor | None, cache: Cache | None, device: torch.device
) -> torch.Tensor:
    """Count tokens and leave padding out, so that a padded row has the positions of the row alone."""
    if padding is not None:
        return (padding.long().cumsum(dim=1) - 1).clamp(min=0)[:, -num_tokens:]
    past = cache.get_seq_length() if cache is not None else 0
    return (torch.arange(num_tokens, device=device) + past)[None]


def _refuse_restarts(position_ids: torch.Tensor, is_token: torch.Tensor | None) -> None:
    """Refuse positions of packed documents that come without document ids; they would see each other."""
    if position_ids.shape[1] == 1:
        return
    told = (
        "position_ids: must go up by one from token to token, but do not: for packed documents give document_ids "
        "too, or the documents would see each other"
    )
    is_right = _goes_up(position_ids, is_token).all()
    if is_tracing(is_right):
        torch._assert_async(is_right, told)  # noqa: SLF001  # a graph cannot branch here
    elif not bool(is_right):
        raise ValueError(told)


def _goes_up(position_ids: torch.Tensor, is_token: torch.Tensor | None) -> torch.Tensor:
    """Tell of each token whether its position follows that of the token before, padding between them left out."""
    if is_token is None:
        return position_ids.diff(dim=1) == 1
    positions = position_ids.expand(is_token.shape)
    index = torch.arange(is_token.shape[1], device=positions.device).expand(is_token.shape)
    last = index.masked_fill(~is_token, -1).cummax(dim=1).values[:, :-1]
    before = positions.gather(1, last.clamp(min=0))
    return (positions[:, 1:] - before == 1) | (last < 0) | ~is_token[:, 1:]


def _refuse_other_beginning(
    position_ids: torch.Tensor, counted: torch.Tensor, padding: torch.Tensor | None, cache: Cache | None
) -> None:
    """Refuse new tokens whose positions do not go on behind those of the cache."""
    if position_ids.shape[1] == 1 or cache is None or is_tracing(position_ids) or int(cache.get_seq_length()) == 0:
        return
    is_token = torch.ones_like(counted, dtype=torch.bool) if padding is None else padding[:, -counted.shape[1] :].bool()
    if not bool(((position_ids == counted) | ~is_token).all()):
        raise ValueError(
            f"position_ids: must go on behind {int(cache.get_seq_length())} cached tokens, but do not; leave them out, "
            "they are counted"
        )


def refuse_contradictions(
    states: torch.Tensor,
    document_ids: torch.Tensor,
    config: Yuan2Config,
    attention_mask: Any,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
) -> None:
    """Refuse arguments that no packed documents have.

    Args:
        states: Embedded tokens, shape [B, T, H].
        document_ids: Of the tokens, shape [B, T].
        config: Names the attention implementation.
        attention_mask: None, or the mask that the document ids imply.
        position_ids: None, or positions that go up by one inside each document.
        cache: Must be None.

    Raises:
        ValueError: When they contradict each other, or the attention cannot isolate.
    """
    attention = config._attn_implementation  # noqa: SLF001  # transformers offers no public way to ask
    shape = list(states.shape[:2])
    if attention not in _MASKED and not is_flash_attention_requested(config):
        raise ValueError(
            f"attn_implementation: must be able to keep documents apart ({', '.join(_MASKED)} or a flash attention), "
            f"but is {attention!r}; choose another"
        )
    if list(document_ids.shape) != shape or document_ids.is_floating_point():
        raise ValueError(
            f"document_ids: must be integers of shape {shape}, but are {document_ids.dtype} of shape "
            f"{list(document_ids.shape)}; give one for each token"
        )
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind in DEPENDS_ON_LENGTH:
        raise ValueError(
            f"document_ids: cannot go with rope_type {kind!r}, which scales all positions of a batch by its longest "
            "document; use linear or yarn"
        )
    if cache is not None:
        raise ValueError("document_ids: cannot go with a cache, but past_key_values is given; pass use_cache=False")
    if attention_mask is not None and not torch.equal(_padding_of(attention_mask, shape), document_ids >= 0):
        raise ValueError(
            "attention_mask: must be 0 exactly where document_ids is -1, but is not; leave it out, the ids are enough"
        )
    goes_on = goes_on_of(document_ids) & (document_ids >= 0)
    if position_ids is not None and bool((goes_on[:, 1:] & (position_ids.diff(dim=1) != 1)).any()):
        raise ValueError(
            "position_ids: must go up by one inside each document, but do not; leave them out, they are counted"
        )


def _padding_of(attention_mask: Any, shape: list[int]) -> torch.Tensor:
    padding = _padding(attention_mask)
    if padding is None or list(padding.shape) != shape:
        raise ValueError(f"attention_mask: must have the shape {shape} of document_ids, but has not; leave it out")
    return padding.bool()
