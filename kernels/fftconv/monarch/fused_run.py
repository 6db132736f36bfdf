"""Launches the kernels of `triton_fused.py`: rows that fit a tile, and rows in frames."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from longconv.kernels.gpu.device import on_device_of

from . import tables
from .configs import Frames, Tile

# Programs a launch should have, so that every multiprocessor of a large GPU has some.
PROGRAMS = 1024


Taps = tuple[Tensor, Tensor]  # lags 0 ... K - 1 (D, K) and -1 ... -K' (D, K'), float32


@dataclass(frozen=True)
class Rows:
    """The rows of a launch: a batch, or sequences packed in one row (`starts` and `lengths`, int32, on the device)."""

    count: int
    longest: int
    starts: Tensor | None = None
    lengths: Tensor | None = None


def forward(rows: Rows, cut: Frames, taps: Taps, u: Tensor, pre: Tensor | None, y: Tensor, post: Tensor | None) -> None:
    """y = post * conv(pre * u) for the given rows; all (B, D, L)."""
    convolve(rows, cut, *spectra(*taps, cut, u.dtype), u, pre, [(y, post)])


def backward(
    rows: Rows,
    cut: Frames,
    taps: Taps,
    u: Tensor,
    pre: Tensor | None,
    dy: Tensor,
    post: Tensor | None,
    du: Tensor | None,
    dpre: Tensor | None,
    dpost: Tensor | None,
    needs_filter: bool,
) -> Taps | None:
    """Write the gradients that are given, and return those of the taps if they are needed."""
    kf, scale = spectra(*taps, cut, u.dtype)
    arguments = (u, pre, dy, post)
    g = None
    if cut.whole and cut.tile.one_pass:
        g = backward_of_rows(rows, cut.tile, kf, scale, *arguments, du, dpre, dpost, needs_filter)
    elif cut.whole:
        if du is not None or dpre is not None:
            backward_of_rows(rows, cut.tile, kf, scale, *arguments, du, dpre, None, False)
        if dpost is not None:
            backward_of_rows(rows, cut.tile, kf, scale, *arguments, None, None, dpost, False)
        if needs_filter:
            g = backward_of_rows(rows, cut.tile, kf, scale, *arguments, None, None, None, True)
    else:
        outputs = [(x, gate) for x, gate in ((du, pre), (dpre, u)) if x is not None]
        if outputs:
            convolve(rows, cut, kf, scale, dy, post, outputs, adjoint=True)
        if dpost is not None:
            convolve(rows, cut, kf, scale, u, pre, [(dpost, dy)])
        if needs_filter:
            g = correlate(rows, cut, *arguments, u.dtype)
    return None if g is None else filter_gradients(g, cut, *(side.shape[1] for side in taps))


def spectra(k: Tensor, k_reverse: Tensor, cut: Frames, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The filter's spectrum for the kernels: (pieces, D, 2, N1, N2) of `dtype`, and scales (D,)."""
    N1, N2 = cut.tile.N1, cut.tile.N2
    if cut.pieces == 1:
        return tables.planes(tables.spectrum(k, k_reverse, N1, N2)[None], dtype)
    lags = torch.zeros(k.shape[0], cut.pieces * cut.hop, device=k.device)
    zero = -cut.shift  # where lag 0 is
    lags[:, zero : zero + k.shape[1]] = k
    lags[:, zero - k_reverse.shape[1] : zero] = k_reverse.flip(-1)
    pieces = lags.view(-1, cut.pieces, cut.hop).transpose(0, 1)
    return tables.planes(torch.stack([tables.spectrum(piece, None, N1, N2) for piece in pieces]), dtype)


def filter_gradients(g: Tensor, cut: Frames, K: int, K_reverse: int) -> tuple[Tensor, Tensor]:
    """Gradients (D, K) and (D, K_reverse) of the taps from g (parts, pieces, D, 2, N1, N2)."""
    pieces = torch.complex(*g.sum(0).unbind(2))
    if cut.pieces == 1:
        return tables.taps(pieces[0], K, K_reverse)
    lags = torch.cat([tables.taps(piece, cut.hop, 0)[0] for piece in pieces], -1)
    zero = -cut.shift
    return lags[:, zero : zero + K], lags[:, zero - K_reverse : zero].flip(-1)


