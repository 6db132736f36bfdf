"""Inner products of damped exponentials with each other and with taps, without forming them.

What makes fitting many poles to many taps cheap: the inner products of lambda_n^t, t lambda_n^t, ... are sums of z^t,
t z^t and t^2 z^t over the taps, with z = lambda_n lambda_m or its conjugate partner, O(N^2) in closed form instead of
O(N^2 M); and what they make of a residual comes from exponents split in two, O(N M). Normal equations lose half of
the digits; residuals computed in the time domain and solved for once more give them back.

Shapes: D filters, M taps (after lag 0), N modes. Real columns stand as (Re f, Re i f), 2N of them.
"""

import dataclasses
import math

import torch
from torch import Tensor

_RIDGE = 1e-13  # relative, on normalised columns
# |1 - z| below which power sums are not taken in closed form, which loses a factor of 1 / |1 - z| of their precision;
# and the same times the number of taps, below which the slopes lose more.
_NEAR, _FEW = 1e-3, 0.1


class Exponentials:
    """lambda_n^t, t < M, of D filters: as tables of lambda^b and lambda^(a T), t = a T + b.

    Args:
        poles: (D, N) complex128; 0 for padding.
        columns: (D, 2N) bool: which real columns there are (a real pole has no second one).
        count: M.
    """

    def __init__(self, poles: Tensor, columns: Tensor, count: int) -> None:
        self.poles, self.columns, self.count = poles, columns, count
        self.T, C = _split(count)
        inner = geometric(poles, self.T + 1).mT  # (D, T + 1, N)
        self.outer = geometric(inner[:, self.T], C).mT  # (D, C, N)
        self.inner = torch.view_as_real(inner[:, : self.T].contiguous()).flatten(-2)  # (D, T, 2N)

    def residual(self, g: Tensor, residues: Tensor) -> Tensor:
        """g_t - Re sum_n R_n lambda_n^t of `padded` taps g, padded."""
        left = torch.view_as_real((residues[:, None] * self.outer).conj_physical_()).flatten(-2)
        out = torch.baddbmm(g.unflatten(1, (-1, self.T)), left, self.inner.mT, alpha=-1).flatten(1)
        out[:, self.count :] = 0.0
        return out

    def correlate(self, r: Tensor, slope: bool = False) -> Tensor:
        """sum_t r_t lambda^t, or with `slope` sum_t t r_t lambda^t, (D, N), of padded r."""
        if slope:
            r = r * torch.arange(r.shape[1], dtype=r.dtype, device=r.device)
        parts = torch.view_as_complex(torch.bmm(r.unflatten(1, (-1, self.T)), self.inner).unflatten(-1, (-1, 2)))
        return parts.mul_(self.outer).sum(1)

    def sums(self, slopes: bool) -> tuple[Tensor, ...]:
        """`power_sums` of lambda_n lambda_m and of lambda_n conj(lambda_m), side by side: (D, N, 2N) each."""
        lam = self.poles
        last = power(lam, self.count)
        z, zM = (x[:, :, None] * torch.cat([x, x.conj()], dim=1)[:, None] for x in (lam, last))
        return power_sums(z, self.count, slopes, last=zM)


def padded(g: Tensor) -> Tensor:
    """Taps (D, M) with zeros behind them, as many as `Exponentials` needs to split exponents in two."""
    T, C = _split(g.shape[1])
    return torch.nn.functional.pad(g, (0, C * T - g.shape[1]))


