"""How the gradient of an activation (B, D, L) lies in memory."""

import torch
from torch import Tensor


def channels_last(x: Tensor) -> bool:
    """Whether the channels of a sample lie beside each other, as a linear layer leaves them."""
    return x.stride(1) == 1 and x.stride(2) != 1


def laid_out_as(x: Tensor, length: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty (B, D, length) tensor, of x's dtype unless told: dense, channels last if x is."""
    (B, D, _), dtype = x.shape, dtype or x.dtype
    if channels_last(x):
        return torch.empty((B, length, D), dtype=dtype, device=x.device).mT
    return torch.empty((B, D, length), dtype=dtype, device=x.device)
