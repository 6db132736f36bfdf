"""Rows of P tiles that stay on the chip: an outer DFT of order P around the transform of one tile, in one kernel.

The factorisation is that of `triton_long.py`, t = t1 M + m, but nothing goes through memory between the stages. A
program takes the P outer frequencies one after the other: the samples of a row are read P times, from the second on
out of the L1 or L2 cache, and summed with the weights of that frequency; a tile is transformed, multiplied by the
filter's and transformed back; and what it adds to each of the P time rows is summed in registers.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
import triton
import triton.language as tl

from .triton_long import outer_twiddles
from .triton_stages import forward_complex, inverse_complex, matrices


@triton.jit
def _spectrum_at(
    u, pre, u_t, pre_t, length, times, j, f, f1r, f1i, w, f2r, f2i, wa, wb,
    P: tl.constexpr, M1: tl.constexpr, M2: tl.constexpr, HAS_PRE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The spectrum of pre * u at the points of outer frequency j: (M1, M2), two float32 planes."""
    m = tl.arange(0, M1)[:, None] * M2 + tl.arange(0, M2)[None, :]
    sr = tl.zeros((M1, M2), tl.float32)
    si = tl.zeros((M1, M2), tl.float32)
    for i in range(times):
        t = i * (M1 * M2) + m
        mask = t < length
        x = tl.load(u + t * u_t, mask, 0.0).to(tl.float32)
        if HAS_PRE:
            x *= tl.load(pre + t * pre_t, mask, 0.0).to(tl.float32)
        sr += x * tl.load(f + j * P + i)
        si += x * tl.load(f + (P + j) * P + i)
    wr, wi = outer_twiddles(wa, wb, j, P, M1, 1, M2)
    return forward_complex(
        sr * wr - si * wi, sr * wi + si * wr, f1r, f1i, w, f2r, f2i, M1, 1, M2, PRECISION
    )  # fmt: skip


@triton.jit
def _moved(x, offset, THERE: tl.constexpr):
    """A pointer, moved; None where there is none."""
    if THERE:
        x += offset
    return x


@triton.jit
def _row_at(b, starts, lengths, L, PACKED: tl.constexpr):
    """The batch, first sample and length of row b; packed sequences all lie in batch 0."""
    if PACKED:
        return tl.zeros((), tl.int64), tl.load(starts + b), tl.load(lengths + b)
    return tl.cast(b, tl.int64), 0, L


