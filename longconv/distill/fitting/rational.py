"""Rational approximation of the frequency response: AAA (Nakatsukasa, Sete & Trefethen 2018), for a bank of filters.

The response of the M taps after lag 0 is sampled at the M-th roots of unity, where an exponential that is cut off after
M taps is still rational: sum_t lambda^t z^-t = (1 - lambda^M) z / (z - lambda). AAA interpolates at support points that
it takes greedily where the error is largest, with barycentric weights that minimise the linearised error elsewhere;
here the points come in conjugate pairs and the weights with them, so that the poles do too. n poles take n + 1 points:
z = 1 is one of them if n is even.

Shapes: D filters, M taps after lag 0, J samples on the upper half of the circle, n poles, m = n + 1 weights.
"""

import math

import torch
from torch import Tensor

from .bank import Bank, from_eigenvalues

_BLOCK_ELEMENTS = 1 << 20  # float64 elements of the (D, 2 J, m) Loewner matrices in flight


def rational(bank: Bank, rows: Tensor, order: Tensor, *, tol: float | None = None) -> None:
    """Offer the poles of AAA's approximants with `order` poles; those outside the unit circle mirrored into it.

    Args:
        bank, rows, order, tol: see `longconv.distill.fitting.fit.Method`.
    """
    M = bank.g.shape[1]
    for n in order.unique().tolist():
        if n == 0 or M < 3:
            continue
        which = (order == n).nonzero()[:, 0]
        # As many distinct support points as there are samples.
        n = min(n, 2 * ((M - 1) // 2) - 1)
        block = max(1, _BLOCK_ELEMENTS // ((n + 1) * M))
        for part in which.split(block):
            values = _aaa_poles(bank.g[rows[part]], n)
            outside = values.abs() > 1
            values = torch.where(outside, values / values.abs().square().clamp(min=1e-300), values)
            present = torch.ones_like(outside)
            bank.offer(rows[part], *from_eigenvalues(values, present), tol=tol)


def _aaa_poles(g: Tensor, n: int) -> Tensor:
    """The n poles (D, n) complex128 of the approximants to taps g (D, M); conjugate pairs are neighbours."""
    D, M = g.shape
    scale = g.abs().amax(-1, keepdim=True)
    F = torch.fft.rfft(g / torch.where(scale > 0, scale, 1.0))
    # A Nyquist sample has no partner and is left out, as is z = 1 where it is no support point.
    J, start = (M - 1) // 2 + 1, 0 if n % 2 == 0 else 1
    F = F[:, :J]
    z = torch.polar(torch.ones(J, dtype=torch.float64), 2 * math.pi / M * torch.arange(J, dtype=torch.float64)).to(
        F.device
    )
    free = torch.ones(D, J, dtype=torch.bool, device=F.device)
    free[:, 0] = False
    columns, error = [], F.abs()
    numerator, denominator = [], []
    if start == 0:
        apart = z - z[0]
        inverse = torch.where(apart.abs() > 0, 1 / apart, 0.0).expand(D, J)
        columns.append((F - F[:, :1]) * inverse)
        numerator.append(F[:, :1] * inverse)
        denominator.append(inverse)
        error = (F - F[:, :1]).abs()
    support = torch.zeros(D, 0, dtype=torch.long, device=F.device)
    weights = F.real[:, :0]
    for _ in range((n + 1) // 2):
        new = torch.where(free, error, -1.0).argmax(1)
        free[torch.arange(D), new] = False
        support = torch.cat([support, new[:, None]], dim=1)
        zk, fk = z[new][:, None], F.gather(1, new[:, None])
        near = torch.where(z == zk, 0.0, 1 / torch.where(z == zk, 1.0, z - zk))
        far = torch.where(z == zk.conj(), 0.0, 1 / torch.where(z == zk.conj(), 1.0, z - zk.conj()))
        # w C + conj(w) C' = Re(w) (C + C') + Im(w) i (C - C')
        for table, (p, q) in (
            (columns, ((F - fk) * near, (F - fk.conj()) * far)),
            (numerator, (fk * near, fk.conj() * far)),
            (denominator, (near, far)),
        ):
            table.extend([p + q, 1j * (p - q)])
        loewner = torch.stack(columns, dim=-1) * free[..., None]
        loewner = torch.cat([loewner.real, loewner.imag], dim=1)
        R = torch.linalg.qr(loewner, mode="r")[1]
        weights = torch.linalg.svd(R, full_matrices=False)[2][:, -1]
        w = weights[:, None] + 0j
        bottom = (torch.stack(denominator, -1) * w).sum(-1)
        top = (torch.stack(numerator, -1) * w).sum(-1)
        error = (F - top / torch.where(bottom == 0, 1.0, bottom)).abs()
    return _zeros(z[support], weights, start == 0)


def _zeros(z: Tensor, weights: Tensor, at_one: bool) -> Tensor:
    """Zeros (D, m - 1) of sum_k w_k / (z - z_k) + conj., with real `weights` (D, m): first that of z = 1 if `at_one`.

    They are the zeros of the real system c (zI - A)^-1 b with the points as poles: eigenvalues of A - b c A / (c b),
    which has one more, 0.
    """
    D, m = weights.shape
    A, b = weights.new_zeros(D, m, m), weights.new_zeros(D, m)
    i = 0
    c = weights.clone()
    if at_one:
        A[:, 0, 0], b[:, 0], i = 1.0, 1.0, 1
    for k in range(z.shape[1]):
        A[:, i, i] = A[:, i + 1, i + 1] = z[:, k].real
        A[:, i, i + 1], A[:, i + 1, i] = -z[:, k].imag, z[:, k].imag
        b[:, i] = 1.0
        c[:, i], c[:, i + 1] = 2 * weights[:, i], -2 * weights[:, i + 1]
        i += 2
    gain = (c * b).sum(-1)
    gain = torch.where(gain.abs() > 1e-14, gain, 1e-14)
    values = torch.linalg.eigvals(A - b[:, :, None] * (c[:, None] @ A) / gain[:, None, None])
    # Drop the additional one: the real one closest to 0.
    size = torch.where(values.imag == 0, values.abs(), torch.inf)
    drop = size.argmin(1)
    keep = torch.arange(m, device=z.device) != drop[:, None]
    return values[keep].view(D, m - 1)
