"""Overlap-save: long rows with filters of few taps, in frames of a length that follows the filter.

A frame of N samples is multiplied by the filter's spectrum as if everything wrapped; with `past` taps behind and
`future` taps ahead of a sample, its S = N - past - future samples in the middle have seen no wrap. Frames start S
samples apart, so a row costs O(L log K) and the memory is that of a block of frames, however long the row is.
(Oppenheim & Schafer, Discrete-Time Signal Processing, section 8.7.3.) Filters of very few taps go through the same
frames without transforms (direct.py).

Shapes: B batch, D channels, L samples, R rows of a block, J frames of a row, N samples and F = N // 2 + 1 frequencies
of a frame, S samples from one frame to the next.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .. import scratch
from ..shortconv.direct import correlate
from . import direct, halo
from .blocked import compute_dtype, empty_gradients
from .fft import irfft, rfft
from .halo import Block

# Cost of a frame per sample, fitted to timings on two cores: log2 of its length, and so much for what is done besides
# transforming; times so much for lengths that are no power of two; growing from the length that leaves the cache.
PASSES, OTHER_LENGTHS, CACHED_FRAME = 10, 1.3, 2**14


@dataclass(frozen=True)
class Frames:
    """How a row of L samples is cut for a filter that reaches `past` samples back and `future` ahead.

    direct: the taps are added up one by one (direct.py), by no transform.
    """

    past: int
    future: int
    N: int
    direct: bool = False

    @property
    def S(self) -> int:
        """Samples from one frame to the next."""
        return self.N - self.past - self.future

    def count(self, T: int, rows: int) -> int:
        """Frames of a block of T samples: of a row on its own, or of one of several that lie behind each other.

        In the latter the zeros before each row are also those that the last frame of the row before sees.
        """
        alone = -(-T // self.S)
        return alone if alone == 1 or rows == 1 or self.future or self.direct else -(-(T + self.past) // self.S)


def choose_frames(x: Tensor, k: Tensor, k_reverse: Tensor | None, most_direct: int = direct.MOST_TAPS) -> Frames:
    """Choose frames for x (B, D, L), where at most so many taps are added up one by one."""
    past, future, L = k.shape[1] - 1, 0 if k_reverse is None else k_reverse.shape[1], x.shape[-1]
    taps = past + 1 + future
    if taps <= most_direct and direct.suits(x, taps, compute_dtype(x, k)):
        return Frames(past, future, min(L, direct.FRAME) + past + future, direct=True)
    return make_frames(past, future, L)


@lru_cache(maxsize=4096)
def make_frames(past: int, future: int, L: int) -> Frames:
    """Choose frames for rows of L samples and a filter that reaches that many samples back and ahead.

    The row whole with room for the filter, or frames of 2 to 16 times the reach, at least 512: the cheapest.
    """
    reach = past + future
    whole = _frame_length(L + reach)
    lengths = {whole} | {_frame_length(max(512, ratio * reach)) for ratio in (2, 3, 4, 6, 8, 16)}

    def cost(N: int) -> float:
        per_sample = (math.log2(N) + PASSES) * (1 if N & (N - 1) == 0 else OTHER_LENGTHS)
        return Frames(past, future, N).count(L, 2) * N * per_sample * max(1.0, N / CACHED_FRAME) ** 0.25

    return Frames(past, future, min((N for N in sorted(lengths) if reach < N <= whole), key=cost))


def _frame_length(n: int) -> int:
    """The smallest 2^a, 3 * 2^a or 5 * 2^a that is at least n: more threes and fives make real transforms slow."""
    return min(m << (-(-n // m) - 1).bit_length() for m in (1, 3, 5))


def conv_forward(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    k_reverse: Tensor | None,
    circular: bool,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    """Evaluate `fft_conv`, as `blocked.conv_forward` does; taps must reach fewer than L samples either way."""
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)

    def write(at: Block, c: Tensor) -> None:
        if post_gate is None:
            _store(c, y[at])
        else:
            y[at].copy_(_in_a_row(c, y[at]).mul_(post_gate[at]))

    _convolve(u, pre_gate, k, k_reverse, skip, circular, write)
    return y


def conv_backward(
    dy: Tensor,
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    k_reverse: Tensor | None,
    circular: bool,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients as `blocked.conv_backward` gives them, with memory of a block beyond the results."""
    grads = empty_gradients((u, k, skip, k_reverse, pre_gate, post_gate), needs)
    du, dk, dskip, dk_reverse, dpre, dpost = grads
    needs_u, needs_k, needs_skip, needs_reverse, needs_pre, needs_post = needs
    if needs_u or needs_pre:
        # The adjoint of a filter is the same one backwards: what was a tap behind is one ahead.
        causal = k[:, :1] if k_reverse is None else torch.cat([k[:, :1], k_reverse.to(k.dtype)], 1)

        def write(at: Block, frames: Tensor) -> None:
            if needs_u and not needs_pre and pre_gate is None:
                _store(frames, du[at])
                return
            dv = _in_a_row(frames, u[at])
            if needs_pre:
                dpre[at].copy_(dv * u[at])
            if needs_u:
                du[at].copy_(dv if pre_gate is None else dv.mul_(pre_gate[at]))

        _convolve(dy, post_gate, causal, k[:, 1:], skip, circular, write)
    if needs_post:

        def write_post(at: Block, c: Tensor) -> None:
            dpost[at].copy_(_in_a_row(c, dy[at]).mul_(dy[at]))

        _convolve(u, pre_gate, k, k_reverse, skip, circular, write_post)
    if needs_k or needs_reverse or needs_skip:
        frames = choose_frames(u, k, k_reverse, direct.GRADIENT_TAPS)
        for channels, blocks in halo.blocks(u.shape, frames.S, u.device):
            per_lag, sum_dcv = _correlated(
                u, pre_gate, dy, post_gate, frames, circular, k, channels, blocks, needs_skip
            )
            if needs_k:
                dk[channels].copy_(per_lag[:, frames.future :])
            if needs_reverse:
                dk_reverse[channels].copy_(per_lag[:, : frames.future].flip(1))
            if needs_skip:
                dskip[channels].copy_(sum_dcv)
    return grads


