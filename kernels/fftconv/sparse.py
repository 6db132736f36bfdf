"""Frequency-sparse convolution: `fft_conv_sparse`, a filter with zeros in its factored spectrum (see `SpectrumMask`).

The DFT of N points is factored as N = M (N / M): an outer DFT over M, a matrix product of which only kept rows are
computed, and inner FFTs for these rows alone; likewise backwards. Signals are real, so of two rows that mirror each
other one is enough: of the M rows a mask needs at most M / 2 + 1, and a one-sided mask saves nothing until less than
half of the rows are kept. M is the product of the leading factors that costs the least. A mask with a bound on the last
factor only gives M = 1: one real FFT, with weights.

Measured with factors (32, N / 32), bounds on the first of them, N = 2 L: CPU time in ms of one thread of an AMD EPYC,
float32, torch 2.13, medians of 9 interleaved runs (2026-11). "Dense" is ``irfft(rfft(u, N) * rfft(k, N) * mask)``; its
time, and that of `fft_conv` without a mask, is the same for all masks. Where only an inner factor has a bound the time
is that of the mask that keeps all.

| (B, D, L) | dense | `fft_conv` | all kept | 50% zeros | 75% | 91% | symmetric: 53% | 78% | 91% |
|---|---|---|---|---|---|---|---|---|---|
| forward (4, 64, 4096) | 9.8 | 6.3 | 7.9 | 7.4 | 5.6 | 3.3 | 5.4 | 3.6 | 2.6 |
| (2, 32, 16384) | 11.3 | 7.8 | 9.1 | 8.7 | 5.4 | 2.8 | 5.4 | 3.3 | 2.3 |
| (1, 16, 65536) | 17.5 | 11.1 | 15.2 | 14.0 | 8.4 | 4.0 | 8.1 | 4.8 | 3.1 |
| and backward (4, 64, 4096) | 60 | 18 | 22.5 | 22.0 | 15.0 | 8.8 | 14.7 | 10.1 | 7.2 |
| (2, 32, 16384) | 45 | 23 | 26.7 | 26.3 | 16.5 | 8.5 | 15.9 | 10.1 | 7.0 |
| (1, 16, 65536) | 86 | 32 | 40.5 | 45.5 | 22.0 | 11.0 | 21.8 | 13.1 | 8.8 |
"""

import math
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .checks import check_companions, check_rows
from .fft import fft_, ifft_
from .mask import SpectrumMask
from .monarch import unavailable
from .plan import CircularPlan
from .spectral_op import Operator

IMPLEMENTATIONS = ("auto", "torch", "triton", "reference")


