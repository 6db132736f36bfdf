"""`fft_conv_sparse` by the kernels of `triton_long.py`: outer frequencies that a mask leaves empty are never computed.

The DFT of n = P M points is an ordinary one here (no shift): signals are real, so of two outer frequencies that mirror
each other one is enough, and its bins count twice. `sparse.py` says which are left, and with which weights.
"""

import math

import torch
from torch import Tensor

from longconv.kernels.gpu.device import shared_memory_limit

from ..mask import SpectrumMask
from ..sparse import fold, rows_and_weights
from . import long_run, tables
from .configs import INNER_TILES, Tile, tiles
from .conv import readable
from .fused_run import Rows


def find_tile(mask: SpectrumMask, dtype: torch.dtype, device: torch.device) -> Tile | None:
    """The tile for what is left of the points when the mask's outer factors are taken off; None if none has that size.

    Of several, the one with which the fewest points are computed.
    """
    by_size = {tile.N: tile for tile in tiles(dtype, shared_memory_limit(device), INNER_TILES)}
    inner = [mask.n // math.prod(mask.factors[:i]) for i in range(1, len(mask.factors))]
    fitting = [M for M in inner if M in by_size]
    if not fitting:
        return None
    return by_size[min(fitting, key=lambda M: len(rows_and_weights(mask, mask.n // M)[0]) * M)]


class Masked:
    """A filter (D, K) whose spectrum is weighted by a mask; the kernels' `Spectrum`."""

    def __init__(self, mask: SpectrumMask, tile: Tile, k: Tensor, skip: Tensor | None, dtype: torch.dtype) -> None:
        j1, weights = rows_and_weights(mask, mask.n // tile.N)
        self.rows = j1.long().to(k.device)
        self.k, self.skip, self.n = k, skip, mask.n
        self.outer = long_run.outer_tables(tile, mask.n // tile.N, dtype, k.device, tuple(self.rows.tolist()), 0.0)
        self.weights = self._tiled(weights.to(k.device, torch.float32))

    def planes(self, d: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """See `long_run.Spectrum`."""
        kf = torch.fft.fft(fold(self.k[d].float(), self.n), self.n)  # bin r + P f2
        rows = kf.view(kf.shape[0], -1, self.outer.P).mT[:, self.rows]
        kf, scale = tables.planes((self._tiled(rows) * self.weights)[None], dtype)
        return kf[0], scale

    def gradient(self, g: Tensor) -> tuple[Tensor, ...]:
        """See `long_run.Spectrum`."""
        rows = (g * self.weights).mT.reshape(g.shape[0], self.outer.J, -1)
        bins = g.new_zeros(g.shape[0], self.outer.P, rows.shape[-1])
        bins[:, self.rows] = rows
        lags = torch.fft.ifft(bins.mT.reshape(g.shape[0], -1), norm="forward").real
        return (lags[:, torch.arange(self.k.shape[1], device=g.device) % self.n],)

    def _tiled(self, rows: Tensor) -> Tensor:
        """Inner frequencies (..., M) as a tile has them, (..., M1, M2): f2 = ja + M1 jb."""
        return rows.reshape(*rows.shape[:-1], self.outer.tile.N2, self.outer.tile.N1).mT


def conv_forward(
    mask: SpectrumMask,
    tile: Tile,
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    """Evaluate `fft_conv_sparse` (see there for shapes)."""
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    u, pre, post = readable(u), readable(pre_gate), readable(post_gate)
    if u.numel():
        long_run.forward(Rows(u.shape[0], u.shape[2]), Masked(mask, tile, k, skip, u.dtype), u, pre, y, post)
    return y


def conv_backward(
    mask: SpectrumMask,
    tile: Tile,
    dy: Tensor,
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients for (u, k, skip, pre_gate, post_gate); those not in `needs` come back empty."""
    inputs = (u, k, skip, pre_gate, post_gate)
    grads = [
        torch.empty_like(x, memory_format=torch.contiguous_format) if need and x is not None else u.new_empty(0)
        for x, need in zip(inputs, needs, strict=True)
    ]
    du, dk, dskip, dpre, dpost = (
        grad if need and x is not None else None for grad, need, x in zip(grads, needs, inputs, strict=True)
    )
    if u.numel() == 0:
        return [grad.zero_() for grad in grads]
    dy, u, pre, post = readable(dy), readable(u), readable(pre_gate), readable(post_gate)
    if dskip is not None:
        gates = [gate.float() for gate in (pre, post) if gate is not None]
        dskip.copy_(math.prod(gates, start=u.float() * dy.float()).sum((0, 2)))
    filter = Masked(mask, tile, k, skip, u.dtype)
    found = long_run.backward(Rows(u.shape[0], u.shape[2]), filter, u, pre, dy, post, du, dpre, dpost, dk is not None)
    if found is not None and dk is not None:
        dk.copy_(found[0])
    return grads
