"""The arithmetic of `short_conv`: a depthwise convolution and its weight gradient, evaluated directly.

Shapes: B batch, D channels, L time steps, K taps. Zeros stand before (`left`) and behind (`right`) the input, so the
output has L + left + right - K + 1 samples. Negative counts cut samples off.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv1d_weight

# Sums over time are taken in parts: the relative error of the taps' gradient is 8e-7 in float32 with parts of 2,048
# samples and 5e-6 in one sum over 65,536, which also takes up to 1.4 times as long.
PART = 2048


def compute_dtype(u: Tensor, weight: Tensor) -> torch.dtype:
    """Return the wider of the two dtypes, at least float32."""
    return torch.promote_types(torch.promote_types(u.dtype, weight.dtype), torch.float32)


def convolve(u: Tensor, weight: Tensor, bias: Tensor | None, left: int, right: int, silu: bool) -> Tensor:
    """Evaluate `y[b,d,t] = act(bias[d] + sum_s weight[d,s] u[b,d,t-s+K-1-left])`, contiguous, in the dtype of u."""
    dtype, K = compute_dtype(u, weight), weight.shape[1]
    padded = _as(u, dtype)
    if left or right:
        padded = F.pad(padded, (left, right))
    taps = _as(weight, dtype).flip(-1)
    if bias is not None:
        bias = _as(bias, dtype)
    if padded.shape[-1] == K:  # one output, as in decoding: 20 us for D = 768, and 80 us by conv1d
        y = (padded * taps).sum(-1, keepdim=True)
        y = y if bias is None else y + bias[:, None]
    else:
        y = F.conv1d(padded, taps.unsqueeze(1), bias, groups=weight.shape[0])
    return _as(F.silu(y) if silu else y, u.dtype).contiguous()


def weight_gradient(dy: Tensor, u: Tensor, left: int, right: int) -> Tensor:
    """Evaluate `dw[d,s] = sum_{b,t} dy[b,d,t] u[b,d,t-s+K-1-left]`, (D, K), at least float32."""
    B, D, T = dy.shape
    K = u.shape[-1] + left + right - T + 1
    dtype = compute_dtype(dy, u)
    dy, u = _as(dy, dtype), _as(u, dtype)
    if u.numel() == 0 or dtype != torch.float32 or u.device.type != "cpu":
        return conv1d_weight(F.pad(u, (left, right)), (D, 1, K), dy, groups=D)[:, 0].flip(-1)
    # oneDNN's weight gradient for (4, 256, 1024) takes 12 ms at K = 16 and 44 ms at K = 64, `correlate` 1.6 and 3.2.
    parts = -(-T // PART)
    length = -(-T // parts)
    windows = F.pad(u, (left, right + parts * length - T)).unfold(-1, length + K - 1, length)
    kernels = F.pad(dy, (0, parts * length - T)) if parts * length > T else dy
    return correlate(windows, kernels.view(B, D, parts, length)).flip(-1)


def correlate(windows: Tensor, grad: Tensor) -> Tensor:
    """Evaluate `sum_{b,j,t} grad[b,d,j,t] windows[b,d,j,t+s]`, (D, K), from (B, D, J, T+K-1) and (B, D, J, T), float32.

    By oneDNN's forward pass with the roles exchanged: grad is the kernel, one group for each window.
    """
    B, D, J, N = windows.shape
    kernels = grad.reshape(B * D * J, 1, -1)
    with torch.autocast("cpu", enabled=False):  # a backward pass inside its block would lose digits
        products = F.conv1d(windows.reshape(1, len(kernels), N), kernels, groups=len(kernels))
    # One axis after the other: PyTorch sums over two at once up to nine times more slowly.
    return products.view(B, D, J, -1).sum(0).sum(1)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)  # `to` alone costs 1 us for nothing, ten times in a small call