def _convolve(
    x: Tensor,
    gate: Tensor | None,
    k: Tensor,
    k_reverse: Tensor | None,
    skip: Tensor | None,
    circular: bool,
    write: Callable[[Block, Tensor], None],
) -> None:
    """Hand `write` the convolution of gate * x block by block: where it is, and its frames (B, D, J, S)."""
    dtype = compute_dtype(x, k)
    frames = choose_frames(x, k, k_reverse)
    N = frames.N
    for channels, blocks in halo.blocks(x.shape, frames.S, x.device):
        if frames.direct:
            few = direct.taps_of(k, k_reverse, skip, channels)
            for batch, times in blocks:
                at = (batch, channels, times)
                write(at, direct.filtered(_framed(x, gate, at, frames, circular, dtype), few))
            continue
        taps = k.new_zeros((k[channels].shape[0], N), dtype=dtype)
        # Tap s acts s samples later; `past` samples earlier than that, the first S samples are the good ones.
        taps[:, N - frames.past :] = k[channels, : frames.past]
        taps[:, 0] += k[channels, frames.past]
        if k_reverse is not None:
            taps[:, N - frames.past - frames.future : N - frames.past] = k_reverse[channels].flip(1)
        spectrum_DF = rfft(taps).mul_(1 / N)
        weight = None if skip is None else skip[channels, None, None].to(dtype)
        for batch, times in blocks:
            at = (batch, channels, times)
            write(at, _filtered(_framed(x, gate, at, frames, circular, dtype), spectrum_DF, weight, frames))


def _filtered(framed: Tensor, spectrum_DF: Tensor, weight: Tensor | None, frames: Frames) -> Tensor:
    """Valid until the next call."""
    X = _transformed(framed, "frame spectra")
    back = scratch.empty("filtered frames", framed.shape, framed.dtype, framed.device)
    c = irfft(X.mul_(spectrum_DF[:, None]), frames.N, back)[..., : frames.S]
    return c if weight is None else c.addcmul_(weight, framed[..., frames.past : frames.past + frames.S])


