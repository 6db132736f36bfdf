"""DFT matrices and twiddles as the kernels load them, and filters' spectra in their order. See `triton_stages.py`.

Everything is computed in float64 (tables) or float32 (spectra) and rounded once. Signals are evaluated at the N points
z_j = exp(-2 pi i (j + 1/4) / N), where z^N = -i: the product of two real signals of N samples comes out modulo z^N + i,
the first N samples of the linear convolution in its real part and the rest, negated, in its imaginary part. So a causal
convolution needs no zero padding, and a lag of -s, z^-s = i z^(N-s), costs no more than one of s.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

SHIFT = 0.25


@lru_cache(maxsize=64)
def dft_matrix(n: int, shift: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """F[j, t] = exp(-2 pi i (j + shift) t / n) / sqrt(n) as (2, n, n): real and imaginary planes."""
    t = torch.arange(n, dtype=torch.float64, device=device)
    return unit_planes((t[:, None] + shift) * t / n, 1 / math.sqrt(n), dtype)


@lru_cache(maxsize=64)
def twiddles(n1: int, n2: int, shift: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """w[j, t] = exp(-2 pi i (j + shift) t / (n1 n2)) as (2, n1, n2)."""
    j = torch.arange(n1, dtype=torch.float64, device=device)
    t = torch.arange(n2, dtype=torch.float64, device=device)
    return unit_planes((j[:, None] + shift) * t / (n1 * n2), 1.0, dtype)


def table_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of twiddles: numbers of modulus 1 are three bits more accurate in float16 than in bfloat16."""
    return torch.float32 if dtype == torch.float32 else torch.float16


def unit_planes(turns: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """scale * exp(-2 pi i turns), turns (...) float64, as (2, ...)."""
    angle = -2 * math.pi * turns.remainder(1.0)
    return settled((scale * torch.stack([angle.cos(), angle.sin()])).to(dtype))


def settled(table: Tensor) -> Tensor:
    """The table, when it is there: it is kept, and whoever takes it next may be on another stream."""
    if table.is_cuda and not torch.cuda.is_current_stream_capturing():
        torch.cuda.current_stream(table.device).synchronize()
    return table


@lru_cache(maxsize=32)
def _turn(n: int, device: torch.device) -> Tensor:
    """exp(-2 pi i t SHIFT / n) for t = 0 ... n - 1, complex64."""
    angle = -2 * math.pi * SHIFT / n * torch.arange(n, dtype=torch.float64, device=device)
    return settled(torch.polar(torch.ones_like(angle), angle).to(torch.complex64))


def points(k: Tensor, k_reverse: Tensor | None, n: int) -> Tensor:
    """The values at z_0 ... z_(n-1) of a two-sided filter: k (D, K), k_reverse (D, K'), K, K' <= n -> (D, n) complex64.

    Real and imaginary parts of the coefficients are the taps of lags s and s - n: they may overlap.
    """
    c = torch.zeros(k.shape[0], n, dtype=torch.complex64, device=k.device)
    c.real[:, : k.shape[1]] = k
    if k_reverse is not None and k_reverse.shape[1]:
        c.imag[:, n - k_reverse.shape[1] :] = k_reverse.flip(-1)
    return torch.fft.fft(c * _turn(n, k.device))


def taps_of_points(g: Tensor, K: int, K_reverse: int) -> tuple[Tensor, Tensor]:
    """The adjoint of `points`, as a real linear map: g (D, n) complex64 -> gradients (D, K) and (D, K_reverse)."""
    n = g.shape[1]
    c = torch.fft.fft(g.conj()).conj() * _turn(n, g.device).conj()
    return c.real[:, :K], c.imag[:, n - K_reverse :].flip(-1)


def spectrum(k: Tensor, k_reverse: Tensor | None, n1: int, n2: int) -> Tensor:
    """`points` in the order of the kernels, (D, n1, n2): point [j1, j2] is j = j1 + n1 j2."""
    return points(k, k_reverse, n1 * n2).view(-1, n2, n1).mT


def taps(g: Tensor, K: int, K_reverse: int) -> tuple[Tensor, Tensor]:
    """`taps_of_points` of g (D, n1, n2) in the order of the kernels."""
    return taps_of_points(g.mT.reshape(g.shape[0], -1), K, K_reverse)


def planes(kf: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Split spectra (P, D, ...) complex64 into planes (P, D, 2, ...) of `dtype`, of modulus at most 1, and scales (D,).

    Scaled so that float16 holds the spectrum of any filter, and the product with a signal's in the signal's range.
    """
    scale = kf.abs().flatten(2).amax((0, 2)).clamp(min=torch.finfo(torch.float32).tiny)
    scaled = torch.view_as_real(kf / scale.view(-1, *[1] * (kf.dim() - 2))).movedim(-1, 2)
    return scaled.to(dtype).contiguous(), scale
