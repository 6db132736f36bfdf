"""`multires_conv` over a stream: what has to be kept, in chunks and sample by sample.

A level sees its own past at multiples of its dilation, so `DelayLines` keep, for each level j = 0 ... J-1, the last
(K-1) 2^j samples of a_j, and for each level with n > 1 coefficients the last (n-1) 2^{j+1} samples of b_{j+1}.

That is N-1 = (K-1) (2^J - 1) samples a channel for "fading" memory, O(K L), and no exact stream can have less. y is a
causal convolution with N taps g_0 ... g_{N-1}, the last of which is h0[K-1]^{J-1} (w_0 h0[K-1] + w_1 h1[K-1]), in
general not zero. Fed with zeros after a past x_{-1}, x_{-2}, ..., its outputs at t = N-2, N-3, ... are g_{N-1} x_{-1},
g_{N-2} x_{-1} + g_{N-1} x_{-2}, and so on: a triangular system, which gives back the N-1 latest inputs. The state
determines these outputs, so it has as many numbers (the Hankel matrix of g has rank N-1). O(K log L) numbers would do
for a tree with decimated levels, whose outputs are others, or approximately, by distillation. What is O(K log L) here
is the cost of a step: 2 K J products, and one for each coefficient.

"uniform" memory has the same minimum, reached by keeping the inputs alone, at O(K L) products a step; here the b_{j+1}
are kept besides, so that a step costs what it does for "fading".
"""

import torch
from torch import Tensor

from ..dilated import direct
from ..dilated.delay import DelayLines
from ..dilated.op import dilated_conv_op
from . import tree


def signals(counts: list[int], K: int) -> tuple[list[int], list[int]]:
    """Return how far back each signal is kept, and its dilation: a_0 ... a_{J-1}, then b_{j+1} of long levels."""
    levels = range(max(1, len(counts)))  # without levels there is a_0, of which nothing is kept
    long = [j for j, count in enumerate(counts) if count > 1]
    dilations = [2**j for j in levels] + [2 ** (j + 1) for j in long]
    counted = [K - 1 if counts else 0 for _ in levels] + [counts[j] - 1 for j in long]
    return [c * d for c, d in zip(counted, dilations, strict=True)], dilations


def empty(counts: list[int], K: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> DelayLines:
    """Return the state before the first sample of rows (B, D)."""
    reaches, dilations = signals(counts, K)
    return DelayLines([torch.zeros(*shape, reach, dtype=dtype, device=device) for reach in reaches], dilations)


def chunk(
    x: Tensor, h0: Tensor, h1: Tensor, w: Tensor, counts: list[int], state: DelayLines
) -> tuple[Tensor, DelayLines]:
    """Evaluate the next samples x (B, D, L) of a stream; y in the dtype of x, and the state behind them."""
    dtype = direct.compute_dtype(x, h0)
    windows = [state.window(i).to(dtype) for i in range(len(state.reaches))]
    long = [j for j, count in enumerate(counts) if count > 1]
    extended: dict[int, Tensor] = {}

    def conv(i: int, a: Tensor, taps: Tensor, dilation: int) -> Tensor:
        if i not in extended:
            extended[i] = torch.cat([windows[i], a], -1)
        return dilated_conv_op(extended[i], taps, None, dilation, 0, 0, None, "torch")

    def conv_details(j: int, b: Tensor, taps: Tensor, dilation: int) -> Tensor:
        return conv(len(counts) + long.index(j), b, taps, dilation)

    filters = h0.to(dtype), h1.to(dtype), w.to(dtype)
    y = tree.composite(x.to(dtype), *filters, counts, conv, conv_details)
    after = [extended[i][..., extended[i].shape[-1] - r :] if r else windows[i] for i, r in enumerate(state.reaches)]
    return y.to(x.dtype), DelayLines(after, state.dilations)


def step(
    x_t: Tensor, state: DelayLines, h0: Tensor, h1: Tensor, w: Tensor, counts: list[int]
) -> tuple[Tensor, DelayLines]:
    """Evaluate the next sample x_t (B, D) of a stream; y_t in its dtype, and the state behind it."""
    dtype = direct.compute_dtype(x_t, h0)
    J, K = len(counts), h0.shape[1]
    h0, h1, w = (h.to(dtype).t() for h in (h0, h1, w))  # (K, D), (K, D), (coefficients + 1, D)
    seen, start = state.taps().to(dtype), J * (K - 1)
    past = seen[:, :start].reshape(x_t.shape[0], J, K - 1, x_t.shape[1])
    smooth, detail = ((past * h[1:]).sum(2) for h in (h0, h1))  # what lags from 1 on give: (B, J, D)
    a = x_t.to(dtype)
    levels = [a]
    for j in range(J):
        levels.append(torch.addcmul(smooth[:, j], h0[0], levels[-1]))
    y = w[-1] * a + w[0] * levels[-1]
    new = torch.stack(levels[: max(1, J)], 1)
    coarse = next((j for j in range(J) if counts[j]), J)  # levels without coefficients are the finest
    if coarse < J:
        b = torch.addcmul(detail[:, coarse:], h1[0], new[:, coarse:J])
        at = tree.columns(counts)
        y = y + (w[at[coarse:]] * b).sum(1)
        for j in range(coarse, J):
            if counts[j] > 1:
                y = y + (w[at[j] + 1 : at[j] + counts[j]] * seen[:, start : start + counts[j] - 1]).sum(1)
                start += counts[j] - 1
        if long := [j - coarse for j in range(coarse, J) if counts[j] > 1]:
            new = torch.cat([new, b[:, long]], 1)
    return y.to(x_t.dtype), state.append(new)