def _split(count: int) -> tuple[int, int]:
    """T and C for exponents a T + b with a < C and b < T, at least `count` of them."""
    T = max(1, 1 << (math.isqrt(count).bit_length() - 1))
    return T, -(-count // T)


@dataclasses.dataclass
class Normal:
    """The normal equations of exponentials with normalised columns: Cholesky `factor` (D, 2N, 2N), `norm` (D, 2N)."""

    factor: Tensor
    norm: Tensor

    @classmethod
    def of(cls, plain: Tensor, columns: Tensor, ridge: float = _RIDGE) -> "Normal":
        """From `Exponentials.sums` and the real columns there are, plus ridge |c|^2 for columns of unit norm."""
        block = inner_products(*plain.chunk(2, dim=-1)) * (columns[:, :, None] & columns[:, None])
        norm = block.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
        norm = torch.where(norm > 0, norm, 1.0)
        block = block / (norm[:, :, None] * norm[:, None])
        block.diagonal(dim1=1, dim2=2).add_(ridge + (~columns).to(block.dtype))
        return cls(torch.linalg.cholesky_ex(block)[0], norm)

    def solve(self, rhs: Tensor) -> Tensor:
        """Coefficients (D, 2N) from inner products with the columns (D, 2N)."""
        return torch.cholesky_solve((rhs / self.norm)[..., None], self.factor)[..., 0] / self.norm

    def fit(
        self, basis: Exponentials, g: Tensor, residues: Tensor, sweeps: int, left: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Improve residues (D, N) towards the fit of `padded` taps g: residues, and what is `left` of g, padded."""
        left = basis.residual(g, residues) if left is None else left
        for _ in range(sweeps):
            residues = residues + to_complex(self.solve(pair(basis.correlate(left)) * basis.columns))
            left = basis.residual(g, residues)
        return residues, left


def pair(x: Tensor) -> Tensor:
    """Inner products with the columns (Re f, Re i f), from those with f: (D, N) complex -> (D, 2N)."""
    return torch.cat([x.real, -x.imag], dim=1)


def to_complex(c: Tensor) -> Tensor:
    """Coefficients of the columns (Re f, Re i f), (D, 2N), as those of f: (D, N) complex."""
    return torch.complex(*c.chunk(2, dim=1))


def inner_products(Q: Tensor, P: Tensor) -> Tensor:
    """Of columns (Re f, Re i f) with (Re h, Re i h): (D, 2N, 2N), from Q = sum f h and P = sum f conj(h), (D, N, N)."""
    top = torch.cat([Q.real + P.real, P.imag - Q.imag], dim=-1)
    bottom = torch.cat([-P.imag - Q.imag, P.real - Q.real], dim=-1)
    return torch.cat([top, bottom], dim=1) * 0.5


def power_sums(z: Tensor, count: int, slopes: bool, last: Tensor | None = None) -> tuple[Tensor, ...]:
    """sum_t z^t, and with `slopes` sum_t t z^t and sum_t t^2 z^t, over 0 <= t < count; `last` is z^count, if known.

    In closed form, but by doubling where z is so close to 1 that digits would cancel.
    """
    last = power(z, count) if last is None else last
    limit = max(_NEAR, _FEW / count)
    near = (z.real > 1 - limit) & (z.imag.abs() < limit)
    r = (1 - torch.where(near, 0.0, z)).reciprocal()
    sums = [(1 - last) * r]
    if slopes:
        sums.append((z * sums[0] - count * last) * r)
        sums.append((z * (sums[0] + 2 * sums[1]) - count**2 * last) * r)
    if near.any():
        for total, exact in zip(sums, _power_sums_by_doubling(z[near], count, slopes), strict=True):
            total[near] = exact
    return tuple(sums)


def _power_sums_by_doubling(z: Tensor, count: int, slopes: bool) -> tuple[Tensor, ...]:
    """`power_sums` without any cancellation that is not in the sums themselves, however close z is to 1."""
    s0, zn, n = torch.ones_like(z), z, 1
    s1 = s2 = torch.zeros_like(z) if slopes else s0
    for bit in bin(count)[3:]:
        if slopes:
            moved = s1 + n * s0
            s2 = s2 + zn * (s2 + n * (s1 + moved))
            s1 = s1 + zn * moved
        s0 = s0 + zn * s0
        zn, n = zn * zn, 2 * n
        if bit == "1":
            if slopes:
                s1, s2 = s1 + n * zn, s2 + (n * n) * zn
            s0 = s0 + zn
            zn, n = zn * z, n + 1
    return (s0, s1, s2) if slopes else (s0,)


def power(z: Tensor, n: int) -> Tensor:
    """z^n for n >= 1, by squaring."""
    result = z
    for bit in bin(n)[3:]:
        result = result * result
        if bit == "1":
            result = result * z
    return result


def geometric(ratio: Tensor, count: int) -> Tensor:
    """(…) -> (…, count): ratio^0 .. ratio^(count-1), by doubling."""
    table, square = torch.ones_like(ratio)[..., None], ratio[..., None]
    while table.shape[-1] < count:
        table, square = torch.cat([table, table * square], dim=-1), square * square
    return table[..., :count]
