"""The cache-blocked convolution, forward and backward: rows are worked through in blocks that fit the cache.

Equivalent to ``irfft(rfft(u, 2L) * rfft(k, 2L))[..., :L]``, but every intermediate lives in a block of a few megabytes
that the allocator recycles, so no large array is allocated besides the results. Channels are the outer loop: the
spectrum of a group of filters is computed once, used for the whole batch, and dropped.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import scratch
from .plan import CircularPlan, Plan, make_plan

# Complex points in a block: large enough to hide the cost of setting up an FFT, small enough for the cache (measured on
# two cores: half of it loses 5 to 10 per cent on long rows). Elsewhere launches cost more and caches matter less.
BLOCK_POINTS = {"cpu": 2**18}
BLOCK_POINTS_ELSEWHERE = 2**26


def conv_forward(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    k_reverse: Tensor | None,
    circular: bool,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    """Evaluate `fft_conv` (see there for shapes); returns a new contiguous tensor of u's dtype."""
    L, dtype = u.shape[-1], compute_dtype(u, k)
    plan = make_plan(L, circular, dtype, u.device)
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    for channels, batches in _blocks(u.shape, plan, u.device):
        kf = _kernel_spectrum(plan, k, k_reverse, channels, L, dtype)
        for batch in batches:
            at = (batch, channels)
            v = gated(u, pre_gate, at, dtype)
            if skip is None and post_gate is None:
                plan.inverse(plan.forward(v, slot="rows").mul_(kf), y[at])
                continue
            out = plan.inverse(plan.forward(v, slot="rows").mul_(kf), _rows_like(v, "output"))
            if skip is not None:
                out.addcmul_(skip[channels, None].to(dtype), v)
            if post_gate is not None:
                out.mul_(post_gate[at])
            y[at].copy_(out)
    return y


