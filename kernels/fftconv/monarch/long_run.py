"""Launches the kernels of `triton_long.py`, over chunks of rows, so that what lies between them stays small."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from longconv.kernels.gpu.device import on_device_of

from . import tables
from .configs import Outer, Tile
from .fused_run import Rows, Taps, precision, strides

# Bytes of spectra between the kernels. More means fewer launches; less may stay in the L2 cache.
SCRATCH_BYTES = 2**28
# Blocks of the outer products: outer frequencies, time rows, samples of a row.
BLOCK_J, BLOCK_T, BLOCK_M = 128, 64, 64


def forward(rows: Rows, cut: Outer, taps: Taps, u: Tensor, pre: Tensor | None, y: Tensor, post: Tensor | None) -> None:
    """y = post * conv(pre * u) for the given rows; all (B, D, L)."""
    passes = Pass(rows, outer_tables(cut.tile, cut.P, u.dtype, u.device), u.dtype)
    for d, batches in passes.chunks(u.shape[1], 1):
        kf, scale = passes.filter(taps, d)
        for b in batches:
            s = passes.outer_dft(u, pre, d, b)
            passes.inner(d, b, s, None, kf, None, convolve=True)
            passes.outer_inverse(s, scale, [(y, post)], d, b)


def backward(
    rows: Rows,
    cut: Outer,
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
    passes = Pass(rows, outer_tables(cut.tile, cut.P, u.dtype, u.device), u.dtype)
    inputs = [(x, gate) for x, gate in ((du, pre), (dpre, u)) if x is not None]
    found = []
    for d, batches in passes.chunks(u.shape[1], 2):
        kf, scale = passes.filter(taps, d)
        g = passes.room_for_gradient(d) if needs_filter else None
        for b in batches:
            s = passes.outer_dft(u, pre, d, b) if needs_filter or dpost is not None else None
            z = passes.outer_dft(dy, post, d, b) if needs_filter or inputs else None
            passes.inner(d, b, s, z, kf, g, convolve=dpost is not None, adjoint=bool(inputs))
            if dpost is not None:
                assert s is not None
                passes.outer_inverse(s, scale, [(dpost, dy)], d, b)
            if inputs:
                assert z is not None
                passes.outer_inverse(z, scale, inputs, d, b)
        if g is not None:
            found.append(taps_of(torch.complex(g[:, 0], g[:, 1]), *(side.shape[1] for side in taps)))
    if not needs_filter:
        return None
    causal, reverse = zip(*found, strict=True)
    return torch.cat(causal), torch.cat(reverse)


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


def spectrum(k: Tensor, k_reverse: Tensor | None, outer: OuterTables) -> Tensor:
    """The spectrum of a two-sided filter at all P M points: (D, K), (D, K') -> (D, P, M1, M2) complex64."""
    kf = tables.points(k, k_reverse, outer.P * outer.M)
    return kf.view(-1, outer.tile.N2, outer.tile.N1, outer.P).permute(0, 3, 2, 1)


def taps_of(g: Tensor, K: int, K_reverse: int) -> tuple[Tensor, Tensor]:
    """Undo `spectrum`, as its adjoint does: g (D, P, M1, M2) complex64 -> (D, K), (D, K_reverse)."""
    return tables.taps_of_points(g.permute(0, 3, 2, 1).reshape(g.shape[0], -1), K, K_reverse)


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

    def filter(self, taps: Taps, d: slice) -> tuple[Tensor, Tensor]:
        """The spectrum of the channels' filters, (channels, 2, J, M1, M2), and its scale (channels,)."""
        kf, scale = tables.planes(spectrum(taps[0][d], taps[1][d], self.outer)[None], self.dtype)
        return kf[0], scale

    def room_for_gradient(self, d: slice) -> Tensor:
        """Where `inner` puts the gradient of the channels' filters."""
        o = self.outer
        shape = (d.stop - d.start, 2, o.J, o.tile.N1, o.tile.N2)
        return torch.empty(shape, dtype=torch.float32, device=o.f.device)

    def outer_dft(self, u: Tensor, pre: Tensor | None, d: slice, b: slice) -> Tensor:
        """The spectra after the outer DFT of pre * u: (channels * rows, 2, J, M)."""
        o, n = self.outer, (d.stop - d.start) * (b.stop - b.start)
        s = torch.empty(n, 2, o.J, o.M, dtype=self.dtype, device=u.device)
        BJ, BT, BM = _block(o.J, BLOCK_J), _block(o.P, BLOCK_T), min(BLOCK_M, o.M)
        from .triton_long import outer_kernel

        with on_device_of(u):
            outer_kernel[(n, o.M // BM, -(-o.J // BJ))](
                u, pre, s, o.f, self.rows.starts, self.rows.lengths, self.rows.longest,
                b.stop - b.start, b.start, d.start, *u.stride(), *strides(pre), o.J, o.P, o.M, BJ, BT, BM,
                pre is not None, self.rows.starts is not None, precision(self.dtype), num_warps=4, num_stages=2,
            )  # fmt: skip
        return s

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
        self, s: Tensor, scale: Tensor, outputs: list[tuple[Tensor, Tensor | None]], d: slice, b: slice
    ) -> None:
        """Write gate * scale * (inverse of s) into each of one or two `outputs` (y (B, D, L), gate)."""
        o = self.outer
        (y, post), (y2, post2) = outputs[0], outputs[1] if len(outputs) > 1 else (outputs[0][0], None)
        times = -(-self.rows.longest // o.M)
        BT, BJ, BM = _block(times, BLOCK_J), _block(o.J, BLOCK_T), min(BLOCK_M, o.M)
        from .triton_long import outer_inverse_kernel

        with on_device_of(s):
            outer_inverse_kernel[(s.shape[0], o.M // BM, -(-times // BT))](
                s, post, post2, y, y2, scale, o.f, self.rows.starts, self.rows.lengths, self.rows.longest,
                b.stop - b.start, b.start, d.start, *strides(post), *strides(post2), *y.stride()[:2],
                o.J, o.P, o.M, BT, BJ, BM, post is not None, len(outputs) > 1, self.rows.starts is not None,
                precision(self.dtype), num_warps=4, num_stages=2,
            )  # fmt: skip


def _block(n: int, limit: int) -> int:
    """A power of two, at least the 16 that a matrix product needs, and at most `limit`."""
    return max(16, min(limit, 1 << (n - 1).bit_length()))
