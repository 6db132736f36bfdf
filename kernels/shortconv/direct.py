"""Causal depthwise convolution with K taps, evaluated directly.

Shapes: B batch, D channels, L time steps, K taps. Tap `weight[:, s]` multiplies the input `s` steps back, as in
`fft_conv`; `torch.nn.Conv1d` stores its taps the other way round (`weight.flip(-1)`).

On a two-core CPU (4, 256, 1024), K = 3, float32, forward + backward: grouped `conv1d` 4.7 ms, K shifted
multiply-adds 13 ms (5.2 ms as one autograd function, but 15 ms on a transposed input against 5.1): so `conv1d` it is.
"""

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor


@overload
def short_conv(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    *,
    activation: str | None = ...,
    state: Tensor | None = ...,
    return_state: Literal[False] = ...,
) -> Tensor: ...
@overload
def short_conv(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    *,
    activation: str | None = ...,
    state: Tensor | None = ...,
    return_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def short_conv(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Evaluate `y[b,d,t] = act(bias[d] + sum_{s=0..K-1} weight[d,s] u[b,d,t-s])`.

    Args:
        u: (B, D, L) real, any strides.
        weight: (D, K), K >= 1; tap `s` multiplies `u[t-s]`.
        bias: (D,) or None.
        activation: None or `"silu"`.
        state: (B, D, K-1), the inputs just before `u`, oldest first; None means zeros.
        return_state: also return the last K-1 inputs, to be the `state` of the next chunk.

    Returns:
        y (B, D, L) in the dtype of `u` (arithmetic in the wider of u's and weight's dtype), or `(y, state)`.

    Raises:
        ValueError: shapes that do not fit, or an unknown activation.
    """
    _check(u, u.shape[:2] if u.ndim == 3 else None, weight, activation, "u", "(B, D, L)")
    K = weight.shape[1]
    if state is None:
        padded = F.pad(u, (K - 1, 0))
    else:
        _check_state(state, u, K)
        padded = torch.cat([state.to(u.dtype), u], dim=-1)
    dtype = torch.promote_types(u.dtype, weight.dtype)
    taps = weight.to(dtype).flip(-1)[:, None]
    y = F.conv1d(padded.to(dtype), taps, None if bias is None else bias.to(dtype), groups=weight.shape[0])
    y = (F.silu(y) if activation == "silu" else y).to(u.dtype)
    # Counted from the front: padded[..., -(K-1):] would be everything for K = 1. A copy, because a view would keep the
    # whole chunk in memory for as long as the state lives.
    return (y, padded[..., u.shape[-1] :].clone()) if return_state else y


def short_conv_step(
    u_t: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Evaluate one time step of :func:`short_conv`.

    Args:
        u_t: (B, D), the next input.
        state: (B, D, K-1), the inputs before it, oldest first.
        weight: (D, K); tap `s` multiplies the input `s` steps back.
        bias: (D,) or None.
        activation: None or `"silu"`.

    Returns:
        `(y_t, state)`: y_t (B, D) in u_t's dtype and the next state (B, D, K-1); `state` itself is left as it was.

    Raises:
        ValueError: shapes that do not fit, or an unknown activation.
    """
    _check(u_t, u_t.shape if u_t.ndim == 2 else None, weight, activation, "u_t", "(B, D)")
    _check_state(state, u_t, weight.shape[1])
    window = torch.cat([state.to(u_t.dtype), u_t[..., None]], dim=-1)
    dtype = torch.promote_types(u_t.dtype, weight.dtype)
    y = (window.to(dtype) * weight.to(dtype).flip(-1)).sum(-1)
    if bias is not None:
        y = y + bias.to(dtype)
    return (F.silu(y) if activation == "silu" else y).to(u_t.dtype), window[..., 1:]


def _check(
    u: Tensor, batch_and_channels: torch.Size | None, weight: Tensor, activation: str | None, name: str, form: str
) -> None:
    if batch_and_channels is None:
        raise ValueError(f"{name} must be {form}, got shape {tuple(u.shape)}")
    if weight.ndim != 2 or weight.shape[0] != batch_and_channels[1] or weight.shape[1] < 1:
        raise ValueError(f"weight must be (D, K) with D = {batch_and_channels[1]}, got shape {tuple(weight.shape)}")
    if activation not in (None, "silu"):
        raise ValueError(f"activation must be None or 'silu', got {activation!r}")


def _check_state(state: Tensor, u: Tensor, K: int) -> None:
    if state.shape != (u.shape[0], u.shape[1], K - 1):
        raise ValueError(f"state must be (B, D, K-1) = {(u.shape[0], u.shape[1], K - 1)}, got {tuple(state.shape)}")
