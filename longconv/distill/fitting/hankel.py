"""Hankel-SVD realisation: the best-understood way from a bank of filters to stable modal recurrences.

The taps g_j = k_{j+1} after lag 0 fill a Hankel matrix H_{ij} = g_{i+j}. A recurrence with d real states has
rank H <= d, so the singular values of H say what any order can do, and the shift invariance of the leading left
singular vectors yields the poles (Ho & Kalman 1966; Kung 1978; Juang & Pappa 1985, "ERA"). Massaroli et al. 2023
(Laughing Hyena) choose the order from the same values.

Which matrix: H is the section that is as square as L - 1 taps allow, m = (L - 1) // 2 + 1 rows and L - m columns,
each tap on one antidiagonal and nothing invented beyond tap L - 1. The triangular, zero-padded matrix of the same taps
is the Hankel operator of the *truncated* filter: it sees a jump at the end of any filter that has not died out, and
does not return the poles of an exact modal system. (To get it, pad k with L zeros.)

Shapes: D channels, L taps, M = L - 1 taps after lag 0, d real states, n singular values.
"""

import math

import torch
from torch import Tensor

from .bank import Bank, from_eigenvalues, map_parallel, pieces_of
from .hankel_svd import hankel_sections
from .report import error_bound, ratio

_FALLBACK_STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16)
_SUSPECT = 32.0  # a fit this many times above what the singular values promise is worth a look at other orders
_DONE = 1e3  # a fit this many roundings from the taps is not


@torch.no_grad()
def hankel_singular_values(k: Tensor, n: int) -> Tensor:
    """Return the n leading Hankel singular values of each filter, largest first.

    The matrix is the section described in the module docstring; lag 0 is not in it. Values beyond its size are 0.
    Relative to the largest, they are good to about 1e-15 where they fall off; in a flat spectrum the last few of a
    filter of more than 255 taps can be some per cent low.

    Args:
        k: (D, L) real taps, L >= 1.
        n: how many, >= 1.

    Returns:
        (D, n) float64 on k's device.

    Raises:
        ValueError: k is not a finite real (D, L) tensor with L >= 1, or n < 1.
    """
    check_taps(k)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return torch.cat(map_parallel(lambda rows: hankel_sections(rows.double(), n).sigma, pieces_of(k)))


def hankel(bank: Bank, rows: Tensor, order: Tensor, *, tol: float | None = None) -> None:
    """Offer the poles of ERA with `order` (len(rows),) states, or others of at most as many where those do better.

    Where the fit is far above its lower bound (unstable poles, or a nilpotent part: delays), lower orders and a ring of
    small poles are tried too, so that the error is nearly monotone in the order.
    """
    offer_era(bank, rows, order, tol, give_up=math.inf)


def offer_era(bank: Bank, rows: Tensor, order: Tensor, tol: float | None, give_up: float) -> None:
    """`hankel`, but without other tries where singular values promise no error below `give_up`."""
    error, unstable = _offer(bank, rows, order, tol=tol)
    expected = expected_error(bank, rows, order)
    doubtful = (unstable | (error > _SUSPECT * expected)) & (error > _DONE * bank.eps) & (expected < give_up)
    if tol is not None:
        doubtful &= error > tol
    suspects, tried = rows[doubtful], order[doubtful]
    _offer(bank, suspects, tried, ring=True, tol=tol)
    for step in _FALLBACK_STEPS:
        suspects, tried = suspects[tried > step], tried[tried > step]
        _offer(bank, suspects, tried - step, tol=tol)


def _offer(
    bank: Bank, rows: Tensor, order: Tensor, *, ring: bool = False, tol: float | None = None
) -> tuple[Tensor, Tensor]:
    """Offer ERA's poles; return the errors and which filters had unstable ones."""
    if not len(rows):
        return bank.error[rows], torch.zeros(0, dtype=torch.bool, device=rows.device)
    poles, used = era(bank, rows, order, ring=ring)
    return bank.offer(rows, poles, used, tol=tol), (poles.abs() > math.exp(-bank.eps)).any(-1)


