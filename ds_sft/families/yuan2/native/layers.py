"""The parts of one layer: attention whose queries and keys are filtered, and the gated feed-forward part."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Cache
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ds_sft.families.yuan2.native.configuration import Yuan2Config
from ds_sft.families.yuan2.native.filtering import Branches, Yuan2LocalizedFiltering
from ds_sft.families.yuan2.native.norm import Yuan2RMSNorm
from ds_sft.families.yuan2.native.rotary import rotate

Attend = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


class Yuan2Attention(nn.Module):
    """Causal attention over filtered queries and keys and unfiltered values.

    `q_proj` and `k_proj` are the upper and the lower half of one matrix whose rows go [head][query | key][D], because
    the official converter cut Megatron's fused matrix in two. So the first half of the heads takes queries *and* keys
    from `q_proj`, the other half both from `k_proj`. The layout is kept: checkpoints stay the official ones.

    Args:
        config: Shape of the model.
        layer_idx: Which layer this is; transformers' attention functions ask for it by this name.
    """

    def __init__(self, config: Yuan2Config, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        width = config.hidden_size
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.lf_gate = Yuan2LocalizedFiltering(width, layer_idx)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        attention_mask: Any,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        is_token: torch.Tensor | None,
        goes_on: torch.Tensor | None,
        past_key_values: Cache | None,
        branches: Branches | None = None,
        attend: Attend | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend.

        Args:
            hidden_states: Normed states, shape [B, T, H].
            attention_mask: As the attention implementation takes it.
            position_embeddings: Cosines and sines of the positions, each [B, 1, T, D].
            is_token: False on padding, shape [B, T, 1], or None.
            goes_on: False on the first token of a document, shape [B, T, 1], or None.
            past_key_values: Keys, values and filter states of earlier tokens, or None.
            branches: As in `Yuan2LocalizedFiltering.forward`.
            attend: Attends in the place of transformers' function.
            **kwargs: For the attention implementation.

        Returns:
            Shape [B, T, H]; and the attention probabilities [B, N, T, S] where the implementation gives them.
        """
        shape = hidden_states.shape[:-1]
        filtered = self.lf_gate(
            hidden_states, is_token=is_token, goes_on=goes_on, cache=past_key_values, branches=branches
        )
        fused = torch.cat([self.q_proj(filtered), self.k_proj(filtered)], dim=-1)
        query, key = fused.view(*shape, -1, 2 * self.head_dim).transpose(1, 2).chunk(2, dim=-1)
        value = self.v_proj(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2)
        query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if attend is None:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation,  # noqa: SLF001  # transformers offers no public way to ask
                eager_attention,
            )
        attended, probabilities = attend(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )
        return self.o_proj(attended.reshape(*shape, -1)), probabilities


class Yuan2MLP(nn.Module):
    """down(gate(x) * silu(up(x))): unlike Llama's, the activation is on `up_proj`.

    Args:
        config: Shape of the model.
    """

    def __init__(self, config: Yuan2Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform each token by itself.

        Args:
            hidden_states: Shape [B, T, H].

        Returns:
            Shape [B, T, H].
        """
        out: torch.Tensor = self.down_proj(self.gate_proj(hidden_states) * self.act_fn(self.up_proj(hidden_states)))
        return out


class Yuan2DecoderLayer(GradientCheckpointingLayer):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Attention and feed-forward part, each behind a norm and beside a residual.

    Args:
        config: Shape of the model.
        layer_idx: Which layer this is.
    """

    def __init__(self, config: Yuan2Config, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Yuan2Attention(config, layer_idx)
        self.mlp = Yuan2MLP(config)
        self.input_layernorm = Yuan2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Yuan2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Transform the states.

        Args:
            hidden_states: Shape [B, T, H].
            **kwargs: As `Yuan2Attention.forward` takes them.

        Returns:
            Shape [B, T, H].
        """
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        transformed: torch.Tensor = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + transformed


def eager_attention(
    _module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_more: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend with plain matrix products, and keep the probabilities.

    Args:
        _module: Unused; transformers' interface.
        query: Shape [B, N, T, D].
        key: Shape [B, N, S, D].
        value: Shape [B, N, S, D].
        attention_mask: Added to the scores, shape [B, 1, T, S].
        scaling: Factor of the scores.
        **_more: Unused: Yuan2 has no dropout.

    Returns:
        Shape [B, T, N, D], and the probabilities [B, N, T, S].
    """
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


def flat_attention(
    attend: Callable[..., torch.Tensor],
    _module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: None,
    *,
    scaling: float,
    dropout: float,
) -> tuple[torch.Tensor, None]:
    """Attend in a flat batch.

    Args:
        attend: Knows where its documents lie, and whether they share tokens.
        _module: Unused; transformers' interface.
        query: Shape [1, N, T, D].
        key: Shape [1, N, T, D].
        value: Shape [1, N, T, D].
        _attention_mask: Unused.
        scaling: Factor of the scores.
        dropout: Share of the probabilities that is dropped.

    Returns:
        Shape [1, T, N, D]; and no probabilities.
    """
    return attend(query, key, value, scale=scaling, dropout=dropout), None
