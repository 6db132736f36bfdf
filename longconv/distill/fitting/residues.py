"""Linear least squares for the residues of given poles, for a bank of filters at once."""

import math

import torch
from torch import Tensor

from .exponentials import Exponentials, Normal, geometric, padded, pair, to_complex

_NORMAL = 1e-8  # least eps whose square normal equations in float64 resolve
_GAP = 1e-6  # of the squared residual
_NORMAL_ELEMENTS = 1 << 15  # complex numbers of one (D, N, 2N) table in flight
BLOCK_ELEMENTS = 1 << 20  # float64 elements of a basis in flight: channels are worked through in blocks


def fit_residues(poles: Tensor, used: Tensor, g: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Least squares for g_t = Re sum_n R_n lambda_n^t.

    The columns, Re lambda^t and -Im lambda^t, are normalised, and minimised is ||B c - g||^2 + eps^2 ||c||^2: errors of
    relative size eps in the columns cost as much as the residual they cause. Clustered poles make B ill-conditioned.
    For the eps of single precision normal equations in float64 are good enough mostly; where they are not, and for
    smaller eps, the way is orthogonal throughout (QR, then the SVD of R).

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
    rows = torch.arange(D, device=g.device)
    if eps >= _NORMAL:
        block = max(1, _NORMAL_ELEMENTS // (2 * N * N))
        solved = torch.zeros(D, dtype=torch.bool, device=g.device)
        for part in rows.split(block):
            found = _by_normal_equations(poles[part], used[part], g[part], eps)
            residues[part], residual[part], solved[part] = found
        rows = rows[~solved]
    for part in rows.split(max(1, BLOCK_ELEMENTS // (2 * N * M))):
        residues[part], residual[part] = _orthogonally(poles[part], used[part], g[part], eps)
    return residues, residual


def _orthogonally(poles: Tensor, used: Tensor, g: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    M, N = g.shape[1], poles.shape[-1]
    basis = _real_basis(poles, used, M)
    length = torch.linalg.vector_norm(basis, dim=-1, keepdim=True)
    present = length > 0
    length = torch.where(present, length, 1.0)
    scale = torch.linalg.vector_norm(g, dim=-1)[:, None, None]
    scale = torch.where(scale > 0, scale, 1.0)
    basis /= length
    R = torch.linalg.qr(torch.cat([basis, g[:, None] / scale], dim=1).mT, mode="r")[1]
    r, target = R[:, : 2 * N, : 2 * N], R[:, : 2 * N, 2 * N :]
    U, s, Vh = torch.linalg.svd(r, full_matrices=False)
    # Columns that are not there are rounding errors of s, which the quotient makes large.
    c = Vh.mT @ ((s / (s * s + eps * eps))[..., None] * (U.mT @ target)) * present
    missed = torch.cat([r @ c - target, R[:, 2 * N :, 2 * N :]], dim=1)
    return to_complex((c * scale / length)[..., 0]), torch.linalg.vector_norm(missed, dim=(1, 2)) * scale[:, 0, 0]


def _by_normal_equations(poles: Tensor, used: Tensor, g: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Residues, residual norms, and whether they are the minimum. They are not where a pair is nearly real."""
    scale = torch.linalg.vector_norm(g, dim=-1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)
    columns = torch.cat([used, used & (poles.imag != 0)], dim=1)
    basis = Exponentials(torch.where(used, poles, 0.0), columns, g.shape[1])
    normal = Normal.of(basis.sums(slopes=False)[0], columns, ridge=eps * eps)
    target, c = padded(g / scale), torch.zeros_like(columns, dtype=g.dtype)
    down = pair(basis.correlate(target)) * columns
    for _ in range(3):  # the second and third time for what rounding left
        c = c + normal.solve(down) * columns
        left = basis.residual(target, to_complex(c))
        down = pair(basis.correlate(left)) * columns - eps * eps * normal.norm.square() * c
    loss = left.square().sum(-1)
    gap = (down * normal.solve(down)).sum(-1)  # what one more would gain
    return to_complex(c * scale), loss.sqrt() * scale[:, 0], gap <= _GAP * loss + torch.finfo(g.dtype).eps


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
