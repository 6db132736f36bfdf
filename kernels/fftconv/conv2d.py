"""Long depthwise convolution in two dimensions by FFT: `fft_conv2d`.

A row transform over W (of plan.py: right-angle where nothing may wrap, so that no zeros are padded), then a complex FFT
over H. Rows of zero padding are never transformed, which saves half of the row transforms of
``irfft2(rfft2(u, (2H, 2W)) * rfft2(k, (2H, 2W)))``, and every intermediate belongs to a block of a few images
(spectral.py). Measured against that, kernels as large as the image, one thread of an AMD EPYC, float32, torch 2.13,
CPU time in ms (medians of 7 to 9 interleaved runs, 2026-11) and peak memory beyond the inputs in MB, ours / naive:

| (B, D, H, W) | forward | forward and backward | memory | memory with backward |
|---|---|---|---|---|
| (8, 64, 64, 64) | 24 / 169 | 72 / 410 | 13 / 136 | 36 / 302 |
| (4, 32, 128, 128) | 32 / 184 | 89 / 443 | 12 / 136 | 35 / 327 |
| (2, 16, 512, 512) | 180 / 871 | 567 / 2183 | 63 / 539 | 146 / 1048 |
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from .checks import check_companions
from .fft import fft_, ifft_
from .plan import CircularPlan, Plan, make_plan, next_fast_length
from .reference2d import fft_conv2d_reference
from .spectral_op import Operator

Origin = int | Literal["causal", "center"]
# Matrices of at least so many elements are transposed in tiles.
TILED_TRANSPOSE = 2**15
IMPLEMENTATIONS = ("auto", "torch", "reference")


def fft_conv2d(
    u: Tensor,
    k: Tensor,
    *,
    origin: Origin | tuple[Origin, Origin] = "causal",
    skip: Tensor | None = None,
    circular: bool | tuple[bool, bool] = False,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Long depthwise convolution of images, with optional gates and skip connection.

    With ``v = pre_gate * u`` and ``(oh, ow) = origin``::

        y[b,d,h,w] = post_gate[b,d,h,w] * (  sum_{i,j} k[d,i,j] v[b,d,h-(i-oh),w-(j-ow)]
                                           + skip[d] v[b,d,h,w] )

    where v is zero outside the image. Tap k[d,i,j] acts at lag (i-oh, j-ow). With `origin` 0 an axis is causal (lags
    0, 1, ...), with "center" it has as many taps on either side (one more before than behind if their number is even).
    It is a convolution: with "center" and odd KH, KW it equals ``torch.nn.functional.conv2d(v, k.flip(1, 2)[:, None],
    padding="same", groups=D)``. Causal, without gates and skip, it equals
    ``irfft2(rfft2(u, s) * rfft2(k, s), s)[..., :H, :W]`` with s = (H + KH, W + KW). Long filters in
    two dimensions are those of S4ND (Nguyen et al., 2022) and Hyena N-D (Zimerman and Wolf, 2023, arXiv 2309.13600).

    Args:
        u: input (B, D, H, W), floating point, any strides; H, W >= 1.
        k: taps (D, KH, KW); KH, KW >= 1 and may exceed H and W. Taps that reach no pixel do nothing.
        origin: index of the tap at lag 0, for both axes or (H, W): any integer, "causal" = 0 or "center" = KH // 2
            (KW // 2).
        skip: (D,) weight of the input itself.
        circular: for both axes or (H, W): indices wrap modulo H (W). Otherwise nothing wraps.
        pre_gate: (B, D, H, W), multiplies the input.
        post_gate: (B, D, H, W), multiplies the output.
        impl: "torch" (what "auto" takes) or "reference" (float64, with dense matrices).

    Returns:
        y (B, D, H, W) of u's dtype, contiguous. Arithmetic is float32, or float64 if u or k is. Under autocast u and
        the gates take the autocast dtype, and filters keep theirs.

    Raises:
        ValueError: naming the argument whose shape, device or value does not fit.
        TypeError: for a tensor that is not floating point, or an origin or circular of another type.
    """
    _check(u, k, skip, pre_gate, post_gate)
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")
    tap = _origins(origin, k)
    wraps = _per_axis(circular, "circular")
    for value in wraps:
        if not isinstance(value, bool):
            raise TypeError(f"circular must be a bool or a pair of bools (H, W); got {circular!r}")
    if impl == "reference":
        return fft_conv2d_reference(u, k, origin=tap, skip=skip, circular=wraps, pre_gate=pre_gate, post_gate=post_gate)
    return OPERATOR(u, k, skip, pre_gate, post_gate, [*tap, *map(int, wraps)])


def _check(u: Tensor, k: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None) -> None:
    if u.dim() != 4:
        raise ValueError(f"u must have shape (B, D, H, W); got {tuple(u.shape)}")
    D, H, W = u.shape[1:]
    if H == 0 or W == 0:
        raise ValueError(f"u must have at least one pixel (H, W >= 1); got shape {tuple(u.shape)}")
    if k.dim() != 3 or k.shape[0] != D or k.shape[1] == 0 or k.shape[2] == 0:
        raise ValueError(f"k must have shape (D, KH, KW) with D = {D} as in u and KH, KW >= 1; got {tuple(k.shape)}")
    check_companions(u, k, skip, pre_gate, post_gate)


