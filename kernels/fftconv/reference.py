"""The definition of :func:`longconv.functional.fft_conv`, in float64, for tests and for `impl="reference"`."""

from itertools import pairwise

import torch
from torch import Tensor


def fft_conv_reference(
    u: Tensor,
    k: Tensor,
    *,
    skip: Tensor | None = None,
    k_reverse: Tensor | None = None,
    circular: bool = False,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Evaluate the convolution with one float64 FFT; shapes and meaning as in `fft_conv`. Differentiable."""
    if cu_seqlens is not None:
        spans = [slice(a, b) for a, b in pairwise(cu_seqlens.tolist()) if b > a]
        return torch.cat(
            [
                fft_conv_reference(
                    u[..., span],
                    k,
                    skip=skip,
                    k_reverse=k_reverse,
                    circular=circular,
                    pre_gate=None if pre_gate is None else pre_gate[..., span],
                    post_gate=None if post_gate is None else post_gate[..., span],
                )
                for span in spans
            ],
            dim=-1,
        )
    L, dtype = u.shape[-1], u.dtype
    v = u.double() if pre_gate is None else pre_gate.double() * u.double()
    k_reverse = k[:, :0] if k_reverse is None else k_reverse
    # With circular=True every tap lands at its lag modulo n = L; else n leaves room so that nothing wraps.
    n = L if circular else L + max(k.shape[-1], k_reverse.shape[-1])
    lags = torch.cat([torch.arange(k.shape[-1]), -1 - torch.arange(k_reverse.shape[-1])]).to(k.device) % n
    kernel = torch.zeros(k.shape[0], n, dtype=torch.float64, device=k.device)
    kernel = kernel.index_add(-1, lags, torch.cat([k, k_reverse], dim=-1).double())
    if v.numel() == 0:  # the FFT library takes no empty batch
        y = v + 0 * kernel.sum()
    else:
        y = torch.fft.irfft(torch.fft.rfft(v, n) * torch.fft.rfft(kernel, n), n)[..., :L]
    if skip is not None:
        y = y + skip.double()[:, None] * v
    return (y if post_gate is None else post_gate.double() * y).to(dtype)
