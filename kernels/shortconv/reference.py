"""The definition of :func:`longconv.functional.short_conv`, one tap at a time in float64, for tests."""

import torch
import torch.nn.functional as F
from torch import Tensor


def short_conv_reference(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: str = "causal",
    activation: str | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Evaluate the sum over taps; shapes and meaning as in `short_conv`. Float64 whatever u is, differentiable."""
    if cu_seqlens is not None:
        rows = u.split(cu_seqlens.diff().tolist(), dim=-1)
        return torch.cat(
            [short_conv_reference(row, weight, bias, padding=padding, activation=activation) for row in rows], dim=-1
        )
    K, L = weight.shape[1], u.shape[-1]
    ahead = K // 2 if padding == "same" else 0
    padded = F.pad(u.double(), (K - 1, ahead))  # sample t stands at t + K - 1
    y = torch.zeros_like(u, dtype=torch.float64)
    if bias is not None:
        y = y + bias.double()[:, None]
    for s in range(K):
        start = ahead + K - 1 - s
        y = y + weight.double()[:, s, None] * padded[..., start : start + L]
    return F.silu(y) if activation == "silu" else y
