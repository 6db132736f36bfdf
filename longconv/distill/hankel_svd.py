"""Leading singular values and left singular vectors of the Hankel matrices of a bank of filters.

For long filters H is never formed: H X is an FFT correlation, and the leading singular vectors come from randomised
subspace iteration (Halko, Martinsson & Tropp 2011). The start is seeded, so results repeat.
"""

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 20  # float64 elements in flight: channels are worked through in blocks
_DENSE_ROWS = 128  # up to here a dense SVD is faster than the iteration
_OVERSAMPLE = 12
_ROUNDS = 4  # at most, of H^T then H, after the first H


def hankel_svd(g: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triples of H_{ij} = g_{i+j} (see `longconv.distill.hankel`), reduced to what ERA needs.

    Args:
        g: (D, M) float64, the taps after lag 0; H has m = M // 2 + 1 rows and q = M - m + 1 columns (none if M = 0).
        n: how many singular values.

    Returns sigma (D, n), and for l <= n + _OVERSAMPLE left singular vectors U (m, l): U[:-1]^T U[1:] (D, l, l) and the
    last row of U (D, l).
    """
    D, M = g.shape
    m = M // 2 + 1 if M else 0
    q = M - m + 1 if M else 0
    l = min(n + _OVERSAMPLE, q)
    dense = m <= _DENSE_ROWS or 2 * l >= m
    block = max(1, BLOCK_ELEMENTS // max(1, m * q if dense else 2 * l * M))
    sigma, shift, last = g.new_zeros(D, n), g.new_zeros(D, l, l), g.new_zeros(D, l)
    for start in range(0, D if M else 0, block):
        rows = slice(start, start + block)
        # Unit scale: squares of tiny taps must not underflow.
        scale = g[rows].abs().amax(-1, keepdim=True)
        scaled = g[rows] / torch.where(scale > 0, scale, 1.0)
        s, U = _dense_svd(scaled, m, q, l) if dense else _randomised_svd(scaled, m, q, l, min(n, l))
        sigma[rows, : min(n, l)] = s[:, :n] * scale
        shift[rows] = U[:, :-1].mT @ U[:, 1:]
        last[rows] = U[:, -1]
    return sigma, shift, last


def _dense_svd(g: Tensor, m: int, q: int, l: int) -> tuple[Tensor, Tensor]:
    H = g.unfold(-1, q, 1)  # (D, m, q)
    if m != q:
        U, s, _ = torch.linalg.svd(H, full_matrices=False)
        return s[:, :l], U[..., :l]
    values, vectors = torch.linalg.eigh(H)  # symmetric: ten times cheaper
    s, index = values.abs().sort(dim=-1, descending=True, stable=True)
    return s[:, :l], vectors.gather(-1, index[:, None, :l].expand(-1, m, -1))


def _randomised_svd(g: Tensor, m: int, q: int, l: int, n: int) -> tuple[Tensor, Tensor]:
    """Subspace iteration with H by FFT; vectors are rows (D, l, m), contiguous for the FFT and column-major for QR."""
    size = 1 << (g.shape[-1] - 1).bit_length()
    spectrum = torch.fft.rfft(g, size)[:, None]

    def apply(rows: Tensor, length: int) -> Tensor:
        # sum_j g_{i+j} x_j is a correlation; i + j < M <= size, so nothing wraps.
        return torch.fft.irfft(torch.fft.rfft(rows, size).conj() * spectrum, size)[..., :length]

    def orthonormal(rows: Tensor) -> Tensor:
        return torch.linalg.qr(rows.mT)[0].mT

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(l, q, generator=generator, dtype=g.dtype).to(g.device)
    Q = orthonormal(apply(start.expand(len(g), -1, -1), m))
    for count in range(1, _ROUNDS + 1):
        Q, R = torch.linalg.qr(apply(orthonormal(apply(Q, q)), m).mT)
        Q = Q.mT
        # What is missing from the n-th vector shrinks by (sigma_l / sigma_n)^2 a round. Steep spectra need no more.
        s = torch.linalg.svdvals(R)
        if count > 1 and (s[:, -1] <= 0.3 * s[:, n - 1]).all():
            break
    R = torch.linalg.qr(apply(Q, q).mT, mode="r")[1]  # Q^T H = R^T (orthonormal)^T
    U, s, _ = torch.linalg.svd(R.mT)
    return s, Q.mT @ U
