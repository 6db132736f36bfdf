"""Balanced truncation (Moore 1981) of a modal fit with more states than are wanted, for a bank of filters.

The gramians are sums over the M taps, not over all time: a filter is not asked what it does beyond its last tap. They
are inner products of exponentials, so the modal system is never simulated.

Shapes: D filters, N modes of the wide fit, 2N real states.
"""

import torch
from torch import Tensor

from .bank import Bank, from_eigenvalues
from .best import best
from .exponentials import Exponentials, inner_products

_STEPS = 12  # of the descent of the wide fit


def balanced(bank: Bank, rows: Tensor, order: Tensor, *, tol: float | None = None, excess: float = 2.0) -> None:
    """Offer the poles of the leading `order` balanced states of a fit with `excess` times as many.

    Args:
        bank, rows, order, tol: see `longconv.distill.fitting.fit.Method`.
        excess: > 1.

    Raises:
        ValueError: excess is not above 1.
    """
    if not excess > 1:
        raise ValueError(f"excess must be above 1, got {excess}")
    if not len(rows) or bank.g.shape[1] == 0:
        return
    many = (order * excess).ceil().long()
    wide = Bank(bank.k[rows], int(many.max()), bank.dtype, thorough=False)
    best(wide, wide.every, torch.minimum(many, wide.rank), steps=_STEPS)
    A = _balanced_transition(wide.poles, wide.residues, wide.used, bank.g.shape[1])
    for d in order.unique().tolist():
        d = min(d, A.shape[-1])
        if d == 0:
            continue
        which = (order.clamp(max=A.shape[-1]) == d).nonzero()[:, 0]
        values = torch.linalg.eigvals(A[which, :d, :d])
        bank.offer(rows[which], *from_eigenvalues(values, torch.ones_like(values.real, dtype=torch.bool)), tol=tol)


def _balanced_transition(poles: Tensor, residues: Tensor, used: Tensor, taps: int) -> Tensor:
    """The transition matrices (D, 2N, 2N) in balanced coordinates, strongest first; 0 for states without a say."""
    poles = torch.where(used, poles, 0.0)
    columns = torch.cat([used, used & (poles.imag != 0)], dim=1).to(poles.real.dtype)
    (plain,) = Exponentials(poles, columns > 0, taps).sums(slopes=False)
    Q, P = plain.chunk(2, dim=-1)
    R = torch.where(used, residues, 0.0)
    size = torch.where(R.abs() > 0, R.abs(), 1.0).sqrt()  # half of the residue goes to the input
    R = R / size
    inside = columns[:, :, None] * columns[:, None]
    # States (Re x, Im x) of x <- lambda x + size u, read as Re(R x): (Re f, Re i f) has the sign of Im turned.
    N = poles.shape[1]
    sign = torch.cat([torch.ones(N), -torch.ones(N)]).to(columns)
    pair = size[:, :, None] * size[:, None]
    reach = inner_products(Q * pair, P * pair) * inside * sign[:, None] * sign
    see = inner_products(R[:, :, None] * Q * R[:, None], R[:, :, None] * P * R[:, None].conj()) * inside
    reach, see = _root(reach), _root(see)
    U, s, Vh = torch.linalg.svd(see.mT @ reach)
    weight = torch.where(s > 1e-14 * s[:, :1], 1 / s.clamp(min=1e-300).sqrt(), 0.0)
    into, out = reach @ Vh.mT * weight[:, None], see @ U * weight[:, None]
    A = torch.cat(
        [
            torch.cat([torch.diag_embed(poles.real), -torch.diag_embed(poles.imag)], dim=-1),
            torch.cat([torch.diag_embed(poles.imag), torch.diag_embed(poles.real)], dim=-1),
        ],
        dim=-2,
    )
    return out.mT @ A @ into


def _root(matrix: Tensor) -> Tensor:
    """X with X X^T = matrix, positive semidefinite up to rounding."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt()[:, None]