def convolve(
    rows: Rows,
    cut: Frames,
    kf: Tensor,
    scale: Tensor,
    u: Tensor,
    pre: Tensor | None,
    outputs: list[tuple[Tensor, Tensor | None]],
    *,
    adjoint: bool = False,
) -> None:
    """Write gate * conv(pre * u) into each of one or two `outputs` (y, gate).

    Args:
        rows: what to compute of u.
        cut, kf, scale: frames and spectra of the filter.
        u, pre: (B, D, L).
        outputs: y (B, D, L), contiguous along time, and what it is multiplied by. The second has a gate.
        adjoint: convolve with the filter reversed in time.
    """
    tile, D = _narrow(cut.tile, u, pre, *(x for output in outputs for x in output)), u.shape[1]
    (y, post), (y2, post2) = outputs[0], outputs[1] if len(outputs) > 1 else (outputs[0][0], None)
    parts, per_part = split(rows.count, tile.R, D * cut.count)
    from .triton_fused import convolve_kernel

    with on_device_of(u):
        convolve_kernel[(D * parts * cut.count,)](
            u, pre, post, post2, y, y2, kf, scale, *_tables(tile, kf.dtype, u.device), rows.starts, rows.lengths,
            rows.count, D, rows.longest, *u.stride(), *strides(pre), *strides(post), *strides(post2), *y.stride()[:2],
            parts, per_part, cut.count, cut.hop, cut.right if adjoint else cut.left, cut.shift, cut.pieces,
            tile.N1, tile.R, tile.N2, cut.pieces == 1, adjoint, pre is not None, post is not None, len(outputs) > 1,
            rows.starts is not None, precision(kf.dtype),
            num_warps=tile.warps, num_stages=1,
        )  # fmt: skip


def correlate(
    rows: Rows, cut: Frames, u: Tensor, pre: Tensor | None, dy: Tensor, post: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The spectra of the filter's gradients: (parts, pieces, D, 2, N1, N2) float32."""
    tile, D = _narrow(cut.tile, u, pre, dy, post), u.shape[1]
    tiles = -(-rows.count // tile.R) * cut.count
    parts, per_part = split(tiles, 1, D * cut.pieces)
    g = torch.empty(parts, cut.pieces, D, 2, tile.N1, tile.N2, dtype=torch.float32, device=u.device)
    from .triton_fused import correlate_kernel

    with on_device_of(u):
        correlate_kernel[(D * parts, cut.pieces)](
            u, pre, dy, post, g, *_tables(tile, dtype, u.device), rows.starts, rows.lengths,
            rows.count, D, rows.longest, *u.stride(), *strides(pre), *dy.stride(), *strides(post),
            parts, per_part, cut.count, cut.hop, cut.left, cut.shift,
            tile.N1, tile.R, tile.N2, pre is not None, post is not None, rows.starts is not None, precision(dtype),
            num_warps=tile.warps, num_stages=1,
        )  # fmt: skip
    return g


def backward_of_rows(
    rows: Rows,
    tile: Tile,
    kf: Tensor,
    scale: Tensor,
    u: Tensor,
    pre: Tensor | None,
    dy: Tensor,
    post: Tensor | None,
    du: Tensor | None,
    dpre: Tensor | None,
    dpost: Tensor | None,
    needs_filter: bool,
) -> Tensor | None:
    """All gradients of whole rows: write those that are given, and return the filter's spectrum as `correlate` does."""
    D, tile = u.shape[1], _narrow(tile, u, pre, dy, post)
    parts, per_part = split(rows.count, tile.R, D)
    g = None
    if needs_filter:
        g = torch.empty(parts, 1, D, 2, tile.N1, tile.N2, dtype=torch.float32, device=u.device)
    like = next(x for x in (du, dpre, dpost, u) if x is not None)
    from .triton_fused import backward_kernel

    with on_device_of(u):
        backward_kernel[(D * parts,)](
            u, pre, dy, post, du, dpre, dpost, g, kf, scale, *_tables(tile, kf.dtype, u.device),
            rows.starts, rows.lengths, rows.count, D, rows.longest,
            *u.stride(), *strides(pre), *dy.stride(), *strides(post), *like.stride()[:2], parts, per_part,
            tile.N1, tile.R, tile.N2, pre is not None, post is not None, du is not None, dpre is not None,
            dpost is not None, needs_filter, rows.starts is not None, precision(kf.dtype),
            num_warps=tile.warps, num_stages=1,
        )  # fmt: skip
    return g


def precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: three TF32 products make a float32 one on NVIDIA's matrix units; AMD's take float32."""
    return "tf32x3" if dtype == torch.float32 and torch.version.hip is None else "ieee"


def _tables(tile: Tile, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    f1 = tables.dft_matrix(tile.N1, tables.SHIFT, dtype, device)
    f2 = tables.dft_matrix(tile.N2, 0.0, dtype, device)
    return f1, f2, tables.twiddles(tile.N1, tile.N2, tables.SHIFT, tables.table_dtype(dtype), device)


def _narrow(tile: Tile, *tensors: Tensor | None) -> Tile:
    """The tile with one row, if offsets between its rows do not fit 32 bits."""
    if all(x is None or (tile.R - 1) * x.stride(0) + x.shape[2] < 2**31 for x in tensors):
        return tile
    return dataclasses.replace(tile, R=1)


def strides(x: Tensor | None) -> tuple[int, ...]:
    """Strides of x (B, D, L), or those of a tensor that is not there."""
    return (0, 0, 1) if x is None else x.stride()


def split(rows: int, R: int, others: int) -> tuple[int, int]:
    """Split rows into parts, so that there are enough programs: (parts, rows of a part, a multiple of R)."""
    tiles = -(-rows // R)
    wanted = min(tiles, max(1, math.ceil(PROGRAMS / max(others, 1))))
    per_part = -(-tiles // wanted)
    return -(-tiles // per_part), per_part * R
