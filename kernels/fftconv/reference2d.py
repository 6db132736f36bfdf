"""The definition of `fft_conv2d`, in float64, for tests and for ``impl="reference"``."""

import torch
from torch import Tensor


def fft_conv2d_reference(
    u: Tensor,
    k: Tensor,
    *,
    origin: tuple[int, int] = (0, 0),
    skip: Tensor | None = None,
    circular: tuple[bool, bool] = (False, False),
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
) -> Tensor:
    """Evaluate the convolution as one product with a matrix for each axis; shapes and meaning as in `fft_conv2d`.

    Differentiable. Of the order of (H + W) KH KW operations a pixel: for tests, not for work.
    """
    v = u.double() if pre_gate is None else pre_gate.double() * u.double()
    down, right = (
        _shifts(size, taps, first, wraps).to(u.device)
        for size, taps, first, wraps in zip(u.shape[2:], k.shape[1:], origin, circular, strict=True)
    )
    y = torch.einsum("ihp,dij,jwq,bdpq->bdhw", down, k.double(), right, v)
    if skip is not None:
        y = y + skip.double()[:, None, None] * v
    return (y if post_gate is None else post_gate.double() * y).to(u.dtype)


def _shifts(size: int, taps: int, origin: int, circular: bool) -> Tensor:
    """(taps, size, size) zeros and ones: [i, t, p] is one where tap i takes sample p to t, t - p = i - origin."""
    t = torch.arange(size)
    lag = torch.arange(taps)[:, None, None] - origin
    distance = t[:, None] - t - lag
    return ((distance % size if circular else distance) == 0).double()
