"""Triton kernels of `short_conv`: forward, and backward by recomputation, fused with bias, gates and SiLU.

With v = pre * u and z = bias + sum_s weight[s] v[t + shift - s], forward is y = post * act(z). Backward::

    dz[t] = dy[t] post[t] act'(z[t])          dpost[t] = dy[t] act(z[t])          dbias = sum dz
    dv[t] = sum_s weight[s] dz[t - shift + s]   du = pre dv,  dpre = u dv
    dweight[s] = sum dz[t] v[t + shift - s]

Up to `FUSED_TAPS` taps `backward_kernel` does all of it in one pass over memory: it recomputes z at the few positions
around each sample that dv needs. With more taps, that would be quadratic in their number, and dz goes through memory:
`activation_gradient_kernel`, `input_gradient_kernel`, `tap_gradient_kernel`.

A tile is BD channels by BL samples, d (BD, 1) and t (1, BL), in any strides: what is contiguous there decides how
Triton lays it out. Shifted reads of a tile come from the cache. Sums over time are kept for each element of a tile in
float32, added up across the tile at the end, and across programs by a second reduction: no atomics, so the same result
in every run. Offsets are 64 bits wide.

A tensor (B, D, L) comes with its strides, (pointer, b, d, t), the taps as (pointer, d, s); one that is absent is None.
`bounds` (2, L) holds the first sample and the one past the last of the packed sequence that each sample belongs to.
"""

# Types are Triton's business here, and its tuples grow by addition only.
# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
# ruff: noqa: RUF005

import triton
import triton.language as tl

FUSED_TAPS = 4
# So many gradients of taps are summed at once.
TAPS_AT_ONCE = 8
# Loops over so many taps are unrolled. With more, all their reads are started at once, and registers run out.
UNROLLED = tl.constexpr(4)
# Compiled once for all values. Lengths are not among them: where they are multiples of 16, reads and writes are wide.
COUNTS = ["tiles", "tiles_per_program"]


