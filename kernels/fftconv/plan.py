"""Transforms in which a convolution is a pointwise product, and the choice between them.

A plan maps real rows to complex spectra and back. Causal (and two-sided) convolution uses the
*right-angle* transform: the polynomial of a row is evaluated at the n roots of z^n = -i instead of the
roots of z^n = 1. A product of two such polynomials is then known modulo z^n + i, so whatever reaches past
either end of the n samples comes back multiplied by -i (or +i), in the imaginary part, while the wanted
samples stand alone in the real part. A linear convolution of n samples thus needs n complex points and no
zero padding, where the usual way transforms 2n real ones, half of them zeros.
(Nussbaumer, Fast Fourier Transform and Convolution Algorithms, 1982, section 8.3, "right-angle circular convolution".)

Long rows do not fit the cache as one FFT. They are factored, n = N1 * N2, as FlashFFTConv does on a GPU (Fu et al.,
2023, section 3.1): the outer DFT over N1 is a real matrix product, the twiddles a pointwise one, and
the inner FFTs run over contiguous rows of N2 points that stay in cache. Spectra are left in the order that
the factored transform produces; the product does not care and the inverse undoes it.

A `slot` names memory for a spectrum that is kept from call to call (scratch.py); plans that cannot use it ignore it.

Shape suffixes: R rows (any leading shape), n transform points, F spectrum points.
"""

import math
import sys
from functools import lru_cache

import torch
from torch import Tensor

from .. import scratch
from .fft import fft_, ifft_, irfft, keeps_setup, rfft

# Rows of up to this many points are transformed by one FFT on a CPU; longer ones are factored, with inner FFTs of up to
# so many. Where every FFT is set up anew, a batch of short ones is cheaper than a long one.
DIRECT_LIMIT, INNER_LIMIT = 2**18, 2**17
DIRECT_LIMIT_WITHOUT_SETUP, INNER_LIMIT_WITHOUT_SETUP = 2**13, 2**15
# Beyond so many points a table is a large part of what a call needs: there is one, of half a row, where there are two.
WHOLE_TABLES = 2**17
# Tables are computed in float64, so many entries at a time: at once it would take six times their memory.
TABLE_PART = 2**14
# The cost of the outer matrix product grows with its size, which stays within these.
MIN_OUTER, MAX_OUTER = 8, 128


@lru_cache(maxsize=4096)
def next_fast_length(n: int) -> int:
    """Return the smallest integer >= `n` whose prime factors are 2, 3 and 5."""
    best = 1 << max(n - 1, 0).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            rest = -(-n // three)
            best = min(best, three << max(rest - 1, 0).bit_length())
            three *= 3
        five *= 5
    return best


class CircularPlan:
    """Convolution modulo z^n - 1, at exactly n points: everything wraps. Spectra have n // 2 + 1 points."""

    def __init__(self, n: int) -> None:
        self.n = n

    def forward(self, x: Tensor, conj: bool = False, slot: str | None = None) -> Tensor:
        """Transform x (..., m <= n), zero-extended to n points; with `conj` the conjugate of that."""
        X = rfft(x if x.shape[-1] == self.n else torch.nn.functional.pad(x, (0, self.n - x.shape[-1])))
        return X.conj_physical_() if conj else X

    def inverse(self, X: Tensor, out: Tensor, conj: bool = False) -> Tensor:
        """Write the first samples of the row with spectrum X, or its conjugate, into `out` (..., m <= n)."""
        x = irfft(torch.conj_physical(X) if conj else X, self.n)
        return torch.mul(x[..., : out.shape[-1]], 1 / self.n, out=out)


class RightAnglePlan:
    """Right-angle transform of n points as one complex FFT of a row times psi^t, psi = exp(-i pi / 2n)."""

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device) -> None:
        self.n, self.dtype, self.device = n, dtype, device
        self.turn = lru_cache(self._turn)  # tables as long as a row: made when they are first needed, and kept

    def _turn(self, length: int, conj: bool = False, inverse: bool = False) -> Tensor:
        """psi^t for t < length, or with one of the two its conjugate; divided by n on the way back."""
        sign = 1 if conj != inverse else -1
        table = torch.empty(length, dtype=self.dtype.to_complex(), device=self.device)
        for part, t in zip(table.split(TABLE_PART), torch.arange(length).split(TABLE_PART), strict=True):
            part.copy_(_unit_circle(sign * t.double() / (4 * self.n), self.dtype, self.device))
        return table.div_(self.n) if inverse else table

    def forward(self, x: Tensor, conj: bool = False, slot: str | None = None) -> Tensor:
        """Transform x (..., m <= n), zero-extended to n points; with `conj` the conjugate of that."""
        m, psi = x.shape[-1], self.turn(self.n, conj, False)
        z = _room((*x.shape[:-1], self.n), psi.dtype, self.device, slot)  # contiguous, whatever x is
        z[..., :m].copy_(x).mul_(psi[:m])
        z[..., m:].zero_()
        return ifft_(z) if conj else fft_(z)

    def inverse(self, X: Tensor, out: Tensor, conj: bool = False) -> Tensor:
        """Write the first samples of the row with spectrum X, or its conjugate, into `out`; may overwrite X."""
        z = (fft_(X) if conj else ifft_(X)).mul_(self.turn(self.n, conj, True))
        return _copy_real(z[..., : out.shape[-1]], out)


