"""Convolutions too long for the chip, in three kernels: an outer DFT, the rest on the chip, the outer inverse.

A row of P M samples is a matrix x[t1, m], t = t1 M + m, and its spectrum is, for J outer frequencies j1,

    s[j1, m] = sum_t1 F[j1, t1] x[t1, m]                       `outer_kernel`, a real matrix times x, zeros skipped
    a DFT over m of s[j1, m] wa[j1, m1] wb[j1, m2]             `inner_kernel`, as in `triton_stages.py`, m = m1 M2 + m2
    ... times the filter's, and back: s[j1, m] again
    y[t1, m] = Re sum_j1 conj(F[j1, t1]) s[j1, m]              `outer_inverse_kernel`

Between the kernels s (rows, 2, J, M) is in memory, in the precision of the matrix products. All tables come from the
host (`long_run.py`): a shifted DFT of all frequencies, or some rows of an ordinary one (a sparse spectrum).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
import triton
import triton.language as tl

from .triton_stages import forward_complex, inverse_complex, matrices


@triton.jit
def _row(row, nb, b_first, d_first, starts, lengths, L, PACKED: tl.constexpr):
    """The batch, channel, first sample and length of row `row` of a launch; packed sequences all lie in batch 0."""
    b = b_first + row % nb
    d = (d_first + row // nb).to(tl.int64)
    if PACKED:
        return tl.zeros((), tl.int64), d, tl.load(starts + b), tl.load(lengths + b)
    return b.to(tl.int64), d, 0, L


@triton.jit(do_not_specialize=["nb", "b_first", "d_first"])
def outer_kernel(
    u, pre, s, f, starts, lengths, L, nb, b_first, d_first, u_b, u_d, u_t, pre_b, pre_d, pre_t, J, P, M,
    BJ: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr,
    HAS_PRE: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """s = F (pre * u). Grid: (rows, M / BM, ceil(J / BJ)); f (2, J, P)."""
    row = tl.program_id(0)
    b, d, start, length = _row(row, nb, b_first, d_first, starts, lengths, L, PACKED)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    j = tl.program_id(2) * BJ + tl.arange(0, BJ)
    row_of_u = u + (b * u_b + d * u_d)
    sr = tl.zeros((BJ, BM), tl.float32)
    si = tl.zeros((BJ, BM), tl.float32)
    for first in range(0, (length + M - 1) // M, BT):
        i = first + tl.arange(0, BT)
        t = i[:, None] * M + m[None, :]
        mask = (t < length) & (i < P)[:, None]
        x = tl.load(row_of_u + (start + t) * u_t, mask, 0.0)
        if HAS_PRE:
            x = x.to(tl.float32) * tl.load(pre + (b * pre_b + d * pre_d) + (start + t) * pre_t, mask, 0.0).to(
                tl.float32
            )
        x = x.to(f.dtype.element_ty)
        at = j[:, None] * P + i[None, :]
        inside = (j < J)[:, None] & (i < P)[None, :]
        sr = tl.dot(tl.load(f + at, inside, 0.0), x, sr, input_precision=PRECISION)
        si = tl.dot(tl.load(f + J * P + at, inside, 0.0), x, si, input_precision=PRECISION)
    s += row.to(tl.int64) * (2 * J * M)
    at = j[:, None] * M + m[None, :]
    tl.store(s + at, sr.to(s.dtype.element_ty), (j < J)[:, None])
    tl.store(s + J * M + at, si.to(s.dtype.element_ty), (j < J)[:, None])


@triton.jit(do_not_specialize=["nb", "b_first", "d_first"])
def outer_inverse_kernel(
    s, u, pre, post, post2, y, y2, scale, skip, f, starts, lengths, L, nb, b_first, d_first,
    u_b, u_d, u_t, pre_b, pre_d, pre_t, post_b, post_d, post_t,
    post2_b, post2_d, post2_t, y_b, y_d, J, P, M,
    BT: tl.constexpr, BJ: tl.constexpr, BM: tl.constexpr,
    HAS_SKIP: tl.constexpr, HAS_PRE: tl.constexpr, HAS_POST: tl.constexpr, HAS_Y2: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = post * (scale Re(F^H s) + skip pre u), y2 likewise with post2. Grid: (rows, M / BM, ceil(time rows / BT))."""
    row = tl.program_id(0)
    b, d, start, length = _row(row, nb, b_first, d_first, starts, lengths, L, PACKED)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    i = tl.program_id(2) * BT + tl.arange(0, BT)
    s += row.to(tl.int64) * (2 * J * M)
    x = tl.zeros((BT, BM), tl.float32)
    for first in range(0, J, BJ):
        j = first + tl.arange(0, BJ)
        at = j[None, :] * P + i[:, None]
        inside = (j < J)[None, :] & (i < P)[:, None]
        ats = j[:, None] * M + m[None, :]
        sr = tl.load(s + ats, (j < J)[:, None], 0.0)
        si = tl.load(s + J * M + ats, (j < J)[:, None], 0.0)
        x = tl.dot(tl.load(f + at, inside, 0.0), sr, x, input_precision=PRECISION)
        x = tl.dot(tl.load(f + J * P + at, inside, 0.0), si, x, input_precision=PRECISION)
    x *= tl.load(scale + row // nb)
    t = i[:, None] * M + m[None, :]
    mask = (t < length) & (i < P)[:, None]
    if HAS_SKIP:
        v = tl.load(u + (b * u_b + d * u_d) + (start + t) * u_t, mask, 0.0).to(tl.float32)
        if HAS_PRE:
            v *= tl.load(pre + (b * pre_b + d * pre_d) + (start + t) * pre_t, mask, 0.0).to(tl.float32)
        x += tl.load(skip + d).to(tl.float32) * v
    at = b * y_b + d * y_d + (start + t)
    first_y = x
    if HAS_POST:
        first_y = x * tl.load(post + b * post_b + d * post_d + (start + t) * post_t, mask, 0.0).to(tl.float32)
    tl.store(y + at, first_y.to(y.dtype.element_ty), mask)
    if HAS_Y2:
        second = x * tl.load(post2 + b * post2_b + d * post2_d + (start + t) * post2_t, mask, 0.0).to(tl.float32)
        tl.store(y2 + at, second.to(y2.dtype.element_ty), mask)


@triton.jit
def outer_twiddles(wa, wb, j, J, M1: tl.constexpr, R: tl.constexpr, M2: tl.constexpr):
    """exp(-2 pi i (j1 + shift) m / N) for the m of a tile, as a product over its two digits: (M1, R M2) planes."""
    m1 = tl.arange(0, M1)
    m2 = tl.arange(0, R * M2) % M2
    ar = tl.load(wa + j * M1 + m1)[:, None]
    ai = tl.load(wa + (J + j) * M1 + m1)[:, None]
    br = tl.load(wb + j * M2 + m2)[None, :]
    bi = tl.load(wb + (J + j) * M2 + m2)[None, :]
    return ar * br - ai * bi, ar * bi + ai * br


@triton.jit
def _load_spectrum(
    s, at, mask, wa, wb, j, J, f1r, f1i, w, f2r, f2i,
    M1: tl.constexpr, R: tl.constexpr, M2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The inner DFT of a tile of s."""
    xr = tl.load(s + at, mask, 0.0).to(tl.float32)
    xi = tl.load(s + J * M1 * M2 + at, mask, 0.0).to(tl.float32)
    wr, wi = outer_twiddles(wa, wb, j, J, M1, R, M2)
    return forward_complex(
        xr * wr - xi * wi, xr * wi + xi * wr, f1r, f1i, w, f2r, f2i, M1, R, M2, PRECISION
    )  # fmt: skip


@triton.jit
def _store_inverse(
    s, at, mask, cr, ci, wa, wb, j, J, f1r, f1i, w, f2r, f2i,
    M1: tl.constexpr, R: tl.constexpr, M2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Undo `_load_spectrum`."""
    xr, xi = inverse_complex(cr, ci, f1r, f1i, w, f2r, f2i, M1, R, M2, PRECISION)
    wr, wi = outer_twiddles(wa, wb, j, J, M1, R, M2)
    tl.store(s + at, (xr * wr + xi * wi).to(s.dtype.element_ty), mask)
    tl.store(s + J * M1 * M2 + at, (xi * wr - xr * wi).to(s.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["nb", "per_program"])
def inner_kernel(
    s, z, kf, g, f1, f2, w, wa, wb, nb, per_program, J,
    M1: tl.constexpr, R: tl.constexpr, M2: tl.constexpr,
    CONVOLVE: tl.constexpr, ADJOINT: tl.constexpr, CORRELATE: tl.constexpr, ACCUMULATE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What happens between the outer DFTs, for one channel and one outer frequency, to `per_program` of nb rows.

    Grid: (channels, J, nb / per_program).

    CONVOLVE: s is multiplied by kf (channels, 2, J, M1, M2), in place. ADJOINT: z is, by its conjugate.
    CORRELATE: conj(s) z, summed over the rows, goes to g (channels, 2, J, M1, M2) float32, or is added to what is there
    with ACCUMULATE: in the same order every time, by one program.
    """
    d = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1)
    i1 = tl.arange(0, M1)
    i2 = tl.arange(0, M2)
    f1r, f1i, f2r, f2i = matrices(f1, f2, M1, M2)
    column = tl.arange(0, R * M2)
    r = column // M2
    size = 2 * J * M1 * M2
    # One row's samples, and one filter's points, start here; rows are `size` apart.
    at = j * (M1 * M2) + i1[:, None] * M2 + (column % M2)[None, :]
    atk = d * size + (j * (M1 * M2) + (tl.arange(0, M1 * R) // R)[:, None] * M2 + i2[None, :])
    gr = tl.zeros((M1 * R, M2), tl.float32)
    gi = tl.zeros((M1 * R, M2), tl.float32)
    b_end = tl.minimum(nb, (tl.program_id(2) + 1) * per_program)
    for b in range(tl.program_id(2) * per_program, b_end, R):
        mask = (b + r < b_end)[None, :]
        where = (d * nb + b) * size + r.to(tl.int64)[None, :] * size + at
        if CONVOLVE or CORRELATE:
            vr, vi = _load_spectrum(s, where, mask, wa, wb, j, J, f1r, f1i, w, f2r, f2i, M1, R, M2, PRECISION)
        if ADJOINT or CORRELATE:
            zr, zi = _load_spectrum(z, where, mask, wa, wb, j, J, f1r, f1i, w, f2r, f2i, M1, R, M2, PRECISION)
        if CORRELATE:
            gr += vr * zr + vi * zi
            gi += vr * zi - vi * zr
        if CONVOLVE or ADJOINT:
            kr = tl.load(kf + atk).to(tl.float32)
            ki = tl.load(kf + J * M1 * M2 + atk).to(tl.float32)
        if CONVOLVE:
            _store_inverse(
                s, where, mask, vr * kr - vi * ki, vr * ki + vi * kr,
                wa, wb, j, J, f1r, f1i, w, f2r, f2i, M1, R, M2, PRECISION,
            )  # fmt: skip
        if ADJOINT:
            _store_inverse(
                z, where, mask, zr * kr + zi * ki, zi * kr - zr * ki,
                wa, wb, j, J, f1r, f1i, w, f2r, f2i, M1, R, M2, PRECISION,
            )  # fmt: skip
    if CORRELATE:
        gr = tl.sum(tl.reshape(gr, (M1, R, M2)), 1)
        gi = tl.sum(tl.reshape(gi, (M1, R, M2)), 1)
        atg = d * size + (j * (M1 * M2) + i1[:, None] * M2 + i2[None, :])
        if ACCUMULATE:
            gr += tl.load(g + atg)
            gi += tl.load(g + J * M1 * M2 + atg)
        tl.store(g + atg, gr)
        tl.store(g + J * M1 * M2 + atg, gi)