def _transformed(frames: Tensor, slot: str) -> Tensor:
    shape, dtype = (*frames.shape[:-1], frames.shape[-1] // 2 + 1), frames.dtype.to_complex()
    return rfft(frames, scratch.empty(slot, shape, dtype, frames.device))


def _in_a_row(frames: Tensor, like: Tensor) -> Tensor:
    """Copy frames (B, D, J, S) into a new (B, D, T), T as that of `like`."""
    return frames.flatten(-2)[..., : like.shape[-1]]


def _store(frames: Tensor, target: Tensor) -> None:
    """Write frames (B, D, J, S) into `target` (B, D, T <= J S)."""
    S, T = frames.shape[-1], target.shape[-1]
    whole = T // S
    target[..., : whole * S].unflatten(-1, (whole, S)).copy_(frames[:, :, :whole])
    if whole * S < T:
        target[..., whole * S :].copy_(frames[:, :, whole, : T - whole * S])


def _correlated(
    x: Tensor,
    x_gate: Tensor | None,
    dy: Tensor,
    dy_gate: Tensor | None,
    frames: Frames,
    circular: bool,
    k: Tensor,
    channels: slice,
    blocks: list[tuple[slice, slice]],
    needs_skip: bool,
) -> tuple[Tensor, Tensor]:
    """Sum over batch and time: v[t - s] dc[t] for lags s = -future ... past, (D, past + 1 + future), and v[t] dc[t]."""
    dtype = compute_dtype(x, k)
    N, S = frames.N, frames.S
    spectrum_DF, lags, products = k.new_zeros(()), k.new_zeros(()), k.new_zeros(())
    padded, length = k.new_empty(0), 0
    for at in ((batch, channels, times) for batch, times in blocks):
        framed = _framed(x, x_gate, at, frames, circular, dtype)
        dc = dy[at].to(dtype) if dy_gate is None else dy[at].to(dtype) * dy_gate[at]
        T = dc.shape[-1]
        room = torch.Size((*framed.shape[:-1], S if frames.direct else N))
        if padded.shape != room or length != T:  # else it is zero where it has to be
            padded, length = dc.new_zeros(room), T
        whole = T // S
        padded[:, :, :whole, :S] = dc[..., : whole * S].unflatten(-1, (whole, S))
        if whole * S < T:
            padded[:, :, whole, : T - whole * S] = dc[..., whole * S :]
        if frames.direct:
            lags = lags + correlate(framed, padded)
            continue
        # One axis after the other: PyTorch sums over two at once ten times more slowly.
        if needs_skip:
            here = framed[..., frames.past : frames.past + S] * padded[..., :S]
            products = products + here.sum(-1).sum(-1).sum(0)
        # Sample i of a frame of v is i - past steps after the first one of the gradient: result i is lag past - i.
        Z = _transformed(padded, "frame spectra").conj_physical_()
        spectrum_DF = spectrum_DF + Z.mul_(_transformed(framed, "other frame spectra")).sum(0).sum(1)
    if frames.direct:
        return lags.flip(1), lags[:, frames.past]
    lags = irfft(spectrum_DF, N).mul_(1 / N)[:, : frames.past + frames.future + 1]
    return lags.flip(1), products


def _framed(x: Tensor, gate: Tensor | None, at: Block, frames: Frames, circular: bool, dtype: torch.dtype) -> Tensor:
    """Return the frames (B, D, J, N) of v = gate * x over a block of time, as overlapping views of its rows.

    Valid until the next call.
    """
    past, future, S = frames.past, frames.future, frames.S
    B, D, T = (part.stop - part.start for part in at)
    J = frames.count(T, 1 if circular else B * D)
    if circular or future or B * D == 1 or J == 1 or frames.direct:
        rows = scratch.empty("frames", (B, D, J * S + past + future), dtype, x.device)
        halo.fill(rows[..., : T + past + future], x, gate, at, past, future, circular)
        rows[..., T + past + future :].zero_()
        return rows.unfold(-1, frames.N, S)
    # Rows J S samples apart make all frames equally far from each other, so that they are transformed without a copy.
    # The last frame of a row then sees the first samples of the next, but these are the zeros before it.
    flat = scratch.empty("frames", (B * D * J * S + past,), dtype, x.device)
    flat[B * D * J * S :].zero_()
    rows = flat[: B * D * J * S].view(B, D, J * S)
    halo.fill(rows[..., : past + T], x, gate, at, past, 0, False)
    rows[..., past + T :].zero_()
    return flat.as_strided((B, D, J, frames.N), (D * J * S, J * S, S, 1))
