"""The transform of one tile, forward and backward, as Triton functions that the kernels of this folder inline.

A sequence of N = N1 N2 samples x[t], t = t1 N2 + t2, is evaluated at the N points

    z_j = exp(-2 pi i (j + shift) / N),        j = j1 + N1 j2,

in two matrix products with a pointwise factor between them (Cooley and Tukey; in FlashFFTConv "Monarch"):

    a[j1, t2] = sum_t1 F1[j1, t1] x[t1, t2],                 F1[j1, t1] = exp(-2 pi i (j1 + shift) t1 / N1) / sqrt(N1)
    b[j1, t2] = a[j1, t2] w[j1, t2],                         w[j1, t2]  = exp(-2 pi i (j1 + shift) t2 / N)
    c[j1, j2] = sum_t2 b[j1, t2] F2[t2, j2],                 F2[t2, j2] = exp(-2 pi i t2 j2 / N2) / sqrt(N2)

The inverse is the conjugate transpose: the three steps backwards. Nothing is ever transposed or bit-reversed, because
the filter's spectrum is stored in the order [j1, j2] too. The scaling makes both directions keep the mean square, so
that half precision neither overflows nor vanishes.

A tile holds R rows, time laid out as [t1, r, t2]: `(N1, R N2)` for the first product, `(N1 R, N2)` for the second, and
the one is the other reshaped. `x` is real, and only the real part of the inverse is wanted: the first product and the
last one take two real products where the inner ones take four.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
import triton
import triton.language as tl


@triton.jit
def matrices(f1, f2, N1: tl.constexpr, N2: tl.constexpr):
    """Load F1 (2, N1, N1) and F2 (2, N2, N2)."""
    i1 = tl.arange(0, N1)
    i2 = tl.arange(0, N2)
    at1 = i1[:, None] * N1 + i1[None, :]
    at2 = i2[:, None] * N2 + i2[None, :]
    f1r = tl.load(f1 + at1)
    f1i = tl.load(f1 + N1 * N1 + at1)
    f2r = tl.load(f2 + at2)
    f2i = tl.load(f2 + N2 * N2 + at2)
    return f1r, f1i, f2r, f2i


@triton.jit
def twiddles(w, N1: tl.constexpr, R: tl.constexpr, N2: tl.constexpr):
    """Load w (2, N1, N2), repeated for the R rows of a tile. They come from the L1 cache where they are used: to keep
    them would take a quarter of the registers."""
    at = tl.arange(0, N1)[:, None] * N2 + (tl.arange(0, R * N2) % N2)[None, :]
    return tl.load(w + at).to(tl.float32), tl.load(w + N1 * N2 + at).to(tl.float32)


@triton.jit
def forward(
    x, f1r, f1i, w, f2r, f2i, N1: tl.constexpr, R: tl.constexpr, N2: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """x (N1, R N2) real, in the dtype of the tables -> its spectrum (N1 R, N2), two float32 planes."""
    ar = tl.dot(f1r, x, input_precision=PRECISION)
    ai = tl.dot(f1i, x, input_precision=PRECISION)
    wr, wi = twiddles(w, N1, R, N2)
    return complex_product(ar * wr - ai * wi, ar * wi + ai * wr, f2r, f2i, N1 * R, N2, PRECISION)


@triton.jit
def inverse(
    cr, ci, f1r, f1i, w, f2r, f2i, N1: tl.constexpr, R: tl.constexpr, N2: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """The real part of the inverse: (N1 R, N2) float32 planes -> (N1, R N2) float32."""
    br, bi = conjugate_product(cr, ci, f2r, f2i, PRECISION)
    br = tl.reshape(br, (N1, R * N2))
    bi = tl.reshape(bi, (N1, R * N2))
    wr, wi = twiddles(w, N1, R, N2)
    ar = (br * wr + bi * wi).to(f1r.dtype)
    ai = (bi * wr - br * wi).to(f1r.dtype)
    x = tl.dot(tl.trans(f1r), ar, input_precision=PRECISION)
    return tl.dot(tl.trans(f1i), ai, x, input_precision=PRECISION)


@triton.jit
def forward_complex(
    xr, xi, f1r, f1i, w, f2r, f2i, N1: tl.constexpr, R: tl.constexpr, N2: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """`forward` of complex samples, float32 planes (N1, R N2)."""
    xr = xr.to(f1r.dtype)
    xi = xi.to(f1r.dtype)
    ar = tl.dot(f1r, xr, input_precision=PRECISION)
    ar = tl.dot(f1i, -xi, ar, input_precision=PRECISION)
    ai = tl.dot(f1r, xi, input_precision=PRECISION)
    ai = tl.dot(f1i, xr, ai, input_precision=PRECISION)
    wr, wi = twiddles(w, N1, R, N2)
    return complex_product(ar * wr - ai * wi, ar * wi + ai * wr, f2r, f2i, N1 * R, N2, PRECISION)


@triton.jit
def inverse_complex(
    cr, ci, f1r, f1i, w, f2r, f2i, N1: tl.constexpr, R: tl.constexpr, N2: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """The complex inverse for F1 without a shift, which is symmetric: (N1 R, N2) -> (N1, R N2), float32 planes."""
    br, bi = conjugate_product(cr, ci, f2r, f2i, PRECISION)
    br = tl.reshape(br, (N1, R * N2))
    bi = tl.reshape(bi, (N1, R * N2))
    wr, wi = twiddles(w, N1, R, N2)
    ar = (br * wr + bi * wi).to(f1r.dtype)
    ai = (bi * wr - br * wi).to(f1r.dtype)
    xr = tl.dot(f1r, ar, input_precision=PRECISION)
    xr = tl.dot(f1i, ai, xr, input_precision=PRECISION)
    xi = tl.dot(f1r, ai, input_precision=PRECISION)
    xi = tl.dot(f1i, -ar, xi, input_precision=PRECISION)
    return xr, xi


@triton.jit
def complex_product(br, bi, f2r, f2i, M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr):
    """b @ F2 for complex b, reshaped to (M, N) first and rounded to the dtype of F2."""
    br = tl.reshape(br.to(f2r.dtype), (M, N))
    bi = tl.reshape(bi.to(f2r.dtype), (M, N))
    cr = tl.dot(br, f2r, input_precision=PRECISION)
    cr = tl.dot(-bi, f2i, cr, input_precision=PRECISION)
    ci = tl.dot(br, f2i, input_precision=PRECISION)
    ci = tl.dot(bi, f2r, ci, input_precision=PRECISION)
    return cr, ci


@triton.jit
def conjugate_product(cr, ci, f2r, f2i, PRECISION: tl.constexpr):
    """c @ conj(F2), F2 symmetric, c rounded to the dtype of F2."""
    cr = cr.to(f2r.dtype)
    ci = ci.to(f2r.dtype)
    br = tl.dot(cr, f2r, input_precision=PRECISION)
    br = tl.dot(ci, f2i, br, input_precision=PRECISION)
    bi = tl.dot(ci, f2r, input_precision=PRECISION)
    bi = tl.dot(-cr, f2i, bi, input_precision=PRECISION)
    return br, bi
