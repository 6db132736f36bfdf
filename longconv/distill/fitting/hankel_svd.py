"""Leading singular values and left singular vectors of the Hankel matrices of a bank of filters.

For long filters H is never formed: H X is an FFT correlation, and the leading singular vectors come from randomised
subspace iteration (Halko, Martinsson & Tropp 2011). The start is seeded, so results repeat.

Shapes: D filters, M taps after lag 0, H of m = M // 2 + 1 rows and q = M - m + 1 columns (none if M = 0), n singular
values wanted, l >= n vectors carried along.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 20  # float64 elements in flight: channels are worked through in blocks
_DENSE_ROWS = 128  # up to here a dense SVD is faster than the iteration
_OVERSAMPLE = 12
_OVERSAMPLE_QUICK = 5
_FIRST = 24  # vectors to begin with: many a filter is of lower rank than what is asked for
_ROUNDS = 4  # at most, of H^T then H, after the first H


class Section(NamedTuple):
    """What is known of the Hankel matrices of D filters.

    `sigma` (D, n) are the singular values, largest first. Of left singular vectors U (m, l), l >= n, `shift`
    (D, l, l) is U[:-1]^T U[1:] and `last_row` (D, l) the last row: all that ERA needs.
    """

    sigma: Tensor
    shift: Tensor
    last_row: Tensor


def hankel_sections(k: Tensor, n: int, *, thorough: bool = True) -> Section:
    """Leading singular triples of H_{ij} = g_{i+j} (see hankel.py) for taps k = h_0, g of (D, L).

    Without `thorough`, from one pass: enough for what falls off, some per cent low where the spectrum is flat; and
    values below the noise of the taps' dtype may be given as 0.
    """
    g = k[:, 1:].double()
    D, M = g.shape
    q = M - M // 2 if M else 0
    width = min(n + (_OVERSAMPLE if thorough else _OVERSAMPLE_QUICK), q)
    out = Section(g.new_zeros(D, n), g.new_zeros(D, width, width), g.new_zeros(D, width))
    if M == 0 or D == 0:
        return out
    # Unit scale: squares of tiny taps must not underflow.
    scale = g.abs().amax(-1, keepdim=True)
    scaled = g / torch.where(scale > 0, scale, 1.0)
    noise = torch.finfo(k.dtype).eps * torch.linalg.vector_norm(scaled, dim=-1)
    rows = torch.arange(D, device=g.device)
    narrow = _FIRST if not thorough and width > 2 * _FIRST and M > 2 * _DENSE_ROWS else width
    for l in sorted({narrow, width}):
        sigma, shift, last = _sections(scaled[rows], min(n, l), l, thorough)
        out.sigma[rows, : sigma.shape[1]] = sigma * scale[rows]
        out.shift[rows, :l, :l], out.last_row[rows, :l] = shift, last
        # What is left is noise where the last value is. (Rounding of the taps is itself of full rank.)
        rows = rows[sigma[:, -1] > noise[rows]]
        if not len(rows):
            break
    return out


def hankel_norm(g: Tensor, steps: int = 10) -> Tensor:
    """The largest singular value of each H (D,); g (D, M) are the taps after lag 0.

    Above 255 taps by Lanczos on H^T H, which comes close from below.
    """
    D, M = g.shape
    if D == 0 or M == 0:
        return g.new_zeros(D)
    q = M - M // 2
    scale = g.abs().amax(-1, keepdim=True)
    g = g / torch.where(scale > 0, scale, 1.0)
    if M // 2 + 1 <= _DENSE_ROWS:
        return _sections(g, 1, 1, thorough=True)[0][:, 0] * scale[:, 0]
    matrix = _Hankel(g)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(q, generator=generator, dtype=g.dtype).to(g.device)
    v, before = (start / start.norm()).expand(D, q), torch.zeros(D, q, dtype=g.dtype, device=g.device)
    alphas, betas = [], [torch.zeros(D, dtype=g.dtype, device=g.device)]
    for _ in range(min(steps, q)):
        # Without reorthogonalisation: what rounding brings back are copies of the values that have been found.
        w = matrix.columns(matrix.rows(v[:, None]))[:, 0] - betas[-1][:, None] * before
        alphas.append((w * v).sum(-1))
        w = w - alphas[-1][:, None] * v
        betas.append(torch.linalg.vector_norm(w, dim=-1))
        before, v = v, torch.where(betas[-1] > 1e-14 * alphas[0], 1 / betas[-1].clamp(min=1e-300), 0.0)[:, None] * w
    betas = betas[1:]
    T = torch.diag_embed(torch.stack(alphas, -1))
    if len(betas) > 1:
        off = torch.diag_embed(torch.stack(betas[:-1], -1), offset=1)
        T = T + off + off.mT
    return torch.linalg.eigvalsh(T)[:, -1].clamp(min=0).sqrt() * scale[:, 0]


def _sections(g: Tensor, n: int, l: int, thorough: bool) -> tuple[Tensor, Tensor, Tensor]:
    """sigma (D, n), shift (D, l, l) and last row (D, l) for taps g (D, M) of unit scale."""
    D, M = g.shape
    m, q = M // 2 + 1, M - M // 2
    dense = m <= _DENSE_ROWS or 2 * l >= m
    block = max(1, BLOCK_ELEMENTS // max(1, m * q if dense else 2 * l * M))
    sigma, shift, last = g.new_zeros(D, n), g.new_zeros(D, l, l), g.new_zeros(D, l)
    generator = torch.Generator().manual_seed(0)
    start = None if dense else torch.randn(l, q, generator=generator, dtype=g.dtype).to(g.device)
    for begin in range(0, D, block):
        rows = slice(begin, begin + block)
        # Left singular vectors are the rows of turn^T Q. All that is needed of them are products, so they stay apart.
        if start is None:
            s, Q = _dense_svd(g[rows], m, q, l)
            shift[rows], last[rows] = Q[..., :-1] @ Q[..., 1:].mT, Q[..., -1]
        else:
            s, Q, turn = _randomised_svd(g[rows], start, n, _ROUNDS if thorough else 0)
            shift[rows] = turn.mT @ (Q[..., :-1] @ Q[..., 1:].mT) @ turn
            last[rows] = (Q[..., -1:].mT @ turn)[:, 0]
        sigma[rows] = s[:, :n]
    return sigma, shift, last


def _dense_svd(g: Tensor, m: int, q: int, l: int) -> tuple[Tensor, Tensor]:
    """Singular values (D, l) and left singular vectors in rows (D, l, m)."""
    H = g.unfold(-1, q, 1)  # (D, m, q)
    if m != q:
        U, s, _ = torch.linalg.svd(H, full_matrices=False)
        return s[:, :l], U[..., :l].mT
    values, vectors = torch.linalg.eigh(H)  # symmetric: ten times cheaper
    s, index = values.abs().sort(dim=-1, descending=True, stable=True)
    return s[:, :l], vectors.gather(-1, index[:, None, :l].expand(-1, m, -1)).mT


class _Hankel:
    """H and H^T of filters g (D, M), applied by FFT to vectors in rows (D, l, ·)."""

    def __init__(self, g: Tensor) -> None:
        M = g.shape[-1]
        self.m, self.q = M // 2 + 1, M - M // 2
        self.size = 1 << (M - 1).bit_length()
        self.spectrum = torch.fft.rfft(g, self.size)[:, None]

    def rows(self, x: Tensor) -> Tensor:
        """H x: (D, l, q) -> (D, l, m)."""
        return self._apply(x, self.m)

    def columns(self, x: Tensor) -> Tensor:
        """H^T x: (D, l, m) -> (D, l, q)."""
        return self._apply(x, self.q)

    def _apply(self, x: Tensor, length: int) -> Tensor:
        # sum_j g_{i+j} x_j is a correlation; i + j < M <= size, so nothing wraps.
        X = torch.fft.rfft(x, self.size).conj_physical_()
        # In place, but where one x serves all filters.
        X = X.mul_(self.spectrum) if len(X) == len(self.spectrum) else X * self.spectrum
        return torch.fft.irfft(X, self.size)[..., :length]


def _randomised_svd(g: Tensor, start: Tensor, n: int, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Subspace iteration from the vectors of start (l, q): sigma (D, l), Q (D, l, m), and the rotation (D, l, l).

    Vectors are rows, contiguous for the FFT and column-major for QR. The left singular vectors are rotation^T Q.
    """
    matrix = _Hankel(g)

    def orthonormal(rows: Tensor) -> Tensor:
        return torch.linalg.qr(rows.mT)[0].mT

    Q = orthonormal(matrix.rows(start[None]))
    for count in range(1, rounds + 1):
        Q, R = torch.linalg.qr(matrix.rows(orthonormal(matrix.columns(Q))).mT)
        Q = Q.mT
        # What is missing from the n-th vector shrinks by (sigma_l / sigma_n)^2 a round. Steep spectra need no more.
        s = torch.linalg.svdvals(R)
        if count > 1 and (s[:, -1] <= 0.3 * s[:, n - 1]).all():
            break
    R = torch.linalg.qr(matrix.columns(Q).mT, mode="r")[1]  # Q^T H = R^T (orthonormal)^T
    U, s, _ = torch.linalg.svd(R.mT)
    return s, Q, U
