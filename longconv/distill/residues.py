"""Linear least squares for the residues of given poles, for a bank of filters at once."""

import math

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 20  # float64 elements of a basis in flight: channels are worked through in blocks


def fit_residues(poles: Tensor, used: Tensor, g: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Least squares for g_t = Re sum_n R_n lambda_n^t.

    The columns, Re lambda^t and -Im lambda^t, are normalised, and minimised is ||B c - g||^2 + eps^2 ||c||^2: errors of
    relative size eps in the columns cost as much as the residual they cause. Orthogonal throughout (QR, then the SVD of
    R): clustered poles make B ill-conditioned.

    Args:
        poles: (D, N) complex128.
        used: (D, N) bool; other modes get residues of 0, and real poles real ones.
        g: (D, M) float64, the taps after lag 0.
        eps: relative error of a column.

    Returns:
        The residues (D, N) complex128, and the residual norms (D,).
    """
    (D, M), N = g.shape, poles.shape[-1]
    residues, residual = poles.new_zeros(D, N), torch.linalg.vector_norm(g, dim=-1)
    if N == 0 or M == 0:
        return residues, residual
    block = max(1, BLOCK_ELEMENTS // (2 * N * M))
    for start in range(0, D, block):
        rows = slice(start, start + block)
        basis = _real_basis(poles[rows], used[rows], M)
        length = torch.linalg.vector_norm(basis, dim=-1, keepdim=True)
        present = length > 0
        length = torch.where(present, length, 1.0)
        scale = residual[rows, None, None]
        scale = torch.where(scale > 0, scale, 1.0)
        basis /= length
        R = torch.linalg.qr(torch.cat([basis, g[rows, None] / scale], dim=1).mT, mode="r")[1]
        r, target = R[:, : 2 * N, : 2 * N], R[:, : 2 * N, 2 * N :]
        U, s, Vh = torch.linalg.svd(r, full_matrices=False)
        # Columns that are not there are rounding errors of s, which the quotient makes large.
        c = Vh.mT @ ((s / (s * s + eps * eps))[..., None] * (U.mT @ target)) * present
        missed = torch.cat([r @ c - target, R[:, 2 * N :, 2 * N :]], dim=1)
        c = (c * scale / length)[..., 0]
        residues[rows] = torch.complex(c[:, :N], c[:, N:])
        residual[rows] = torch.linalg.vector_norm(missed, dim=(1, 2)) * scale[:, 0, 0]
    return residues, residual


def _real_basis(poles: Tensor, used: Tensor, taps: int) -> Tensor:
    """(D, 2N, taps) float64: rows Re lambda^t, then rows -Im lambda^t; zero where there is no such state."""
    T = max(1, math.isqrt(taps))
    inner = geometric(poles, T + 1)
    outer = geometric(inner[..., T], -(-taps // T))
    fine = inner[..., :T]
    # Re and -Im of outer * fine as real products of inner dimension two.
    outer = torch.view_as_real(outer)
    real = (outer @ torch.stack([fine.real, -fine.imag], dim=-2)).flatten(-2)[..., :taps]
    imag = (outer @ torch.stack([-fine.imag, -fine.real], dim=-2)).flatten(-2)[..., :taps]
    return torch.cat([real * used[..., None], imag * (used & (poles.imag != 0))[..., None]], dim=1)


def geometric(ratio: Tensor, count: int) -> Tensor:
    """(…) -> (…, count): ratio^0 .. ratio^(count-1), by doubling."""
    table, square = torch.ones_like(ratio)[..., None], ratio[..., None]
    while table.shape[-1] < count:
        table, square = torch.cat([table, table * square], dim=-1), square * square
    return table[..., :count]
