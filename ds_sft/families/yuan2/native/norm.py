"""Root mean square normalisation, computed in fp32 whatever the states' dtype."""

import torch
from torch import nn


class Yuan2RMSNorm(nn.Module):
    """w * x / sqrt(mean(x^2) + eps) over the last dimension (Zhang and Sennrich 2019).

    Args:
        hidden_size: Width of the states.
        eps: Added to the mean of squares.
    """

    def __init__(self, hidden_size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Normalise.

        Args:
            states: Shape [..., H].

        Returns:
            The same shape and dtype.
        """
        wide = states.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(states.dtype)

    def extra_repr(self) -> str:
        """Describe the norm when the model is printed.

        Returns:
            Width and epsilon.
        """
        return f"{self.weight.shape[0]}, eps={self.eps}"
