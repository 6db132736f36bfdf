"""Launches the kernels of `triton_nested.py`: rows of P tiles, transformed on the chip."""

import torch
from torch import Tensor

from longconv.kernels.gpu.device import on_device_of

from . import tables
from .fused_run import Rows, precision, split, strides
from .long_run import OuterTables, TwoSided


def forward(rows: Rows, filter: TwoSided, u: Tensor, pre: Tensor | None, y: Tensor, post: Tensor | None) -> None:
    """y = post * conv(pre * u) for the given rows; all (B, D, L)."""
    convolve(rows, filter.outer, *filter.planes(slice(None), u.dtype), u, pre, [(y, post)])


def backward(
    rows: Rows,
    filter: TwoSided,
    u: Tensor,
    pre: Tensor | None,
    dy: Tensor,
    post: Tensor | None,
    du: Tensor | None,
    dpre: Tensor | None,
    dpost: Tensor | None,
    needs_filter: bool,
) -> tuple[Tensor, ...] | None:
    """Write the gradients that are given, and return those of the filter if they are needed."""
    kf, scale = filter.planes(slice(None), u.dtype)
    inputs = [(x, gate) for x, gate in ((du, pre), (dpre, u)) if x is not None]
    if inputs:
        convolve(rows, filter.outer, kf, scale, dy, post, inputs, adjoint=True)
    if dpost is not None:
        convolve(rows, filter.outer, kf, scale, u, pre, [(dpost, dy)])
    if not needs_filter:
        return None
    g = correlate(rows, filter.outer, u, pre, dy, post).sum(0)
    return filter.gradient(torch.complex(g[:, 0], g[:, 1]))


def convolve(
    rows: Rows,
    outer: OuterTables,
    kf: Tensor,
    scale: Tensor,
    u: Tensor,
    pre: Tensor | None,
    outputs: list[tuple[Tensor, Tensor | None]],
    *,
    adjoint: bool = False,
) -> None:
    """Write gate * conv(pre * u) into each of one or two `outputs` (y, gate); arguments as in `fused_run.convolve`."""
    tile, D = outer.tile, u.shape[1]
    (y, post), (y2, post2) = outputs[0], outputs[1] if len(outputs) > 1 else (outputs[0][0], None)
    parts, per_part = split(rows.count, 1, D)
    from .triton_nested import nested_kernel

    with on_device_of(u):
        nested_kernel[(D * parts,)](
            u, pre, post, post2, y, y2, kf, scale, *_tables(outer, u.dtype), rows.starts, rows.lengths,
            rows.count, D, rows.longest, *u.stride(), *strides(pre), *strides(post), *strides(post2), *y.stride()[:2],
            parts, per_part, outer.P, tile.N1, tile.N2, adjoint, pre is not None, post is not None, len(outputs) > 1,
            rows.starts is not None, precision(u.dtype),
            num_warps=tile.warps, num_stages=1,
        )  # fmt: skip


def correlate(rows: Rows, outer: OuterTables, u: Tensor, pre: Tensor | None, dy: Tensor, post: Tensor | None) -> Tensor:
    """The spectrum of the filter's gradient: (parts, D, 2, P, N1, N2) float32."""
    tile, D = outer.tile, u.shape[1]
    parts, per_part = split(rows.count, 1, D * outer.P)
    g = torch.empty(parts, D, 2, outer.P, tile.N1, tile.N2, dtype=torch.float32, device=u.device)
    from .triton_nested import nested_correlate_kernel

    with on_device_of(u):
        nested_correlate_kernel[(D * parts * outer.P,)](
            u, pre, dy, post, g, *_tables(outer, u.dtype), rows.starts, rows.lengths,
            rows.count, D, rows.longest, *u.stride(), *strides(pre), *dy.stride(), *strides(post), parts, per_part,
            outer.P, tile.N1, tile.N2, pre is not None, post is not None, rows.starts is not None, precision(u.dtype),
            num_warps=tile.warps, num_stages=1,
        )  # fmt: skip
    return g


def _tables(outer: OuterTables, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The outer DFT's weights, then the matrices and twiddles of a tile, and the factors between the two."""
    tile, device = outer.tile, outer.f.device
    f1, f2 = (tables.dft_matrix(n, 0.0, dtype, device) for n in (tile.N1, tile.N2))
    w = tables.twiddles(tile.N1, tile.N2, 0.0, tables.table_dtype(dtype), device)
    return outer.f, f1, f2, w, outer.wa, outer.wb