def fft_conv_sparse(
    u: Tensor,
    k: Tensor,
    mask: SpectrumMask,
    *,
    skip: Tensor | None = None,
    circular: bool = False,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Long depthwise convolution with a filter whose spectrum is masked, in time that falls with the bins left.

    With ``v = pre_gate * u``, N = mask.n and m = mask.bins()::

        y = post_gate * ( real(ifft(fft(v, N) * fft(k, N) * m))[..., :L] + skip * v )

    A masked filter is no longer causal, nor is it short: what is left of it rings over all N lags, and whatever it
    reaches around the circle of N points is part of the result. With a mask that keeps all bins it is `fft_conv`.
    Source: Fu et al., FlashFFTConv, 2023, section 3.3, "frequency-sparse convolutions".

    Args:
        u: input (B, D, L), floating point, any strides; L >= 1.
        k: taps (D, K), K >= 1, lag 0 first.
        mask: the bins that are kept. mask.n >= L + K - 1, so that nothing wraps but what the mask itself adds; with
            `circular`, mask.n = L.
        skip: (D,) weight of the input itself, which is not masked.
        circular: indices wrap modulo L (also for K > L).
        pre_gate: (B, D, L), multiplies the input.
        post_gate: (B, D, L), multiplies the output.
        impl: "torch"; "triton", which "auto" takes on a GPU if the points inside one of the mask's outer factors are a
            size that its kernels have (256 ... 4,096); or "reference" (float64, all bins).

    Returns:
        y (B, D, L) of u's dtype, contiguous. Arithmetic is float32, or float64 if u or k is. Under autocast u and the
        gates take the autocast dtype, and filters keep theirs.

    Raises:
        ValueError: naming the argument whose shape, device or value does not fit.
        TypeError: for a tensor that is not floating point, or a mask that is no `SpectrumMask`.
    """
    _check(u, k, mask, skip, circular, pre_gate, post_gate)
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")
    if impl == "reference":
        return fft_conv_sparse_reference(
            u, k, mask, skip=skip, circular=circular, pre_gate=pre_gate, post_gate=post_gate
        )
    if impl == "triton" and (reason := _no_tile(mask, u, k, skip, pre_gate, post_gate)):
        raise ValueError(f"impl='triton' cannot be had, because {reason}; use 'auto' or 'torch'")
    config = [IMPLEMENTATIONS.index(impl), int(circular), int(mask.symmetric), *mask.factors, *mask.kept]
    return OPERATOR(u, k, skip, pre_gate, post_gate, config)


def fft_conv_sparse_reference(
    u: Tensor,
    k: Tensor,
    mask: SpectrumMask,
    *,
    skip: Tensor | None = None,
    circular: bool = False,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
) -> Tensor:
    """Evaluate the definition in `fft_conv_sparse` with complex float64 FFTs. Differentiable."""
    v = u.double() if pre_gate is None else pre_gate.double() * u.double()
    k = fold(k.double(), mask.n) if circular else k.double()
    if v.numel() == 0:  # the FFT library takes no empty batch
        y = v + 0 * k.sum()
    else:
        kf = torch.fft.fft(k, mask.n) * mask.bins().to(k.device)
        y = torch.fft.ifft(torch.fft.fft(v, mask.n) * kf).real[..., : u.shape[-1]]
    if skip is not None:
        y = y + skip.double()[:, None] * v
    return (y if post_gate is None else post_gate.double() * y).to(u.dtype)


def _check(
    u: Tensor,
    k: Tensor,
    mask: SpectrumMask,
    skip: Tensor | None,
    circular: bool,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> None:
    check_rows(u, k)
    check_companions(u, k, skip, pre_gate, post_gate)
    L = u.shape[2]
    if not isinstance(mask, SpectrumMask):
        raise TypeError(f"mask must be a SpectrumMask; got {type(mask).__name__}")
    if circular and mask.n != L:
        raise ValueError(f"mask must have n = L = {L} points for a circular convolution; got n = {mask.n}")
    if not circular and mask.n < L + k.shape[1] - 1:
        raise ValueError(
            f"mask must have n >= L + K - 1 = {L + k.shape[1] - 1} points, or the convolution would wrap; "
            f"got n = {mask.n}"
        )


class _MaskedPlan:
    """What the two plans have in common: the filter, whose spectrum is weighted by the mask."""

    n: int  # complex points in the largest array for one row
    period: int  # points of the circle
    weights: Tensor

    def forward(self, x: Tensor, conj: bool = False) -> Tensor:
        """Transform x (..., m <= period), zero-extended; with `conj` the conjugate of that."""
        raise NotImplementedError

    def inverse(self, X: Tensor, out: Tensor, conj: bool = False) -> Tensor:
        """Write the first samples of the row with spectrum X, or its conjugate, into `out`; may overwrite X."""
        raise NotImplementedError

    def filter_spectrum(self, k: Tensor) -> Tensor:
        """Masked spectrum of taps k (D, K)."""
        return self.forward(fold(k, self.period)).mul_(self.weights)

    def filter_gradient(self, G: Tensor, out: Tensor) -> None:
        """Write the gradient of the taps, out (D, K), given its conjugate spectrum G without the mask."""
        K = out.shape[-1]
        per_lag = torch.empty((G.shape[0], min(K, self.period)), dtype=G.dtype.to_real(), device=G.device)
        self.inverse(G.mul_(self.weights), per_lag, conj=True)
        if self.period < K:
            per_lag = per_lag[:, torch.arange(K, device=G.device) % self.period]
        out.copy_(per_lag)


class RowsPlan(_MaskedPlan):
    """Transforms of n points that leave out the rows of the outer DFT that a mask does not need.

    With t = t1 n/M + t2 and frequency f = r + M f2, row r is the inner FFT over t2 of
    ``w_n^(t2 r) sum_t1 w_M^(t1 r) x[t]``, where w_m = exp(-2 pi i / m). Spectra are (..., R, n/M) for R rows.
    """

    def __init__(self, mask: SpectrumMask, outer: int, dtype: torch.dtype, device: torch.device) -> None:
        rows, weights = rows_and_weights(mask, outer)
        self.period, self.inner, self.rows = mask.n, mask.n // outer, len(rows)
        self.n = max(self.rows * self.inner, mask.n // 4)  # a spectrum may take less memory than the samples do
        self.weights = weights.to(dtype).to(device)
        t1, t2 = (torch.arange(m, dtype=torch.float64) for m in (outer, self.inner))
        matrix = _unit_circle(-(rows[:, None] * t1 % outer) / outer)
        planar = torch.cat([matrix.real, matrix.imag]), torch.cat([matrix.real, -matrix.imag])  # (2 R, M)
        # Indexed by `conj`. The signal is real on both sides, so either way is a product of real matrices.
        self.matrix = tuple(m.to(dtype).to(device) for m in planar)
        self.matrix_inverse = tuple((m.T / mask.n).contiguous().to(dtype).to(device) for m in planar)
        twiddle = _unit_circle(-rows[:, None] * t2 / mask.n).to(dtype.to_complex()).to(device)
        self.twiddle = twiddle, torch.conj_physical(twiddle)

    def forward(self, x: Tensor, conj: bool = False) -> Tensor:
        """Transform x into the rows that are kept."""
        *leading, m = x.shape
        used, count = -(-m // self.inner), x.shape[:-1].numel()  # stretches of samples that are not padding
        if used * self.inner != m:
            x = pad(x, (0, used * self.inner - m))
        planar = torch.bmm(self.matrix[conj][:, :used].expand(count, -1, -1), x.reshape(count, used, self.inner))
        z = torch.complex(planar[:, : self.rows], planar[:, self.rows :]).mul_(self.twiddle[conj])
        del planar  # its memory, still in cache, serves the next result
        return (ifft_(z) if conj else fft_(z)).view(*leading, self.rows, self.inner)

    def inverse(self, X: Tensor, out: Tensor, conj: bool = False) -> Tensor:
        """Add up what the rows contribute."""
        used, count = -(-out.shape[-1] // self.inner), X.shape[:-2].numel()
        z = X.view(count, self.rows, self.inner)
        z = (fft_(z) if conj else ifft_(z)).mul_(self.twiddle[not conj])
        matrix = self.matrix_inverse[conj][:used].expand(count, -1, -1)
        if out.dtype == matrix.dtype and out.is_contiguous() and used * self.inner == out.shape[-1]:
            torch.bmm(matrix, _planar(z), out=out.view(count, used, self.inner))
            return out
        y = torch.bmm(matrix, _planar(z))
        return out.copy_(y.view(*out.shape[:-1], used * self.inner)[..., : out.shape[-1]])


class DensePlan(_MaskedPlan):
    """One real FFT of n points, for masks that let no rows be left out. Spectra are (..., n // 2 + 1)."""

    def __init__(self, mask: SpectrumMask, dtype: torch.dtype, device: torch.device) -> None:
        self.circle, self.period, self.n = CircularPlan(mask.n), mask.n, mask.n // 2 + 1
        self.weights = mask.response()[: self.n].to(dtype).to(device)

    def forward(self, x: Tensor, conj: bool = False) -> Tensor:
        """Transform x whole."""
        return self.circle.forward(x, conj)

    def inverse(self, X: Tensor, out: Tensor, conj: bool = False) -> Tensor:
        """Transform X back."""
        return self.circle.inverse(X, out, conj)


def rows_and_weights(mask: SpectrumMask, outer: int) -> tuple[Tensor, Tensor]:
    """Rows (R,) of the outer DFT that are needed, and the weights (R, n / outer) of their bins.

    The real part of a row's contribution is that of its mirror image, row -r: one of the two stands for both.
    """
    kept = mask.bins().double()
    mirrored = kept.roll(-1).flip(0)
    by_row = (kept + mirrored).view(-1, outer).T
    rows = torch.arange(outer // 2 + 1, dtype=torch.float64)
    alone = 2 * rows % outer == 0  # these rows are their own mirror images
    weights = torch.where(alone[:, None], 0.5, 1.0) * by_row[: len(rows)]
    needed = weights.any(1)
    return rows[needed], weights[needed]


def _planar(z: Tensor) -> Tensor:
    """Real parts of z (count, R, n), then imaginary parts: (count, 2 R, n).

    Copies from ``z.real`` are strided and not vectorised; narrowing 64-bit integers to their low halves, where the real
    parts are on a little-endian machine, is, and takes half of the time.
    """
    if z.dtype != torch.complex64 or not z.is_cpu or sys.byteorder != "little":
        return torch.cat([z.real, z.imag], 1)
    count, R, n = z.shape
    planar = torch.empty((count, 2 * R, n), dtype=torch.float32)
    pairs, halves = z.view(torch.int64), planar.view(torch.int32)
    halves[:, :R].copy_(pairs)
    halves[:, R:].copy_(pairs >> 32)
    return planar


def fold(k: Tensor, period: int) -> Tensor:
    """Sum taps (D, K) that are a period apart."""
    if k.shape[-1] <= period:
        return k
    return pad(k, (0, -k.shape[-1] % period)).unflatten(-1, (-1, period)).sum(-2)


def _unit_circle(turns: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(turns), 2 * math.pi * turns)


def _cost(mask: SpectrumMask, outer: int, length: int) -> float:
    """Rough time of a row in ns: FFTs, passes over memory, matrix products, at speeds measured on one core."""
    if outer == 1:
        return mask.n / 2 * (0.25 * math.log2(mask.n) + 2)
    rows, inner = len(rows_and_weights(mask, outer)[0]), mask.n // outer
    return rows * inner * (0.25 * math.log2(inner) + 2.5) + 0.1 * rows * length


def _mask(config: Sequence[int]) -> SpectrumMask:
    _, _, symmetric, *bounds = config
    factors, kept = bounds[: len(bounds) // 2], bounds[len(bounds) // 2 :]
    return SpectrumMask(math.prod(factors), tuple(factors), tuple(kept), bool(symmetric))


@lru_cache(maxsize=32)
def _make_plan(
    grid: tuple[int, ...], taps: tuple[int, ...], config: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> _MaskedPlan:
    mask, factors = _mask(config), _mask(config).factors
    outer = min((math.prod(factors[:i]) for i in range(len(factors))), key=lambda outer: _cost(mask, outer, grid[0]))
    return DensePlan(mask, dtype, device) if outer == 1 else RowsPlan(mask, outer, dtype, device)


def _no_tile(mask: SpectrumMask, u: Tensor, *others: Tensor | None) -> str | None:
    """Say why the Triton kernels cannot be had, in words that follow "because"; None if they can."""
    if reason := unavailable(u, *others):
        return reason
    from .monarch.sparse import find_tile

    if find_tile(mask, u.dtype, u.device) is None:
        return f"no outer factor of {mask.factors} leaves a transform of the sizes that the kernels have"
    return None


class _Kernels:
    """The Triton kernels for a mask, as `Operator` calls them."""

    def __init__(self, mask: SpectrumMask, u: Tensor) -> None:
        from .monarch import sparse

        tile = sparse.find_tile(mask, u.dtype, u.device)
        assert tile is not None
        self._sparse, self._arguments = sparse, (mask, tile)

    def conv_forward(self, *args: Any) -> Tensor:
        """Arguments as in `spectral.conv_forward`, without the plan."""
        return self._sparse.conv_forward(*self._arguments, *args)

    def conv_backward(self, *args: Any) -> list[Tensor]:
        """Arguments as in `spectral.conv_backward`, without the plan."""
        return self._sparse.conv_backward(*self._arguments, *args)


def _kernels(config: Sequence[int], u: Tensor, *others: Tensor | None) -> _Kernels | None:
    impl, mask = IMPLEMENTATIONS[config[0]], _mask(config)
    if impl == "torch" or (impl == "auto" and u.device.type == "cpu") or _no_tile(mask, u, *others):
        return None
    return _Kernels(mask, u)


OPERATOR = Operator("fft_conv_sparse", _make_plan, _kernels)
