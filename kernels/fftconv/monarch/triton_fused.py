"""Convolutions that stay on the chip: a program loads rows, transforms, multiplies, transforms back and stores.

Shapes: B batch rows (or packed sequences), D channels, L samples; a tile is R rows of N = N1 N2 samples.

A row is cut into frames of `hop` outputs. With a filter as long as the row there is one frame, hop = N. With a shorter
one the frames overlap (overlap-save, Stockham 1966): frame f reads the samples from f hop - left on, and what it
computes for its first `left` samples is dropped. A filter too long for that is cut into pieces of `hop` taps too: the
spectra of earlier samples times those of later taps are summed before the one inverse transform.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
import triton
import triton.language as tl

# Counts are not specialised (`do_not_specialize`): whether a batch is a multiple of 16 is not worth a compilation.
from .triton_stages import forward, inverse, matrices


@triton.jit
def _spectrum(kf, N1: tl.constexpr, R: tl.constexpr, N2: tl.constexpr):
    """Load a filter's spectrum (2, N1, N2), repeated for the R rows of a tile: (N1 R, N2), two float32 planes."""
    at = (tl.arange(0, N1 * R) // R)[:, None] * N2 + tl.arange(0, N2)[None, :]
    return tl.load(kf + at).to(tl.float32), tl.load(kf + N1 * N2 + at).to(tl.float32)


@triton.jit
def _rows(b0, b_end, starts, lengths, L, PACKED: tl.constexpr, R: tl.constexpr, N2: tl.constexpr):
    """For every column of a tile, (R N2,): its row after b0, where that starts, and its length (0 beyond the last)."""
    r = tl.arange(0, R * N2) // N2
    inside = b0 + r < b_end
    if PACKED:
        start = tl.load(starts + b0 + r, inside, 0)
        length = tl.load(lengths + b0 + r, inside, 0)
    else:
        start = r
        length = tl.where(inside, L, 0)
    return r, start, length


@triton.jit
def _at(b0, d, r, start, t, x_b, x_d, x_t, PACKED: tl.constexpr, R: tl.constexpr):
    """Offsets of a tile's samples at the times t: 64 bits for the tile, 32 inside it (the caller sees to that).

    Packed sequences lie one behind the other in the row of batch 0.
    """
    inside = t * x_t
    if PACKED:
        return d * x_d + (inside + (start * x_t)[None, :])
    if R > 1:
        inside += (r * x_b)[None, :]
    return tl.cast(b0, tl.int64) * x_b + d * x_d + inside


@triton.jit
def _load(x, b0, d, r, start, t, mask, x_b, x_d, x_t, PACKED: tl.constexpr, R: tl.constexpr):
    """Load x at the times t where `mask`, zero elsewhere, as float32."""
    return tl.load(x + _at(b0, d, r, start, t, x_b, x_d, x_t, PACKED, R), mask, 0.0).to(tl.float32)


@triton.jit(do_not_specialize=["B", "D", "parts", "rows", "frames", "pieces"])
def convolve_kernel(
    u, pre, post, post2, y, y2, kf, scale, f1, f2, w, starts, lengths,
    B, D, L, u_b, u_d, u_t, pre_b, pre_d, pre_t, post_b, post_d, post_t, post2_b, post2_d, post2_t, y_b, y_d,
    parts, rows, frames, hop, left, shift, pieces,
    N1: tl.constexpr, R: tl.constexpr, N2: tl.constexpr, ONE_PIECE: tl.constexpr, ADJOINT: tl.constexpr,
    HAS_PRE: tl.constexpr, HAS_POST: tl.constexpr, HAS_Y2: tl.constexpr, PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """y = post * conv(pre * u) and, with HAS_Y2, y2 = post2 * conv(pre * u), for one channel and one frame.

    Grid: (D * frames * parts,); a program has `rows` of the B rows. kf (pieces, D, 2, N1, N2), scale (D,): the spectrum
    is kf * scale. Piece p sees the samples shifted by `shift` + p hop (to earlier times; with ADJOINT to later ones).
    """
    program = tl.program_id(0)
    part = program % parts
    frame = program // parts % frames
    d = (program // parts // frames).to(tl.int64)
    f1r, f1i, f2r, f2i = matrices(f1, f2, N1, N2)
    gain = tl.load(scale + d)
    i = tl.arange(0, N1)[:, None] * N2 + (tl.arange(0, R * N2) % N2)[None, :]
    out = frame * hop + i - left
    b_end = tl.minimum(B, (part + 1) * rows)
    for b0 in range(part * rows, b_end, R):
        r, start, length = _rows(b0, b_end, starts, lengths, L, PACKED, R, N2)
        if ONE_PIECE:
            sr, si = _piece(
                u, pre, kf, b0, d, r, start, length, out - shift, 0, D, u_b, u_d, u_t, pre_b, pre_d, pre_t,
                f1r, f1i, f2r, f2i, w, N1, R, N2, ADJOINT, HAS_PRE, PACKED, PRECISION,
            )  # fmt: skip
        else:
            sr = tl.zeros((N1 * R, N2), tl.float32)
            si = tl.zeros((N1 * R, N2), tl.float32)
            for piece in range(pieces):
                lag = shift + piece * hop
                pr, pi = _piece(
                    u, pre, kf, b0, d, r, start, length, out + lag if ADJOINT else out - lag, piece, D, u_b, u_d, u_t,
                    pre_b, pre_d, pre_t, f1r, f1i, f2r, f2i, w, N1, R, N2, ADJOINT, HAS_PRE, PACKED, PRECISION,
                )  # fmt: skip
                sr += pr
                si += pi
        x = inverse(sr, si, f1r, f1i, w, f2r, f2i, N1, R, N2, PRECISION) * gain
        mask = (i >= left) & (i < left + hop) & (out < length[None, :])
        at = _at(b0, d, r, start, out, y_b, y_d, 1, PACKED, R)
        first = x
        if HAS_POST:
            first = x * _load(post, b0, d, r, start, out, mask, post_b, post_d, post_t, PACKED, R)
        tl.store(y + at, first.to(y.dtype.element_ty), mask)
        if HAS_Y2:
            second = x * _load(post2, b0, d, r, start, out, mask, post2_b, post2_d, post2_t, PACKED, R)
            tl.store(y2 + at, second.to(y2.dtype.element_ty), mask)


@triton.jit
def _piece(
    u, pre, kf, b0, d, r, start, length, t, piece, D, u_b, u_d, u_t, pre_b, pre_d, pre_t,
    f1r, f1i, f2r, f2i, w,
    N1: tl.constexpr, R: tl.constexpr, N2: tl.constexpr, ADJOINT: tl.constexpr, HAS_PRE: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The spectrum of pre * u at the times t, times that of a piece of the filter."""
    mask = (t >= 0) & (t < length[None, :])
    v = _load(u, b0, d, r, start, t, mask, u_b, u_d, u_t, PACKED, R)
    if HAS_PRE:
        v *= _load(pre, b0, d, r, start, t, mask, pre_b, pre_d, pre_t, PACKED, R)
    cr, ci = forward(v.to(f1r.dtype), f1r, f1i, w, f2r, f2i, N1, R, N2, PRECISION)
    kr, ki = _spectrum(kf + (piece * D + d) * (2 * N1 * N2), N1, R, N2)
    if ADJOINT:
        ki = -ki
    return cr * kr - ci * ki, cr * ki + ci * kr


@triton.jit(do_not_specialize=["B", "D", "parts", "tiles", "frames"])
def correlate_kernel(
    u, pre, dy, post, g, f1, f2, w, starts, lengths,
    B, D, L, u_b, u_d, u_t, pre_b, pre_d, pre_t, dy_b, dy_d, dy_t, post_b, post_d, post_t,
    parts, tiles, frames, hop, left, shift,
    N1: tl.constexpr, R: tl.constexpr, N2: tl.constexpr,
    HAS_PRE: tl.constexpr, HAS_POST: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The spectrum of a piece's gradient, conj(spectrum of pre * u) times that of post * dy, summed over its tiles.

    Grid: (D * parts, pieces). A tile is a frame of R rows; a program sums `tiles` of the ceil(B / R) * frames tiles
    there are, one after the other: g (parts, pieces, D, 2, N1, N2) float32 is the same every time.
    """
    d = (tl.program_id(0) // parts).to(tl.int64)
    part = tl.program_id(0) % parts
    piece = tl.program_id(1)
    f1r, f1i, f2r, f2i = matrices(f1, f2, N1, N2)
    i = tl.arange(0, N1)[:, None] * N2 + (tl.arange(0, R * N2) % N2)[None, :]
    gr = tl.zeros((N1 * R, N2), tl.float32)
    gi = tl.zeros((N1 * R, N2), tl.float32)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, (B + R - 1) // R * frames)):
        b0 = (tile // frames) * R
        r, start, length = _rows(b0, B, starts, lengths, L, PACKED, R, N2)
        out = tile % frames * hop + i - left
        t = out - (shift + piece * hop)
        mask = (t >= 0) & (t < length[None, :])
        v = _load(u, b0, d, r, start, t, mask, u_b, u_d, u_t, PACKED, R)
        if HAS_PRE:
            v *= _load(pre, b0, d, r, start, t, mask, pre_b, pre_d, pre_t, PACKED, R)
        vr, vi = forward(v.to(f1r.dtype), f1r, f1i, w, f2r, f2i, N1, R, N2, PRECISION)
        mask = (i >= left) & (i < left + hop) & (out < length[None, :])
        z = _load(dy, b0, d, r, start, out, mask, dy_b, dy_d, dy_t, PACKED, R)
        if HAS_POST:
            z *= _load(post, b0, d, r, start, out, mask, post_b, post_d, post_t, PACKED, R)
        zr, zi = forward(z.to(f1r.dtype), f1r, f1i, w, f2r, f2i, N1, R, N2, PRECISION)
        gr += vr * zr + vi * zi
        gi += vr * zi - vi * zr
    _store_gradient(g + ((part.to(tl.int64) * tl.num_programs(1) + piece) * D + d) * (2 * N1 * N2), gr, gi, N1, R, N2)


@triton.jit
def _store_gradient(g, gr, gi, N1: tl.constexpr, R: tl.constexpr, N2: tl.constexpr):
    """Sum over the R rows of a tile, and store as (2, N1, N2)."""
    at = tl.arange(0, N1)[:, None] * N2 + tl.arange(0, N2)[None, :]
    tl.store(g + at, tl.sum(tl.reshape(gr, (N1, R, N2)), 1))
    tl.store(g + N1 * N2 + at, tl.sum(tl.reshape(gi, (N1, R, N2)), 1))


@triton.jit(do_not_specialize=["B", "D", "parts", "rows"])
def backward_kernel(
    u, pre, dy, post, du, dpre, dpost, g, kf, scale, f1, f2, w, starts, lengths,
    B, D, L, u_b, u_d, u_t, pre_b, pre_d, pre_t, dy_b, dy_d, dy_t, post_b, post_d, post_t, du_b, du_d,
    parts, rows,
    N1: tl.constexpr, R: tl.constexpr, N2: tl.constexpr,
    HAS_PRE: tl.constexpr, HAS_POST: tl.constexpr, NEEDS_U: tl.constexpr, NEEDS_PRE: tl.constexpr,
    NEEDS_POST: tl.constexpr, NEEDS_K: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All gradients of whole rows in one pass: each of u, dy and the gates is read once.

    Grid: (D * parts,). With v = pre u and z = post dy:  dv = adjoint of conv(z), du = pre dv, dpre = u dv,
    dpost = dy conv(v); g (parts, D, 2, N1, N2) as in `correlate_kernel`.
    """
    d = (tl.program_id(0) // parts).to(tl.int64)
    part = tl.program_id(0) % parts
    f1r, f1i, f2r, f2i = matrices(f1, f2, N1, N2)
    gain = tl.load(scale + d)
    t = tl.arange(0, N1)[:, None] * N2 + (tl.arange(0, R * N2) % N2)[None, :]
    gr = tl.zeros((N1 * R, N2), tl.float32)
    gi = tl.zeros((N1 * R, N2), tl.float32)
    b_end = tl.minimum(B, (part + 1) * rows)
    for b0 in range(part * rows, b_end, R):
        r, start, length = _rows(b0, b_end, starts, lengths, L, PACKED, R, N2)
        mask = t < length[None, :]
        at = _at(b0, d, r, start, t, du_b, du_d, 1, PACKED, R)
        z = _load(dy, b0, d, r, start, t, mask, dy_b, dy_d, dy_t, PACKED, R)
        if HAS_POST:
            z *= _load(post, b0, d, r, start, t, mask, post_b, post_d, post_t, PACKED, R)
        zr, zi = forward(z.to(f1r.dtype), f1r, f1i, w, f2r, f2i, N1, R, N2, PRECISION)
        if NEEDS_K or NEEDS_POST:
            v = _load(u, b0, d, r, start, t, mask, u_b, u_d, u_t, PACKED, R)
            if HAS_PRE:
                v *= _load(pre, b0, d, r, start, t, mask, pre_b, pre_d, pre_t, PACKED, R)
            vr, vi = forward(v.to(f1r.dtype), f1r, f1i, w, f2r, f2i, N1, R, N2, PRECISION)
            if NEEDS_K:
                gr += vr * zr + vi * zi
                gi += vr * zi - vi * zr
            if NEEDS_POST:
                kr, ki = _spectrum(kf + d * (2 * N1 * N2), N1, R, N2)
                x = inverse(
                    vr * kr - vi * ki, vr * ki + vi * kr, f1r, f1i, w, f2r, f2i, N1, R, N2, PRECISION
                )  # fmt: skip
                x *= gain * _load(dy, b0, d, r, start, t, mask, dy_b, dy_d, dy_t, PACKED, R)
                tl.store(dpost + at, x.to(dpost.dtype.element_ty), mask)
        if NEEDS_U or NEEDS_PRE:
            kr, ki = _spectrum(kf + d * (2 * N1 * N2), N1, R, N2)
            x = inverse(zr * kr + zi * ki, zi * kr - zr * ki, f1r, f1i, w, f2r, f2i, N1, R, N2, PRECISION) * gain
            if NEEDS_PRE:
                dgate = x * _load(u, b0, d, r, start, t, mask, u_b, u_d, u_t, PACKED, R)
                tl.store(dpre + at, dgate.to(dpre.dtype.element_ty), mask)
            if NEEDS_U:
                if HAS_PRE:
                    x *= _load(pre, b0, d, r, start, t, mask, pre_b, pre_d, pre_t, PACKED, R)
                tl.store(du + at, x.to(du.dtype.element_ty), mask)
    if NEEDS_K:
        _store_gradient(g + (part.to(tl.int64) * D + d) * (2 * N1 * N2), gr, gi, N1, R, N2)