def conv_backward(
    dy: Tensor,
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    k_reverse: Tensor | None,
    circular: bool,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients for (u, k, skip, k_reverse, pre_gate, post_gate); those not in `needs` come back empty.

    Everything is recomputed from the inputs. Filter gradients are summed over the batch in the frequency domain,
    in a fixed order (deterministic), in at least float32.
    """
    needs_u, needs_k, needs_skip, needs_reverse, needs_pre, needs_post = needs
    L, dtype = u.shape[-1], compute_dtype(u, k)
    plan = make_plan(L, circular, dtype, u.device)
    grads = empty_gradients((u, k, skip, k_reverse, pre_gate, post_gate), needs)
    du, dk, dskip, dk_reverse, dpre, dpost = grads
    needs_filter, needs_dv = needs_k or needs_reverse, needs_u or needs_pre
    for channels, batches in _blocks(u.shape, plan, u.device):
        kf = _kernel_spectrum(plan, k, k_reverse, channels, L, dtype)
        weight = None if skip is None else skip[channels, None].to(dtype)
        # The conjugate of the gradient's spectrum: that of dc comes for free, where that of u would have to be taken.
        filter_grad = scratch.empty("filter gradient", kf.shape, kf.dtype, kf.device).zero_() if needs_filter else None
        skip_grad = torch.zeros(kf.shape[0], dtype=dtype, device=u.device)
        for batch in batches:
            at = (batch, channels)
            v = gated(u, pre_gate, at, dtype)
            dc = gated(dy, post_gate, at, dtype)
            if needs_skip:
                skip_grad += (dc * v).sum(2).sum(0)  # pairwise: a dot product over a long row would lose digits
            if needs_filter or needs_post:
                vf = plan.forward(v, slot="rows")
            if needs_post:
                product = scratch.empty("product", vf.shape, vf.dtype, vf.device)
                c = plan.inverse(torch.mul(vf, kf, out=product), _rows_like(v, "output"))
                c = c if weight is None else c.addcmul_(weight, v)
                dpost[at].copy_(c.mul_(dy[at]))
            if not (needs_filter or needs_dv):
                continue
            dcf = plan.forward(dc, conj=True, slot="gradients")
            if filter_grad is not None:
                if vf.shape[0] == 1:
                    filter_grad.addcmul_(vf[0], dcf[0])
                else:
                    filter_grad += vf.mul_(dcf).sum(0)
            if needs_dv:
                direct = needs_u and not needs_pre and pre_gate is None and weight is None
                dv = plan.inverse(dcf.mul_(kf), du[at] if direct else _rows_like(v, "output"), conj=True)
                if direct:
                    continue
                dv = dv if weight is None else dv.addcmul_(weight, dc)
                if needs_pre:
                    dpre[at].copy_(dv * u[at])
                if needs_u:
                    du[at].copy_(dv if pre_gate is None else dv.mul_(pre_gate[at]))
        if needs_skip:
            dskip[channels].copy_(skip_grad)
        if filter_grad is not None:
            for grad, needed, first in ((dk_reverse, needs_reverse, 1), (dk, needs_k, 0)):
                if needed:  # the taps before lag 0 are those of the conjugate spectrum
                    per_lag = filter_grad.new_empty((kf.shape[0], L), dtype=dtype)
                    spectrum = filter_grad.clone() if first == 1 and needs_k else filter_grad  # may be overwritten
                    per_lag = plan.inverse(spectrum, per_lag, conj=first == 0)
                    _scatter_lags(grad[channels], per_lag, first, circular)
    return grads


def empty_gradients(inputs: tuple[Tensor | None, ...], needs: list[bool]) -> list[Tensor]:
    """Room for the gradients of (u, k, skip, k_reverse, pre_gate, post_gate); nothing where there is no need."""
    u = inputs[0]
    assert u is not None
    # Gradients of activations are written whole; those of filters stay zero at taps that reach no sample.
    makers = (
        torch.empty_like,
        torch.zeros_like,
        torch.zeros_like,
        torch.zeros_like,
        torch.empty_like,
        torch.empty_like,
    )
    return [
        make(x, memory_format=torch.contiguous_format) if need and x is not None else u.new_empty(0)
        for make, x, need in zip(makers, inputs, needs, strict=True)
    ]


def compute_dtype(u: Tensor, k: Tensor) -> torch.dtype:
    """The dtype of all arithmetic on input u with filter k."""
    return torch.float64 if torch.float64 in (u.dtype, k.dtype) else torch.float32


def _blocks(shape: torch.Size, plan: Plan, device: torch.device) -> Iterator[tuple[slice, list[slice]]]:
    """Yield slices of channels, each with the slices of the batch to go through for them."""
    B, D, _ = shape
    if shape.numel() == 0:
        return
    points = BLOCK_POINTS.get(device.type, BLOCK_POINTS_ELSEWHERE)
    # Channels first: rows that are neighbours in memory, and filters that are transformed once for the whole batch.
    rows = max(1, points // plan.n)
    if plan.n <= points:
        rows = max(rows, min(torch.get_num_threads(), D))  # two threads on a single row are slower than on one each
    per_d = min(D, rows)
    per_b = min(B, max(1, rows // per_d))
    batches = [slice(b, min(b + per_b, B)) for b in range(0, B, per_b)]
    for d in range(0, D, per_d):
        yield slice(d, min(d + per_d, D)), batches


def gated(x: Tensor, gate: Tensor | None, at: tuple[slice, slice], dtype: torch.dtype) -> Tensor:
    """Return gate * x at a block of batch and channels."""
    x = x[at].to(dtype)
    return x if gate is None else x * gate[at].to(dtype)


def _rows_like(v: Tensor, slot: str) -> Tensor:
    return scratch.empty(slot, v.shape, v.dtype, v.device)


def _kernel_spectrum(
    plan: Plan, k: Tensor, k_reverse: Tensor | None, channels: slice, L: int, dtype: torch.dtype
) -> Tensor:
    """Spectrum of the two-sided kernel. A tap at lag -s has the conjugate phase of one at lag s, since |z| = 1."""
    kf = plan.forward(_fold(k[channels].to(dtype), L, plan), slot="filter")
    if k_reverse is not None:
        lags = torch.nn.functional.pad(k_reverse[channels].to(dtype), (1, 0))
        kf += plan.forward(_fold(lags, L, plan), conj=True)
    return kf


def _fold(taps: Tensor, L: int, plan: Plan) -> Tensor:
    """Bring taps (D, K) to at most L lags: summed modulo L where all wraps, else without those that reach no sample."""
    if taps.shape[-1] <= L:
        return taps
    if not isinstance(plan, CircularPlan):
        return taps[:, :L]
    whole = torch.nn.functional.pad(taps, (0, -taps.shape[-1] % L))
    return whole.view(taps.shape[0], -1, L).sum(1)


def _scatter_lags(grad: Tensor, per_lag: Tensor, first: int, circular: bool) -> None:
    """Write the gradient of taps at lags first, first + 1, ... given that of lags 0 ... L - 1: adjoint of `_fold`."""
    K, L = grad.shape[-1], per_lag.shape[-1]
    if circular:
        grad.copy_(per_lag[:, torch.arange(first, first + K, device=grad.device) % L])
    else:
        used = min(K, L - first)
        grad[:, :used].copy_(per_lag[:, first : first + used])
