"""Launches the kernels of `triton_long.py`, over chunks of rows, so that what lies between them stays small."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from longconv.kernels.gpu.device import on_device_of

from . import tables
from .configs import Tile
from .fused_run import Rows, Taps, precision, strides

# Bytes of spectra between the kernels. More means fewer launches; less may stay in the L2 cache.
SCRATCH_BYTES = 2**28
# Blocks of the outer products, by element size: what is computed, what is summed over, samples of a time row.
BLOCKS = {2: (128, 64, 64), 4: (64, 32, 64)}


class Spectrum(Protocol):
    """A filter, as `forward` and `backward` use it: chunks of channels `d` at a time."""

    outer: "OuterTables"
    skip: Tensor | None  # (D,) weights of the input itself, besides the filter

    def planes(self, d: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The spectrum (channels, 2, J, M1, M2) in the dtype of the kernels, and its scale (channels,)."""

    def gradient(self, g: Tensor) -> tuple[Tensor, ...]:
        """The gradients of what the filter is made of, from that of its spectrum, (channels, J, M1, M2)."""


def forward(rows: Rows, filter: Spectrum, u: Tensor, pre: Tensor | None, y: Tensor, post: Tensor | None) -> None:
    """y = post * (conv(v) + skip v), v = pre * u, for the given rows; all (B, D, L)."""
    passes = Pass(rows, filter.outer, u.dtype)
    for d, batches in passes.chunks(u.shape[1], 1):
        kf, scale = filter.planes(d, u.dtype)
        for b in batches:
            s = passes.outer_dft(u, pre, d, b)
            passes.inner(d, b, s, None, kf, None, convolve=True)
            passes.outer_inverse(s, scale, filter.skip, u, pre, [(y, post)], d, b)