class LongRightAnglePlan(RightAnglePlan):
    """The same for long rows, with a quarter of the tables: psi^t of half a row, no conjugates of it.

    The second half of a row is that times psi^h, and Re(conj(psi) z) = Re(psi conj(z)). The passes that this adds take
    3 to 4 per cent of a convolution of 262,144 samples, 5 with its backward; its memory falls by an eighth.
    """

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(n, dtype, device)
        self.half = -(-n // 2)
        angle = -math.pi / 2 * self.half / n
        self.psi_half = complex(math.cos(angle), math.sin(angle))

    def forward(self, x: Tensor, conj: bool = False, slot: str | None = None) -> Tensor:
        """As `RightAnglePlan.forward`."""
        m = x.shape[-1]
        z = _room((*x.shape[:-1], self.n), self.dtype.to_complex(), self.device, slot)
        used = self._multiply_(z[..., :m].copy_(x))
        z[..., m:].zero_()
        if conj:
            used.conj_physical_()
        return ifft_(z) if conj else fft_(z)

    def inverse(self, X: Tensor, out: Tensor, conj: bool = False) -> Tensor:
        """As `RightAnglePlan.inverse`."""
        z = (fft_(X) if conj else ifft_(X))[..., : out.shape[-1]]
        return _copy_real(self._multiply_(z if conj else z.conj_physical_()), out, 1 / self.n)

    def _multiply_(self, z: Tensor) -> Tensor:
        """Multiply z (..., m <= n) by psi^t in place."""
        psi, m = self.turn(self.half), z.shape[-1]
        z[..., : self.half].mul_(psi[:m])
        z[..., self.half :].mul_(psi[: max(m - self.half, 0)]).mul_(self.psi_half)
        return z


class MonarchPlan:
    """Right-angle transform of n = N1 * N2 points: matrix product over N1, twiddles, inner FFTs over N2.

    With t = t1 N2 + t2 and frequency f = f1 + N1 f2 the kernel psi^t w_n^(t f) splits into
    ``outer[f1, t1] = psi^(t1 N2) w_N1^(t1 f1)``, ``twiddle[f1, t2] = psi^t2 w_n^(t2 f1)`` and ``w_N2^(t2 f2)``,
    where w_m = exp(-2 pi i / m). The rows are real, so the outer DFT is a real product with the stacked real and
    imaginary parts, and rows of x that are zero padding are never multiplied.
    """

    def __init__(self, outer: int, inner: int, dtype: torch.dtype, device: torch.device) -> None:
        self.n, self.N1, self.N2 = outer * inner, outer, inner
        self.dtype, self.device = dtype, device
        f1, t1, t2 = (torch.arange(m, dtype=torch.float64) for m in (outer, outer, inner))
        matrix = _unit_circle(-(f1[:, None] * t1 % outer) / outer - t1 / (4 * outer), dtype, device)
        self.matrix = torch.cat([matrix.real, matrix.imag])  # (2 N1, N1)
        self.matrix_inverse = matrix.T.contiguous() / self.n  # (N1, N1)
        # One table: that of the conjugates would be as long as a row, and to conjugate a row takes 3 per cent.
        self.twiddle = torch.empty(outer, inner, dtype=dtype.to_complex(), device=device)
        for row, f in zip(self.twiddle, f1, strict=True):
            row.copy_(_unit_circle(-(f + 0.25) * t2 / self.n, dtype, device))

    def forward(self, x: Tensor, conj: bool = False, slot: str | None = None) -> Tensor:
        """Transform x (..., m <= n), zero-extended, into factored order; with `conj` the conjugate of that."""
        used = -(-x.shape[-1] // self.N2)  # rows of N2 samples that are not padding
        rows = x.shape[:-1].numel()
        if used * self.N2 != x.shape[-1]:
            x = torch.nn.functional.pad(x, (0, used * self.N2 - x.shape[-1]))
        planar = scratch.empty("planar", (rows, 2 * self.N1, self.N2), self.dtype, self.device)
        torch.bmm(self.matrix[:, :used].expand(rows, -1, -1), x.reshape(rows, used, self.N2), out=planar)
        z = _room((rows, self.N1, self.N2), self.dtype.to_complex(), self.device, slot)
        torch.complex(planar[:, : self.N1], planar[:, self.N1 :], out=z).mul_(self.twiddle)
        return (ifft_(z.conj_physical_()) if conj else fft_(z)).view(*x.shape[:-1], self.n)

    def inverse(self, X: Tensor, out: Tensor, conj: bool = False) -> Tensor:
        """Write the first samples of the row with spectrum X, or its conjugate, into `out`; may overwrite X."""
        shape, rows, used = X.shape, X.shape[:-1].numel(), -(-out.shape[-1] // self.N2)
        z = X.view(rows, self.N1, self.N2)
        # Of a real row: its conjugate is itself, so the twiddles may be those of the way there.
        z = (fft_(z) if conj else ifft_(z).conj_physical_()).mul_(self.twiddle)
        y = scratch.empty("planar", (rows, used, self.N2), z.dtype, z.device)
        torch.bmm(self.matrix_inverse[:used].expand(rows, -1, -1), z, out=y)
        return _copy_real(y.view(*shape[:-1], used * self.N2)[..., : out.shape[-1]], out)


Plan = CircularPlan | RightAnglePlan | MonarchPlan


@lru_cache(maxsize=32)
def make_plan(length: int, circular: bool, dtype: torch.dtype, device: torch.device) -> Plan:
    """Choose the transform for rows of `length` samples, computed in `dtype` (float32 or float64)."""
    if circular:
        return CircularPlan(length)
    kept = keeps_setup(device)
    if device.type != "cpu" or length <= (DIRECT_LIMIT if kept else DIRECT_LIMIT_WITHOUT_SETUP):
        n = next_fast_length(length)
        long = n > WHOLE_TABLES and device.type == "cpu"
        return (LongRightAnglePlan if long else RightAnglePlan)(n, dtype, device)
    outer, inner = factorise(length, INNER_LIMIT if kept else INNER_LIMIT_WITHOUT_SETUP)
    return MonarchPlan(outer, inner, dtype, device)


def factorise(length: int, inner_limit: int) -> tuple[int, int]:
    """Return (N1, N2) with N1 * N2 >= `length`: N1 a power of two, N2 a fast length within the limit if it can be."""
    outer = 1 << (math.ceil(length / inner_limit) - 1).bit_length()
    outer = min(max(outer, MIN_OUTER), MAX_OUTER)
    return outer, next_fast_length(-(-length // outer))


def _room(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, slot: str | None) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device) if slot is None else scratch.empty(slot, shape, dtype, device)


def _copy_real(z: Tensor, out: Tensor, scale: float = 1.0) -> Tensor:
    """Write the real part of z, times `scale`, into `out`, of any real dtype.

    A copy from ``z.real`` is strided and not vectorised; narrowing 64-bit integers to their low halves, which hold
    the real parts on a little-endian machine, is, and takes a quarter of the time.
    """
    if z.dtype != torch.complex64 or not z.is_cpu or sys.byteorder != "little":
        return out.copy_(z.real if scale == 1 else z.real * scale)
    wide = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    wide.view(torch.int32).copy_(z.view(torch.int64))
    if scale != 1:
        wide.mul_(scale)
    return out if wide is out else out.copy_(wide)


def _unit_circle(turns: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """exp(2 pi i turns), computed in float64 and then rounded to the complex type of `dtype`."""
    angle = 2 * math.pi * turns
    return torch.complex(angle.cos(), angle.sin()).to(dtype.to_complex()).to(device)