@triton.jit(do_not_specialize=["B", "D", "parts", "rows"])
def nested_kernel(
    u, pre, post, post2, y, y2, kf, scale, f, f1, f2, w, wa, wb, starts, lengths,
    B, D, L, u_b, u_d, u_t, pre_b, pre_d, pre_t, post_b, post_d, post_t, post2_b, post2_d, post2_t, y_b, y_d,
    parts, rows,
    P: tl.constexpr, M1: tl.constexpr, M2: tl.constexpr, ADJOINT: tl.constexpr,
    HAS_PRE: tl.constexpr, HAS_POST: tl.constexpr, HAS_Y2: tl.constexpr, PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """y = post * conv(pre * u) and, with HAS_Y2, y2 = post2 * conv(pre * u), for one channel and `rows` of the B rows.

    Grid: (D * parts,). kf (D, 2, P, M1, M2), scale (D,): the spectrum is kf * scale, conjugated with ADJOINT.
    """
    d = (tl.program_id(0) // parts).to(tl.int64)
    part = tl.program_id(0) % parts
    f1r, f1i, f2r, f2i = matrices(f1, f2, M1, M2)
    gain = tl.load(scale + d)
    M: tl.constexpr = M1 * M2
    p = tl.arange(0, P)
    m = tl.arange(0, M1)[:, None] * M2 + tl.arange(0, M2)[None, :]
    for row in range(part * rows, tl.minimum(B, (part + 1) * rows)):
        b, start, length = _row_at(row, starts, lengths, L, PACKED)
        times = (length + M - 1) // M
        u_row = u + (b * u_b + d * u_d + start * u_t)
        pre_row = _moved(pre, b * pre_b + d * pre_d + start * pre_t, HAS_PRE)
        x = tl.zeros((P, M1, M2), tl.float32)
        for j in range(P):
            vr, vi = _spectrum_at(
                u_row, pre_row, u_t, pre_t, length,
                times, j, f, f1r, f1i, w, f2r, f2i, wa, wb, P, M1, M2, HAS_PRE, PRECISION,
            )  # fmt: skip
            at = d * (2 * P * M) + (j * M + m)
            kr = tl.load(kf + at).to(tl.float32)
            ki = tl.load(kf + P * M + at).to(tl.float32)
            if ADJOINT:
                ki = -ki
            xr, xi = inverse_complex(
                vr * kr - vi * ki, vr * ki + vi * kr, f1r, f1i, w, f2r, f2i, M1, 1, M2, PRECISION
            )  # fmt: skip
            wr, wi = outer_twiddles(wa, wb, j, P, M1, 1, M2)
            fr = tl.load(f + j * P + p)[:, None, None]
            fi = tl.load(f + (P + j) * P + p)[:, None, None]
            x += fr * (xr * wr + xi * wi)[None] + fi * (xi * wr - xr * wi)[None]
        x *= gain
        t = p[:, None, None] * M + m[None]
        mask = t < length
        to = b * y_b + d * y_d + start
        first = x
        if HAS_POST:
            gate = tl.load(post + (b * post_b + d * post_d + start * post_t) + t * post_t, mask, 0.0)
            first = x * gate.to(tl.float32)
        tl.store(y + to + t, first.to(y.dtype.element_ty), mask)
        if HAS_Y2:
            gate = tl.load(post2 + (b * post2_b + d * post2_d + start * post2_t) + t * post2_t, mask, 0.0)
            tl.store(y2 + to + t, (x * gate.to(tl.float32)).to(y2.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["B", "D", "parts", "rows"])
def nested_correlate_kernel(
    u, pre, dy, post, g, f, f1, f2, w, wa, wb, starts, lengths,
    B, D, L, u_b, u_d, u_t, pre_b, pre_d, pre_t, dy_b, dy_d, dy_t, post_b, post_d, post_t, parts, rows,
    P: tl.constexpr, M1: tl.constexpr, M2: tl.constexpr,
    HAS_PRE: tl.constexpr, HAS_POST: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The spectrum of the filter's gradient, conj(spectrum of pre * u) times that of post * dy, at one outer frequency.

    Grid: (D * parts * P,): the programs that read the same rows are neighbours, and run at the same time. A program
    sums `rows` of the B rows one after the other: g (parts, D, 2, P, M1, M2) float32 is the same every time.
    """
    j = tl.program_id(0) % P
    part = tl.program_id(0) // P % parts
    d = (tl.program_id(0) // P // parts).to(tl.int64)
    f1r, f1i, f2r, f2i = matrices(f1, f2, M1, M2)
    M: tl.constexpr = M1 * M2
    gr = tl.zeros((M1, M2), tl.float32)
    gi = tl.zeros((M1, M2), tl.float32)
    for row in range(part * rows, tl.minimum(B, (part + 1) * rows)):
        b, start, length = _row_at(row, starts, lengths, L, PACKED)
        times = (length + M - 1) // M
        u_row = u + (b * u_b + d * u_d + start * u_t)
        dy_row = dy + (b * dy_b + d * dy_d + start * dy_t)
        pre_row = _moved(pre, b * pre_b + d * pre_d + start * pre_t, HAS_PRE)
        post_row = _moved(post, b * post_b + d * post_d + start * post_t, HAS_POST)
        vr, vi = _spectrum_at(
            u_row, pre_row, u_t, pre_t, length,
            times, j, f, f1r, f1i, w, f2r, f2i, wa, wb, P, M1, M2, HAS_PRE, PRECISION,
        )  # fmt: skip
        zr, zi = _spectrum_at(
            dy_row, post_row, dy_t, post_t, length,
            times, j, f, f1r, f1i, w, f2r, f2i, wa, wb, P, M1, M2, HAS_POST, PRECISION,
        )  # fmt: skip
        gr += vr * zr + vi * zi
        gi += vr * zi - vi * zr
    at = (part.to(tl.int64) * D + d) * (2 * P * M) + j * M
    at += tl.arange(0, M1)[:, None] * M2 + tl.arange(0, M2)[None, :]
    tl.store(g + at, gr)
    tl.store(g + P * M + at, gi)