def backward(
    rows: Rows,
    filter: Spectrum,
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
    passes = Pass(rows, filter.outer, u.dtype)
    inputs = [(x, gate) for x, gate in ((du, pre), (dpre, u)) if x is not None]
    found = []
    for d, batches in passes.chunks(u.shape[1], 2):
        kf, scale = filter.planes(d, u.dtype)
        g = passes.room_for_gradient(d) if needs_filter else None
        for b in batches:
            s = passes.outer_dft(u, pre, d, b) if needs_filter or dpost is not None else None
            z = passes.outer_dft(dy, post, d, b) if needs_filter or inputs else None
            passes.inner_backward(d, b, s, z, kf, g, convolve=dpost is not None, adjoint=bool(inputs))
            if dpost is not None:
                assert s is not None
                passes.outer_inverse(s, scale, filter.skip, u, pre, [(dpost, dy)], d, b)
            if inputs:
                assert z is not None
                passes.outer_inverse(z, scale, filter.skip, dy, post, inputs, d, b)
        if g is not None:
            found.append(filter.gradient(torch.complex(g[:, 0], g[:, 1])))
    return tuple(map(torch.cat, zip(*found, strict=True))) if needs_filter else None


@dataclass(frozen=True, eq=False)
class OuterTables:
    """The outer DFT, of P time rows to J frequencies (numbers `j1`, plus `shift`), around tiles of M = N1 N2 points.

    `f` (2, J, P), `wa` (2, J, M1) and `wb` (2, J, M2): the tables of `triton_long.py`.
    """

    tile: Tile
    P: int
    J: int
    shift: float
    f: Tensor
    wa: Tensor
    wb: Tensor

    @property
    def M(self) -> int:
        """Samples of a time row."""
        return self.tile.N


@lru_cache(maxsize=16)
def outer_tables(
    tile: Tile,
    P: int,
    dtype: torch.dtype,
    device: torch.device,
    j1: tuple[int, ...] | None = None,
    shift: float = tables.SHIFT,
) -> OuterTables:
    """The outer DFT of P time rows for the frequencies `j1` (default: all P)."""
    j1 = tuple(range(P)) if j1 is None else j1
    j = torch.tensor(j1, dtype=torch.float64, device=device)[:, None] + shift
    N = P * tile.N

    def powers(n: int, step: float) -> Tensor:
        return j * torch.arange(n, dtype=torch.float64, device=device) * step

    return OuterTables(
        tile,
        P,
        len(j1),
        shift,
        tables.unit_planes(powers(P, 1 / P), P**-0.5, dtype),
        tables.unit_planes(powers(tile.N1, tile.N2 / N), 1.0, torch.float32),
        tables.unit_planes(powers(tile.N2, 1 / N), 1.0, torch.float32),
    )


class TwoSided:
    """The filter with taps (D, K) at lags 0, 1, ... and (D, K') at -1, -2, ...; see `tables.points`."""

    skip: Tensor | None = None  # part of the taps

    def __init__(self, taps: Taps, outer: OuterTables) -> None:
        self.taps, self.outer = taps, outer

    def planes(self, d: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """See `Spectrum`."""
        o = self.outer
        points = tables.points(self.taps[0][d], self.taps[1][d], o.P * o.M)
        kf, scale = tables.planes(points.view(-1, o.tile.N2, o.tile.N1, o.P).permute(0, 3, 2, 1)[None], dtype)
        return kf[0], scale

    def gradient(self, g: Tensor) -> tuple[Tensor, ...]:
        """See `Spectrum`."""
        points = g.permute(0, 3, 2, 1).reshape(g.shape[0], -1)
        return tables.taps_of_points(points, *(side.shape[1] for side in self.taps))


class Pass:
    """The three kernels over the rows of some channels.

    Args:
        rows: of every channel.
        outer: the plan.
        dtype: of the tables and the spectra between the kernels.
    """

    def __init__(self, rows: Rows, outer: OuterTables, dtype: torch.dtype) -> None:
        self.rows, self.outer, self.dtype = rows, outer, dtype
        self.row_numbers = 2 * outer.J * outer.M  # of one row's spectrum

    def chunks(self, D: int, spectra: int) -> Iterator[tuple[slice, list[slice]]]:
        """Yield channels, and rows of which `spectra` spectra each fit into the scratch memory."""
        fit = max(1, SCRATCH_BYTES // (self.row_numbers * self.dtype.itemsize * spectra))
        B = self.rows.count
        nd, nb = max(1, fit // B), min(fit, B)
        for d in range(0, D, nd):
            yield slice(d, min(D, d + nd)), [slice(b, min(B, b + nb)) for b in range(0, B, nb)]

    def room_for_gradient(self, d: slice) -> Tensor:
        """Where `inner` puts the gradient of the channels' filters."""
        o = self.outer
        shape = (d.stop - d.start, 2, o.J, o.tile.N1, o.tile.N2)
        return torch.empty(shape, dtype=torch.float32, device=o.f.device)

    def outer_dft(self, u: Tensor, pre: Tensor | None, d: slice, b: slice) -> Tensor:
        """The spectra after the outer DFT of pre * u: (channels * rows, 2, J, M)."""
        o, n = self.outer, (d.stop - d.start) * (b.stop - b.start)
        s = torch.empty(n, 2, o.J, o.M, dtype=self.dtype, device=u.device)
        BJ, BT, BM = _blocks(o.J, o.P, self.dtype)
        from .triton_long import outer_kernel

        with on_device_of(u):
            outer_kernel[(n, o.M // BM, -(-o.J // BJ))](
                u, pre, s, o.f, self.rows.starts, self.rows.lengths, self.rows.longest,
                b.stop - b.start, b.start, d.start, *u.stride(), *strides(pre), o.J, o.P, o.M, BJ, BT, BM,
                pre is not None, self.rows.starts is not None, precision(self.dtype), num_warps=4, num_stages=2,
            )  # fmt: skip
        return s

    def inner_backward(
        self,
        d: slice,
        b: slice,
        s: Tensor | None,
        z: Tensor | None,
        kf: Tensor,
        g: Tensor | None,
        *,
        convolve: bool,
        adjoint: bool,
    ) -> None:
        """`inner`, in one pass over the spectra or, if there are not registers enough for that, in up to three."""
        if self.outer.tile.one_pass:
            self.inner(d, b, s, z, kf, g, convolve=convolve, adjoint=adjoint)
            return
        if g is not None:  # first, because the others overwrite what it reads
            self.inner(d, b, s, z, None, g)
        if convolve:
            self.inner(d, b, s, None, kf, None, convolve=True)
        if adjoint:
            self.inner(d, b, None, z, kf, None, adjoint=True)

    def inner(
        self,
        d: slice,
        b: slice,
        s: Tensor | None,
        z: Tensor | None,
        kf: Tensor | None,
        g: Tensor | None,
        *,
        convolve: bool = False,
        adjoint: bool = False,
    ) -> None:
        """Multiply s by kf (`convolve`), z by its conjugate (`adjoint`), and sum conj(s) z into g, if that is given."""
        o = self.outer
        tile, channels, rows = o.tile, d.stop - d.start, b.stop - b.start
        f1, f2 = (tables.dft_matrix(n, 0.0, self.dtype, o.f.device) for n in (tile.N1, tile.N2))
        w = tables.twiddles(tile.N1, tile.N2, 0.0, tables.table_dtype(self.dtype), o.f.device)
        # A sum has one program, and a fixed order; products may be spread.
        per_program = rows if g is not None else max(tile.R, -(-rows // 8))
        from .triton_long import inner_kernel

        with on_device_of(o.f):
            inner_kernel[(channels, o.J, -(-rows // per_program))](
                s, z, kf, g, f1, f2, w, o.wa, o.wb, rows, per_program, o.J, tile.N1, tile.R, tile.N2,
                convolve, adjoint, g is not None, b.start > 0, precision(self.dtype),
                num_warps=tile.warps, num_stages=1,
            )  # fmt: skip

    def outer_inverse(
        self,
        s: Tensor,
        scale: Tensor,
        skip: Tensor | None,
        u: Tensor,
        pre: Tensor | None,
        outputs: list[tuple[Tensor, Tensor | None]],
        d: slice,
        b: slice,
    ) -> None:
        """Write gate * (scale * inverse of s + skip * pre * u) into one or two `outputs`, (y (B, D, L), gate) each."""
        o = self.outer
        (y, post), (y2, post2) = outputs[0], outputs[1] if len(outputs) > 1 else (outputs[0][0], None)
        times = -(-self.rows.longest // o.M)
        BT, BJ, BM = _blocks(times, o.J, self.dtype)
        from .triton_long import outer_inverse_kernel

        with on_device_of(s):
            outer_inverse_kernel[(s.shape[0], o.M // BM, -(-times // BT))](
                s, u, pre, post, post2, y, y2, scale, skip, o.f, self.rows.starts, self.rows.lengths, self.rows.longest,
                b.stop - b.start, b.start, d.start, *u.stride(), *strides(pre), *strides(post), *strides(post2),
                *y.stride()[:2], o.J, o.P, o.M, BT, BJ, BM,
                skip is not None, pre is not None, post is not None, len(outputs) > 1, self.rows.starts is not None,
                precision(self.dtype), num_warps=4, num_stages=2,
            )  # fmt: skip


def _blocks(computed: int, summed: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Sizes for so many outer frequencies or time rows: powers of two, at least the 16 that a matrix product needs."""
    limits = BLOCKS[dtype.itemsize]
    sizes = [
        max(16, min(limit, 1 << (n - 1).bit_length())) for n, limit in zip((computed, summed), limits, strict=False)
    ]
    return sizes[0], sizes[1], limits[2]
