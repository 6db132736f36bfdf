"""The definition of :func:`longconv.functional.dilated_conv`, one tap at a time in float64, for tests."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dilated_conv_reference(
    u: Tensor,
    k: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int = 1,
    padding: str = "causal",
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Evaluate the sum over taps; shapes and meaning as in `dilated_conv`. Float64 whatever u is, differentiable."""
    if cu_seqlens is not None:
        rows = u.split(cu_seqlens.diff().tolist(), dim=-1)
        return torch.cat([dilated_conv_reference(x, k, bias, dilation=dilation, padding=padding) for x in rows], -1)
    reach = (k.shape[1] - 1) * dilation
    ahead = {"causal": 0, "same": reach - reach // 2, "valid": 0}[padding]
    first = reach if padding == "valid" else 0  # the time of the first output
    padded = F.pad(u.double(), (reach, ahead))  # sample t stands at t + reach
    T = u.shape[-1] - first
    y = padded.new_zeros(*u.shape[:2], T) if bias is None else bias.double()[:, None].expand(*u.shape[:2], T)
    for s in range(k.shape[1]):
        start = first + ahead + reach - s * dilation
        y = y + k.double()[:, s, None] * padded[..., start : start + T]
    return y
