"""Localized filtering: each token's state is mixed with those of the two tokens before it, inside one document.

Source: Wu et al. 2023, "YUAN 2.0: A Large Language Model with Localized Filtering-based Attention", section 2.1, and
the official code, whose two Conv2d kernels of size (2, 1) this computes as one matrix product each.
"""

import math

import torch
from torch import nn
from torch.nn import functional
from transformers import Cache

from ds_sft.families.yuan2.native.norm import Yuan2RMSNorm

Branches = tuple[torch.Tensor, torch.Tensor]
"""Places of some tokens, and of the tokens before them, each [branches]."""
FILTER_NORM_EPSILON = 1e-6
"""Written into the official code; `rms_norm_eps` of config.json does not reach this norm."""


class Yuan2PairConvolution(nn.Module):
    """A dense causal convolution over pairs of neighbouring tokens: y_t = A0 x_{t-1} + A1 x_t + a.

    The weight keeps the official Conv2d shape [out, in, 2, 1]: tap 0 is for the token before, tap 1 for the token
    itself. Read as a matrix [out, in * 2], it multiplies the pair laid out side by side: no copy of the weight, and on
    a CPU a third of the time of Conv2d (benchmarks/filtering.py).

    Args:
        num_inputs: Width of the states.
        num_outputs: Width of the result.
    """

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_outputs, num_inputs, 2, 1))
        self.bias = nn.Parameter(torch.empty(num_outputs))

    @property
    def initial_bound(self) -> float:
        """Bound of the uniform distribution that torch gives a new Conv2d, as the official code has it."""
        return 1 / math.sqrt(2 * self.weight.shape[1])

    def forward(self, before: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Convolve.

        Args:
            before: State of the token before each token, zero where there is none, shape [B, T, in].
            states: State of each token, shape [B, T, in].

        Returns:
            Shape [B, T, out].
        """
        pairs = torch.stack([before, states], dim=-1).flatten(-2)
        return functional.linear(pairs, self.weight.flatten(1), self.bias)


class Yuan2LocalizedFiltering(nn.Module):
    """Two convolutions over pairs, a residual and a norm, seeing three tokens in all.

    Args:
        hidden_size: Width H of the model; between the convolutions it is H / 2.
        layer_index: Which layer's cache to use.
    """

    def __init__(self, hidden_size: int, layer_index: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.conv1 = Yuan2PairConvolution(hidden_size, hidden_size // 2)
        self.conv2 = Yuan2PairConvolution(hidden_size // 2, hidden_size)
        self.output_layernorm = Yuan2RMSNorm(hidden_size, eps=FILTER_NORM_EPSILON)

    def forward(
        self,
        states: torch.Tensor,
        *,
        is_token: torch.Tensor | None,
        goes_on: torch.Tensor | None,
        cache: Cache | None,
        branches: Branches | None = None,
    ) -> torch.Tensor:
        """Filter.

        Both convolutions must be cut at the same places: cutting the first alone leaves a leak through the second.

        Args:
            states: Normed states, shape [B, T, H].
            is_token: False on padding, shape [B, T, 1]; None where there is none.
            goes_on: False on the first token of a document, shape [B, T, 1]; None for one document a row.
            cache: Holds the last state and the last output of the first convolution of each layer.
            branches: Tokens whose token before lies elsewhere in the row; `goes_on` is False on them.

        Returns:
            Shape [B, T, H].
        """
        inner = self.conv1(_branched(states, self._before(states, 0, is_token, goes_on, cache), branches), states)
        outer = self.conv2(_branched(inner, self._before(inner, 1, is_token, goes_on, cache), branches), inner)
        filtered: torch.Tensor = self.output_layernorm(outer + states)
        return filtered

    def _before(
        self,
        states: torch.Tensor,
        state_index: int,
        is_token: torch.Tensor | None,
        goes_on: torch.Tensor | None,
        cache: Cache | None,
    ) -> torch.Tensor:
        """Give the state of the token before each token, zero where that is padding or another document."""
        if is_token is not None:
            # Before caching, so that a prompt in chunks may be cut inside its padding.
            states = states.masked_fill(~is_token, 0)
        known = states
        if cache is not None:
            known = cache.update_conv_state(
                states.transpose(1, 2), self.layer_index, state_idx=state_index, conv_kernel_size=1
            ).transpose(1, 2)
        num_tokens = states.shape[1]
        if known.shape[1] == num_tokens:
            before = functional.pad(known[:, :-1], (0, 0, 1, 0))
        else:
            before = known[:, -num_tokens - 1 : -1]
        return before if goes_on is None else before.masked_fill(~goes_on, 0)


def _branched(states: torch.Tensor, before: torch.Tensor, branches: Branches | None) -> torch.Tensor:
    """Put the state of the token before each branch where there is zero."""
    if branches is None:
        return before
    firsts, parents = branches
    return before.index_add(1, firsts, states.index_select(1, parents))
