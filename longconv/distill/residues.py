"""Linear least squares for the residues of given poles, for a bank of filters at once."""

import math

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 20  # float64 elements of a basis in flight: channels are worked through in blocks


def fit_residues(poles: Tensor, order: Tensor, g: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Least squares for g_t = sum_i c_i b_i(t): b_i = Re poles_i^t where Im poles_i >= 0, else Im poles_i^t.

    So a conjugate pair spans what one complex mode does. Columns are normalised, and minimised is
    ||B c - g||^2 + eps^2 ||c||^2: errors of relative size eps in the columns cost as much as the residual they cause.
    Orthogonal throughout (QR, then the SVD of R): clustered poles make B ill-conditioned.

    Returns c (D, d) float64, 0 beyond `order`, and the residual norms ||B c - g|| (D,).
    """
    D, M = g.shape
    d = poles.shape[-1]
    coefficients, residual = g.new_zeros(D, d), torch.linalg.vector_norm(g, dim=-1)
    if d == 0 or M == 0:
        return coefficients, residual
    block = max(1, BLOCK_ELEMENTS // (d * M))
    for start in range(0, D, block):
        rows = slice(start, start + block)
        basis = _real_basis(poles[rows], order[rows], M)
        length = torch.linalg.vector_norm(basis, dim=-1, keepdim=True)
        length = torch.where(length > 0, length, 1.0)
        scale = residual[rows, None, None]
        scale = torch.where(scale > 0, scale, 1.0)
        basis /= length
        R = torch.linalg.qr(torch.cat([basis, g[rows, None] / scale], dim=1).mT, mode="r")[1]
        r, target = R[:, :d, :d], R[:, :d, d:]
        U, s, Vh = torch.linalg.svd(r, full_matrices=False)
        c = Vh.mT @ ((s / (s * s + eps * eps))[..., None] * (U.mT @ target))
        missed = torch.cat([r @ c - target, R[:, d:, d:]], dim=1)
        coefficients[rows] = (c * scale / length)[..., 0]
        residual[rows] = torch.linalg.vector_norm(missed, dim=(1, 2)) * scale[:, 0, 0]
    return coefficients, residual


def _real_basis(poles: Tensor, order: Tensor, taps: int) -> Tensor:
    """(D, d, taps) float64 rows b_i of `fit_residues`; zero rows beyond `order`."""
    d = poles.shape[1]
    T = max(1, math.isqrt(taps))
    inner = _geometric(poles, T + 1)
    outer = _geometric(inner[..., T], -(-taps // T))
    fine = inner[..., :T]
    # Re and Im of outer * fine as real products of inner dimension two.
    real = torch.stack([fine.real, -fine.imag], dim=-2)
    imag = torch.stack([fine.imag, fine.real], dim=-2)
    right = torch.where((poles.imag >= 0)[..., None, None], real, imag)
    right *= (torch.arange(d, device=order.device) < order[:, None])[..., None, None]
    return (torch.view_as_real(outer) @ right).flatten(-2)[..., :taps]


def _geometric(ratio: Tensor, count: int) -> Tensor:
    """(…) -> (…, count): ratio^0 .. ratio^(count-1), by doubling."""
    table, square = torch.ones_like(ratio)[..., None], ratio[..., None]
    while table.shape[-1] < count:
        table, square = torch.cat([table, table * square], dim=-1), square * square
    return table[..., :count]