@triton.jit
def _tile(D, T, BD: tl.constexpr, BL: tl.constexpr):
    """Row, channels and samples of this program; consecutive programs take consecutive samples."""
    across = tl.cdiv(T, BL)
    down = tl.cdiv(D, BD)
    program = tl.program_id(0)
    b = (program // (across * down)).to(tl.int64)
    d = _channels((program // across) % down, BD)
    return b, d, _samples(program % across, BL)


@triton.jit
def _channels(block, BD: tl.constexpr):
    return block.to(tl.int64) * BD + tl.arange(0, BD)[:, None]


@triton.jit
def _samples(block, BL: tl.constexpr):
    return block.to(tl.int64) * BL + tl.arange(0, BL)[None, :]


@triton.jit
def _reach(bounds, t, length):
    """The first sample that may be read for an output at t, and the one past the last."""
    if bounds is not None:
        first = tl.load(bounds + t, mask=t < length, other=0)
        end = tl.load(bounds + length + t, mask=t < length, other=0)
    else:
        first = tl.zeros_like(t).to(tl.int32)
        end = first + length
    return first, end


@triton.jit
def _within(t, first, end):
    at = t.to(tl.int32)  # a row has fewer than 2^31 samples, and 64-bit comparisons cost twice as much
    return (at >= first) & (at < end)


@triton.jit
def _load(x, b, d, t, inside):
    return tl.load(x[0] + b * x[1] + d * x[2] + t * x[3], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _gated(x, gate, b, d, t, inside):
    value = _load(x, b, d, t, inside)
    if gate is not None:
        value *= _load(gate, b, d, t, inside)
    return value


@triton.jit
def _store(x, value, b, d, t, inside):
    tl.store(x[0] + b * x[1] + d * x[2] + t * x[3], value.to(x[0].dtype.element_ty), mask=inside)


@triton.jit
def _tap(weight, d, s, live):
    return tl.load(weight[0] + d * weight[1] + s * weight[2], mask=live, other=0.0).to(tl.float32)


@triton.jit
def _bias(bias, d, live):
    if bias is not None:
        return tl.load(bias + d, mask=live, other=0.0).to(tl.float32)
    else:
        return 0.0


@triton.jit
def _product(x, gate, weight, b, d, t, live, first, end, s, tap):
    inside = live & _within(t - s, first, end)
    return _tap(weight, d, tap, live) * _gated(x, gate, b, d, t - s, inside)


@triton.jit
def _convolve(
    x, gate, weight, b, d, t, live, first, end,
    K: tl.constexpr, FLIP: tl.constexpr, BD: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Sum weight[s] gate x at t - s, with the taps in reverse order if FLIP."""
    total = tl.zeros((BD, BL), tl.float32)
    if K <= UNROLLED:
        for s in tl.static_range(K):
            total += _product(x, gate, weight, b, d, t, live, first, end, s, K - 1 - s if FLIP else s)
    else:
        for s in range(K):
            total += _product(x, gate, weight, b, d, t, live, first, end, s, K - 1 - s if FLIP else s)
    return total


@triton.jit
def _activate(z, SILU: tl.constexpr):
    """Return act(z) and its derivative."""
    if SILU:
        sigmoid = tl.sigmoid(z)
        return z * sigmoid, sigmoid * (1 + z * (1 - sigmoid))
    else:
        return z, tl.full(z.shape, 1.0, tl.float32)


@triton.jit
def forward_kernel(
    y, u, weight, bias, pre, post, bounds, D, L, T, shift,
    K: tl.constexpr, SILU: tl.constexpr, BD: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Write y (B, D, T)."""
    b, d, t = _tile(D, T, BD, BL)
    live = d < D
    first, end = _reach(bounds, t, L)
    z = _convolve(u, pre, weight, b, d, t + shift, live, first, end, K, False, BD, BL) + _bias(bias, d, live)
    value, _ = _activate(z, SILU)
    inside = live & (t < T)
    if post is not None:
        value *= _load(post, b, d, t, inside)
    _store(y, value, b, d, t, inside)


@triton.jit
def activation_gradient_kernel(
    dz, dpost, dy, u, weight, bias, pre, post, bounds, D, L, T, shift,
    K: tl.constexpr, SILU: tl.constexpr, BD: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Write dz and, unless it is None, dpost, both (B, D, T)."""
    b, d, t = _tile(D, T, BD, BL)
    live = d < D
    first, end = _reach(bounds, t, L)
    z = _convolve(u, pre, weight, b, d, t + shift, live, first, end, K, False, BD, BL) + _bias(bias, d, live)
    value, slope = _activate(z, SILU)
    inside = live & (t < T)
    gradient = _load(dy, b, d, t, inside)
    if dpost is not None:
        _store(dpost, gradient * value, b, d, t, inside)
    if post is not None:
        gradient *= _load(post, b, d, t, inside)
    _store(dz, gradient * slope, b, d, t, inside)


@triton.jit
def input_gradient_kernel(
    du, dpre, dz, u, weight, pre, bounds, D, L, T, shift,
    K: tl.constexpr, BD: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Write du and dpre, (B, D, L), those that are not None: the convolution of dz with the taps in reverse order."""
    b, d, t = _tile(D, L, BD, BL)
    live = d < D
    first, end = _reach(bounds, t, T)
    dv = _convolve(dz, None, weight, b, d, t + (K - 1 - shift), live, first, end, K, True, BD, BL)
    inside = live & (t < L)
    if dpre is not None:
        _store(dpre, dv * _load(u, b, d, t, inside), b, d, t, inside)
    if du is not None:
        if pre is not None:
            dv *= _load(pre, b, d, t, inside)
        _store(du, dv, b, d, t, inside)


@triton.jit(do_not_specialize=COUNTS)
def tap_gradient_kernel(
    sums, dz, u, pre, bounds, D, L, T, shift, tiles, tiles_per_program,
    K: tl.constexpr, TAPS: tl.constexpr, BD: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Write sums (parts, K+1, D), each over some tiles: K gradients of taps, and behind them that of the bias.

    A program takes TAPS taps of BD channels. Those of other taps read the same tiles, and run right beside it.
    """
    groups = (K + TAPS - 1) // TAPS
    down = tl.cdiv(D, BD)
    program = tl.program_id(0)
    tap = (program % groups) * TAPS
    d = _channels((program // groups) % down, BD)
    part = program // (groups * down)
    live = d < D
    across = tl.cdiv(T, BL)
    total = tl.zeros((BD, BL), tl.float32)
    totals = ()
    for _ in tl.static_range(TAPS):
        totals = totals + (tl.zeros((BD, BL), tl.float32),)
    for tile in range(part * tiles_per_program, tl.minimum((part + 1) * tiles_per_program, tiles)):
        b = (tile // across).to(tl.int64)
        t = _samples(tile % across, BL)
        first, end = _reach(bounds, t, L)
        inside = live & (t < T)
        gradient = _load(dz, b, d, t, inside)
        total += gradient
        added = ()
        for i in tl.static_range(TAPS):
            source = t + (shift - tap - i)
            v = _gated(u, pre, b, d, source, inside & _within(source, first, end))
            added = added + (totals[i] + gradient * v,)
        totals = added
    out = sums + part.to(tl.int64) * (K + 1) * D
    channel = tl.reshape(d, (BD,))
    for i in tl.static_range(TAPS):
        tl.store(out + (tap + i) * D + channel, tl.sum(totals[i], 1), mask=channel < tl.where(tap + i < K, D, 0))
    tl.store(out + K * D + channel, tl.sum(total, 1), mask=channel < tl.where(tap == 0, D, 0))


@triton.jit(do_not_specialize=COUNTS)
def backward_kernel(
    du, dpre, dpost, sums, dy, u, weight, bias, pre, post, bounds, D, L, tiles, tiles_per_program,
    SHIFT: tl.constexpr, K: tl.constexpr, SILU: tl.constexpr, BD: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Write every gradient that is not None, for outputs as long as inputs; `sums` as in `tap_gradient_kernel`.

    A sample's dv needs dz at K positions, and these need z there, from v at 2K-1 positions: `window`.
    """
    down = tl.cdiv(D, BD)
    program = tl.program_id(0)
    d = _channels(program % down, BD)
    part = program // down
    live = d < D
    across = tl.cdiv(L, BL)
    start = _bias(bias, d, live)
    taps = ()
    totals = ()
    for s in tl.static_range(K):
        taps = taps + (_tap(weight, d, s, live),)
        totals = totals + (tl.zeros((BD, BL), tl.float32),)
    total = tl.zeros((BD, BL), tl.float32)
    for tile in range(part * tiles_per_program, tl.minimum((part + 1) * tiles_per_program, tiles)):
        b = (tile // across).to(tl.int64)
        t = _samples(tile % across, BL)
        first, end = _reach(bounds, t, L)
        window = ()
        for i in tl.static_range(2 * K - 1):
            source = t + (i - (K - 1))
            window = window + (_gated(u, pre, b, d, source, live & _within(source, first, end)),)
        dv = tl.zeros((BD, BL), tl.float32)
        own = dv
        for s in tl.static_range(K):
            at = t + (s - SHIFT)
            near = live & _within(at, first, end)
            z = tl.zeros((BD, BL), tl.float32) + start
            for i in tl.static_range(K):
                z += taps[i] * window[s - i + K - 1]
            value, slope = _activate(z, SILU)
            gradient = _load(dy, b, d, at, near)
            if dpost is not None and s == SHIFT:
                _store(dpost, gradient * value, b, d, t, live & (t < L))
            if post is not None:
                gradient *= _load(post, b, d, at, near)
            gradient = tl.where(near, gradient * slope, 0.0)
            dv += taps[s] * gradient
            if s == SHIFT:
                own = gradient
        inside = live & (t < L)
        if sums is not None:
            total += own
            added = ()
            for s in tl.static_range(K):
                added = added + (totals[s] + own * window[SHIFT - s + K - 1],)
            totals = added
        if dpre is not None:
            _store(dpre, dv * _load(u, b, d, t, inside), b, d, t, inside)
        if du is not None:
            if pre is not None:
                dv *= _load(pre, b, d, t, inside)
            _store(du, dv, b, d, t, inside)
    if sums is not None:
        out = sums + part.to(tl.int64) * (K + 1) * D
        channel = tl.reshape(d, (BD,))
        for s in tl.static_range(K):
            tl.store(out + s * D + channel, tl.sum(totals[s], 1), mask=channel < D)
        tl.store(out + K * D + channel, tl.sum(total, 1), mask=channel < D)
