"""A convolution given as a plan of transforms, worked through in blocks that fit the cache, forward and backward.

Equivalent to ``irfftn(rfftn(v) * rfftn(k))`` with the padding, or the weights of the spectrum, that the plan stands
for. But every intermediate belongs to a block of a few images or rows, and the spectrum of a group of filters is
computed once, used for the whole batch, and dropped.

The convolution, c = T(v, k) = F^-1 (F v * G k), is linear in the input and in the filter. Its transposes need the same
transforms, conjugated, which costs nothing extra.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from .blocked import BLOCK_POINTS_ELSEWHERE, compute_dtype, gated

# Complex points in the spectra of a block. Half as many as for single rows (blocked.py): there are more temporaries of
# that size here, and twice as many made the backward pass slower by a third (L = 4,096, one thread).
BLOCK_POINTS = {"cpu": 2**17}


class SpectralPlan(Protocol):
    """Transforms in which a convolution over a grid (L) or (H, W) is a pointwise product."""

    n: int  # complex points in the spectrum of one row or image, for the size of the blocks

    def forward(self, x: Tensor, conj: bool = False) -> Tensor:
        """Return the spectrum of x (..., *grid), or its conjugate, in memory of its own."""

    def inverse(self, X: Tensor, out: Tensor, conj: bool = False) -> Tensor:
        """Write what has spectrum X, or its conjugate, into `out` (..., *grid) and return that; may overwrite X."""

    def filter_spectrum(self, k: Tensor) -> Tensor:
        """Return the spectrum of taps k (D, *taps), with which that of the input is multiplied."""

    def filter_gradient(self, G: Tensor, out: Tensor) -> None:
        """Write the gradient of the taps into `out` (D, *taps), of any real dtype; may overwrite G.

        G is the spectrum of the input times the conjugate of that of the output's gradient, summed over the batch.
        """


def conv_forward(
    plan: SpectralPlan,
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    """Return post_gate * (T(v, k) + skip * v) with v = pre_gate * u: u (B, D, *grid), k (D, *taps), skip (D,)."""
    dtype = compute_dtype(u, k)
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    for channels, batches in _blocks(u, plan):
        kf = plan.filter_spectrum(k[channels].to(dtype))
        weight = _per_channel(skip, channels, u.dim() - 2, dtype)
        for batch in batches:
            at = (batch, channels)
            v = gated(u, pre_gate, at, dtype)
            direct = weight is None and post_gate is None
            c = plan.inverse(plan.forward(v).mul_(kf), y[at] if direct else torch.empty_like(v))
            if direct:
                continue
            if weight is not None:
                c.addcmul_(weight, v)
            if post_gate is not None:
                c.mul_(post_gate[at])
            y[at].copy_(c)
    return y


def conv_backward(
    plan: SpectralPlan,
    dy: Tensor,
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of `conv_forward` for (u, k, skip, pre_gate, post_gate); those not in `needs` come back empty.

    Everything is recomputed from the inputs. Filter gradients are summed over the batch as spectra, in a fixed order.
    """
    needs_u, needs_k, needs_skip, needs_pre, needs_post = needs
    dtype = compute_dtype(u, k)
    # Gradients of activations are written whole; those of filters stay zero where the batch is empty.
    makers = (torch.empty_like, torch.zeros_like, torch.zeros_like, torch.empty_like, torch.empty_like)
    grads = [
        make(x, memory_format=torch.contiguous_format) if need and x is not None else u.new_empty(0)
        for make, x, need in zip(makers, (u, k, skip, pre_gate, post_gate), needs, strict=True)
    ]
    du, dk, dskip, dpre, dpost = grads
    needs_dv = needs_u or needs_pre
    for channels, batches in _blocks(u, plan):
        kf = plan.filter_spectrum(k[channels].to(dtype))
        weight = _per_channel(skip, channels, u.dim() - 2, dtype)
        filter_grad: Tensor | None = None
        for batch in batches:
            at = (batch, channels)
            v = gated(u, pre_gate, at, dtype)
            dc = gated(dy, post_gate, at, dtype)
            if needs_skip:
                dskip[channels] += (dc * v).flatten(2).sum(2).sum(0)
            if needs_post:
                c = plan.inverse(plan.forward(v).mul_(kf), torch.empty_like(v))
                c = c if weight is None else c.addcmul_(weight, v)
                dpost[at].copy_(c.mul_(dy[at]))
            if not (needs_k or needs_dv):
                continue
            dcf = plan.forward(dc, conj=True)
            if needs_k:
                product = plan.forward(v).mul_(dcf)
                summed = product[0] if product.shape[0] == 1 else product.sum(0)
                filter_grad = summed if filter_grad is None else filter_grad.add_(summed)
            if needs_dv:
                direct = pre_gate is None and weight is None
                dv = plan.inverse(dcf.mul_(kf), du[at] if direct else torch.empty_like(v), conj=True)
                if direct:
                    continue
                dv = dv if weight is None else dv.addcmul_(weight, dc)
                if needs_pre:
                    dpre[at].copy_(dv * u[at])
                if needs_u:
                    du[at].copy_(dv if pre_gate is None else dv.mul_(pre_gate[at]))
        if filter_grad is not None:
            plan.filter_gradient(filter_grad, dk[channels])
    return grads


def _blocks(u: Tensor, plan: SpectralPlan) -> Iterator[tuple[slice, list[slice]]]:
    """Yield slices of channels, each with the slices of the batch to go through for them."""
    if u.numel() == 0:
        return
    B, D = u.shape[:2]
    rows = max(1, BLOCK_POINTS.get(u.device.type, BLOCK_POINTS_ELSEWHERE) // plan.n)
    per_d = min(D, rows)
    per_b = min(B, max(1, rows // per_d))
    batches = [slice(b, min(b + per_b, B)) for b in range(0, B, per_b)]
    for d in range(0, D, per_d):
        yield slice(d, min(d + per_d, D)), batches


def _per_channel(skip: Tensor | None, channels: slice, grid_dims: int, dtype: torch.dtype) -> Tensor | None:
    return None if skip is None else skip[channels].to(dtype).view(-1, *[1] * grid_dims)