def era(bank: Bank, rows: Tensor, order: Tensor, *, ring: bool = False) -> tuple[Tensor, Tensor]:
    """The poles and used (len(rows), N) of ERA, not necessarily stable; with `ring` see `_spread_small`."""
    values = _shift_poles(bank.section.shift[rows], bank.section.last_row[rows], order)
    if ring:
        values = _spread_small(values, order, bank.eps)
    return from_eigenvalues(values, torch.arange(values.shape[1], device=rows.device) < order[:, None])


def expected_error(bank: Bank, rows: Tensor, order: Tensor) -> Tensor:
    """Of ERA: `error_bound`, with the singular values not computed added through ||H||_F. An estimate, no bound."""
    g, sigma, norm = bank.g[rows], bank.section.sigma[rows], bank.norm[rows]
    M = g.shape[1]
    # ||H||_F^2 counts each tap once per place on its antidiagonal.
    rising = torch.arange(1, M + 1, device=g.device)
    places = torch.minimum(rising, rising.flip(0)).clamp(max=max(1, M - M // 2))
    frobenius = (g * places.sqrt()).square().sum(-1)
    kept = torch.arange(sigma.shape[1], device=g.device) < order[:, None]
    left = (frobenius - (sigma.square() * kept).sum(-1)).clamp(min=0).sqrt()
    return torch.maximum(error_bound(sigma, order, M, norm), ratio(left, norm * math.sqrt(max(1, M) / 2)))


def _shift_poles(shift: Tensor, last_row: Tensor, order: Tensor) -> Tensor:
    """Eigenvalues of the least-squares solution A of U[:-1] A = U[1:] for the first order[i] columns of U, else 0."""
    poles = torch.zeros(len(order), int(order.max()), dtype=torch.complex128, device=order.device)
    for d in order.unique().tolist():
        if d == 0:
            continue
        rows = (order == d).nonzero()[:, 0]
        G, u = shift[rows, :d, :d], last_row[rows, :d]
        # U[:-1]^T U[:-1] = I - u u^T, so one Sherman-Morrison update solves it. If u has length 1, a state lives in the
        # last row alone and has no successor: leave it at that.
        gap = 1 - (u * u).sum(-1)
        gain = torch.where(gap > 1e-12, 1 / gap.clamp(min=1e-12), 0.0)
        A = G + gain[:, None, None] * u[:, :, None] * (u[:, None] @ G)
        poles[rows, :d] = torch.linalg.eigvals(A)
    return poles


def _spread_small(poles: Tensor, order: Tensor, eps: float) -> Tensor:
    """Move the poles of a (nearly) nilpotent part of size c from around 0 onto a ring.

    A delay by c samples is a Jordan block at 0, which modes cannot represent. c poles on a ring of radius r do, up to
    an echo r^c, with residues of r^(1-c): r = eps^(1 / (2c - 1)) balances the echo with the rounding errors.
    """
    poles = poles.clone()
    for row, d in zip(poles, order.tolist(), strict=True):
        radius = row[:d].abs().sort()[0]
        count = torch.arange(1, d + 1, device=row.device)
        ring = eps ** (1 / (2 * count - 1).double())
        small = (radius < ring).nonzero()
        c = int(small[-1]) + 1 if len(small) else 0
        if c < 2 or (c < d and radius[c] == radius[c - 1]):
            continue
        r = float(ring[c - 1])
        angles = [2 * math.pi * j / c for j in range(1, (c + 1) // 2)]
        values = [complex(r * math.cos(a), s * r * math.sin(a)) for a in angles for s in (1, -1)]
        values += [complex(r)] + ([complex(-r)] if c % 2 == 0 else [])
        kept = row[:d][row[:d].abs() > radius[c - 1]]
        row[:d] = torch.cat([kept, torch.tensor(values, dtype=row.dtype, device=row.device)])
    return poles


def check_taps(k: Tensor) -> None:
    """Raise ValueError unless k is a finite real (D, L) tensor with L >= 1."""
    if k.dim() != 2 or k.shape[-1] < 1 or not k.is_floating_point():
        raise ValueError(f"k must be a real tensor (D, L) with L >= 1, got {k.dtype} {tuple(k.shape)}")
    if not k.isfinite().all():
        raise ValueError("k must be finite")