def _per_axis(value: Any, name: str) -> tuple[Any, Any]:
    if not isinstance(value, tuple | list):
        return value, value
    if len(value) != 2:
        raise ValueError(f"{name} must be one value or a pair (H, W); got {value!r}")
    return value[0], value[1]


def _origins(origin: Origin | tuple[Origin, Origin], k: Tensor) -> tuple[int, int]:
    found: list[Any] = []
    for value, taps in zip(_per_axis(origin, "origin"), k.shape[1:], strict=True):
        if isinstance(value, str):
            if value not in ("causal", "center"):
                raise ValueError(f"origin must be integers, 'causal' or 'center'; got {value!r}")
            found.append(taps // 2 if value == "center" else 0)
        elif isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
            raise TypeError(f"origin must be integers, 'causal' or 'center'; got {value!r}")
        else:
            found.append(value)
    return found[0], found[1]


@dataclass(frozen=True)
class Axis:
    """Which taps of a kernel act along an axis of `size` samples, and at which lags.

    Taps start ... stop - 1 are used; tap i acts at lag i - origin. Around a circle all are used, summed modulo `size`.
    """

    size: int
    start: int
    stop: int
    origin: int
    circular: bool

    @classmethod
    def of(cls, size: int, taps: int, origin: int, circular: bool) -> "Axis":
        """Leave out taps that reach no sample."""
        if circular:
            return cls(size, 0, taps, origin, True)
        start = min(max(0, origin - size + 1), taps)
        return cls(size, start, max(start, min(taps, origin + size)), origin, False)

    @property
    def first(self) -> int:
        """Lag of the first tap used (around a circle: of the first of one period)."""
        return 0 if self.circular else self.start - self.origin

    @property
    def last(self) -> int:
        """Lag of the last tap used (around a circle: of the last of one period)."""
        return self.size - 1 if self.circular else self.stop - 1 - self.origin

    @property
    def linear_points(self) -> int:
        """Points of a circle on which nothing that reaches the samples has wrapped."""
        return self.size + max(self.last, -self.first, 0)

    def lags(self, device: torch.device) -> Tensor:
        """Lags of the taps used, before any are summed."""
        return torch.arange(self.start, self.stop, device=device) - self.origin

    def fold(self, k: Tensor, dim: int) -> Tensor:
        """Taps at lags first ... last along dimension `dim` (-1 or -2) of k: cropped, or one period of them."""
        k = k.narrow(dim, self.start, self.stop - self.start)
        if not self.circular:
            return k
        behind = -self.origin % self.size
        ahead = -(behind + k.shape[dim]) % self.size
        k = pad(k, (behind, ahead) if dim == -1 else (0, 0, behind, ahead))
        return k.unflatten(dim, (-1, self.size)).sum(dim - 1)


class Plan2d:
    """Transforms of images (..., H, W), for one size of filter. Spectra are (..., F, n_H): over W, then over H."""

    def __init__(self, rows: Axis, columns: Axis, dtype: torch.dtype, device: torch.device) -> None:
        self.rows, self.columns = rows, columns
        self.across = _row_plan(columns, dtype, device)
        self.n_H = rows.size if rows.circular else next_fast_length(rows.linear_points)
        self.n_F = self.across.n // 2 + 1 if isinstance(self.across, CircularPlan) else self.across.n
        self.n = self.n_F * self.n_H

    def forward(self, x: Tensor, conj: bool = False) -> Tensor:
        """Transform x (..., h <= n_H, w <= n_W), zero-extended; with `conj` the conjugate of that."""
        return self._down(self.across.forward(x, conj), 0, conj)

    def inverse(self, X: Tensor, out: Tensor, conj: bool = False) -> Tensor:
        """Write the first pixels of the image with spectrum X, or its conjugate, into `out`; overwrites X."""
        z = (fft_(X) if conj else ifft_(X))[..., : out.shape[-2]]
        across = torch.empty(z.mT.shape, dtype=z.dtype, device=z.device)
        _transpose(z, across, 1 / self.n_H)
        return self.across.inverse(across, out, conj)

    def filter_spectrum(self, k: Tensor) -> Tensor:
        """Spectrum (D, F, n_H) of taps (D, KH, KW)."""
        k, columns = self.columns.fold(self.rows.fold(k, -2), -1), self.columns
        if k.numel() == 0:  # no tap reaches a pixel
            return torch.zeros((k.shape[0], self.n_F, self.n_H), dtype=k.dtype.to_complex(), device=k.device)
        if isinstance(self.across, CircularPlan):
            return self._down(self.across.forward(_at_lags(k, columns.first, self.across.n)), self.rows.first)
        # A column at lag -s has the conjugate phase of one at lag s, since the points lie on the unit circle.
        split, parts = min(max(0, -columns.first), k.shape[-1]), []
        if split < k.shape[-1]:
            parts.append(self.across.forward(pad(k[..., split:], (max(0, columns.first), 0))))
        if split:
            parts.append(self.across.forward(pad(k[..., :split].flip(-1), (max(1, -columns.last), 0)), conj=True))
        return self._down(parts[0] if len(parts) == 1 else parts[0].add_(parts[1]), self.rows.first)

    def filter_gradient(self, G: Tensor, out: Tensor) -> None:
        """Write the gradient of the taps, out (D, KH, KW), given its conjugate spectrum G (D, F, n_H)."""
        rows, columns = self.rows, self.columns
        used = out[:, rows.start : rows.stop, columns.start : columns.stop]
        if used.shape != out.shape:
            out.zero_()
        if used.numel() == 0:
            return
        down, across = rows.lags(G.device), columns.lags(G.device)
        if isinstance(self.across, CircularPlan):
            per_lag = self._per_lag(G, self.across.n, conj=True)
            used.copy_(per_lag[:, down % self.n_H][..., across % self.across.n])
            return
        split = min(max(0, -columns.first), used.shape[-1])
        if split < used.shape[-1]:
            per_lag = self._per_lag(G.clone() if split else G, columns.last + 1, conj=True)
            used[..., split:].copy_(per_lag[:, down % self.n_H][..., across[split:]])
        if split:  # the conjugate of G's conjugate has lag (-a, -b) at (a, b)
            per_lag = self._per_lag(G, 1 - columns.first, conj=False)
            used[..., :split].copy_(per_lag[:, -down % self.n_H][..., -across[:split]])

    def _per_lag(self, G: Tensor, width: int, conj: bool) -> Tensor:
        out = torch.empty((G.shape[0], self.n_H, width), dtype=G.dtype.to_real(), device=G.device)
        return self.inverse(G, out, conj)

    def _down(self, across: Tensor, first: int, conj: bool = False) -> Tensor:
        """Transform over H: rows (..., h, F) stand at first, first + 1, ... modulo n_H."""
        *leading, h, F = across.shape
        z = torch.empty((*leading, F, self.n_H), dtype=across.dtype, device=across.device)
        before = min(h, max(0, -first))  # rows at negative indices, which are counted from the end
        start, end = max(0, first), max(0, first) + h - before
        z[..., :start].zero_()
        _transpose(across[..., before:, :], z[..., start:end])
        z[..., end:].zero_()
        if before:
            _transpose(across[..., :before, :], z[..., self.n_H + first : self.n_H + first + before])
        return ifft_(z) if conj else fft_(z)


def _row_plan(columns: Axis, dtype: torch.dtype, device: torch.device) -> Plan:
    """The transform over W: with padding where that takes fewer points, for filters much narrower than the image."""
    if columns.circular:
        return CircularPlan(columns.size)
    plan = make_plan(columns.size, False, dtype, device)
    padded = next_fast_length(columns.linear_points)
    return CircularPlan(padded) if padded // 2 + 1 < plan.n else plan


def _transpose(source: Tensor, target: Tensor, factor: float = 1.0) -> None:
    """Write `factor` times the transposes of matrices (..., m, n) into `target` (..., n, m).

    PyTorch goes through large matrices in tiles where both sides are contiguous and there are no others behind them, in
    a third of the time that it takes otherwise; copies that make them so cost less than that.
    """
    if source.shape[-2:].numel() < TILED_TRANSPOSE or not source.is_cpu:
        target.copy_(source.mT) if factor == 1 else torch.mul(source.mT, factor, out=target)
        return
    *_, m, n = source.shape
    for matrix, out in zip(source.reshape(-1, m, n), target.view(-1, n, m), strict=True):
        if factor != 1 or not matrix.is_contiguous():
            matrix = matrix * factor
        if out.is_contiguous():
            out.copy_(matrix.mT)
        else:
            out.copy_(torch.empty((n, m), dtype=out.dtype, device=out.device).copy_(matrix.mT))


def _at_lags(k: Tensor, first: int, n: int) -> Tensor:
    """Place taps (..., K), the first at lag `first`, on a circle of n points."""
    before = min(k.shape[-1], max(0, -first))
    ahead = pad(k[..., before:], (max(0, first), 0))
    if not before:
        return ahead
    behind = pad(k[..., :before], (0, -first - before))
    return torch.cat([pad(ahead, (0, n - ahead.shape[-1] - behind.shape[-1])), behind], -1)


@lru_cache(maxsize=32)
def _make_plan(
    grid: tuple[int, ...], taps: tuple[int, ...], config: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Plan2d:
    rows, columns = (
        Axis.of(size, K, origin, bool(wraps))
        for size, K, origin, wraps in zip(grid, taps, config[:2], config[2:], strict=True)
    )
    return Plan2d(rows, columns, dtype, device)


OPERATOR = Operator("fft_conv2d", _make_plan)
