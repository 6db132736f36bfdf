"""The arithmetic of `dilated_conv` on a CPU: shifted multiply-adds on blocks that stay in cache.

Shapes: B batch, D channels, L samples in, K taps, `left` zeros before and `right` behind the input (negative: samples
cut off), so T = L + left + right - (K-1) dilation samples out. Output t sees through tap s the input

    t + offset_s,    offset_s = (K-1-s) dilation - left.

`F.conv1d` with groups reorders its input and its result, whatever the number of taps, and its gradients are several
times slower than that; a multiply-add for each tap costs what passing over a block in cache costs. For many taps
`F.conv1d` is the faster one, see `convolve`.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Samples in a block. A multiply-add over one takes long enough to hide its call (some microseconds), and input, sum and
# product of a block stay in cache. Elsewhere calls cost more.
BLOCK = {"cpu": 2**18}
BLOCK_ELSEWHERE = 2**26

# `F.conv1d` takes over from so many taps and channels on: it hardly minds further taps, but works on 16 channels at a
# time. Forward, (4, 32, 16384) on one core: 2.4 to 3.7 ms (by dilation) against 2.5 with 7 taps, 3.0 to 4.8 against 5.0
# with 15.
MANY_TAPS, MANY_CHANNELS = 9, 16


def compute_dtype(u: Tensor, k: Tensor) -> torch.dtype:
    """Return the wider of the two dtypes, at least float32."""
    return torch.promote_types(torch.promote_types(u.dtype, k.dtype), torch.float32)


def empty_output(u: Tensor, T: int) -> Tensor:
    """Room for an output (B, D, T), laid out channels last if u is."""
    B, D, _ = u.shape
    if channels_last(u):
        return torch.empty((B, T, D), dtype=u.dtype, device=u.device).transpose(1, 2)
    return torch.empty((B, D, T), dtype=u.dtype, device=u.device)


def channels_last(u: Tensor) -> bool:
    """Whether the channels of u (B, D, L) are neighbours in memory, and its samples are not."""
    return u.stride(1) == 1 and u.stride(2) != 1


def sequence_index(cu_seqlens: Tensor, L: int) -> Tensor:
    """Return the number of the packed sequence that each of L samples belongs to, (L,)."""
    return torch.bucketize(torch.arange(L, device=cu_seqlens.device), cu_seqlens[1:], right=True)


def convolve(
    u: Tensor, k: Tensor, bias: Tensor | None, dilation: int, left: int, right: int, index: Tensor | None = None
) -> Tensor:
    """Evaluate :func:`shifted` by whichever way is faster; arguments and result as there."""
    L, reach = u.shape[2], (k.shape[1] - 1) * dilation
    many = k.shape[1] >= MANY_TAPS and u.shape[1] >= MANY_CHANNELS and 2 * reach <= L and not channels_last(u)
    if u.device.type == "cpu" and (index is not None or not many):
        return shifted(u, k, bias, dilation, left, right, index)
    y = composite(u, k, bias, dilation, left, right, index)
    if channels_last(u):
        return y.transpose(1, 2).contiguous().transpose(1, 2)
    return y.contiguous()


def shifted(
    u: Tensor, k: Tensor, bias: Tensor | None, dilation: int, left: int, right: int, index: Tensor | None = None
) -> Tensor:
    """Evaluate `y[b,d,t] = bias[d] + sum_s k[d,s] u[b,d,t + offset_s]`.

    Args:
        u: (B, D, L), with any strides.
        k: (D, K).
        bias: (D,) or None.
        dilation: samples from one tap to the next.
        left: zeros before u.
        right: zeros behind u.
        index: (L,) numbers of packed sequences, see `sequence_index`; taps see their own sequence only.

    Returns:
        (B, D, T) in the dtype of u, in the layout of `empty_output`.
    """
    B, D, L = u.shape
    K = k.shape[1]
    T, dtype = L + left + right - (K - 1) * dilation, compute_dtype(u, k)
    y = empty_output(u, T)
    offsets = [(K - 1 - s) * dilation - left for s in range(K)]
    u, taps = dense(u), k.to(dtype).t().contiguous()
    for rows, channels, times in blocks((B, D, T), channels_last(u), u.device):
        x = u[rows, channels].to(dtype)
        columns = taps[:, channels, None].unbind()
        start = None if bias is None else bias[channels, None].to(dtype)
        for span in times:
            out = y[rows, channels, span]
            acc = out if y.dtype == dtype else torch.empty_like(out, dtype=dtype)
            accumulate(acc, x, columns, [o + span.start for o in offsets], start, _masks(index, offsets, span))
            if acc is not out:
                out.copy_(acc)
    return y


def weight_gradient(
    dy: Tensor, u: Tensor, K: int, dilation: int, left: int, right: int, index: Tensor | None = None
) -> Tensor:
    """Evaluate `dk[d,s] = sum_{b,t} dy[b,d,t] u[b,d,t + offset_s]`, (D, K), at least float32, in a fixed order."""
    B, D, T = dy.shape
    dtype = compute_dtype(dy, u)
    offsets = [(K - 1 - s) * dilation - left for s in range(K)]
    dk = torch.zeros((K, D), dtype=dtype, device=u.device)
    dy, u = dense(dy), dense(u)
    for rows, channels, times in blocks((B, D, T), channels_last(u), u.device):
        x = u[rows, channels].to(dtype)
        for span in times:
            grad = dy[rows, channels, span].to(dtype)
            masks = _masks(index, offsets, span)
            correlate(dk[:, channels], grad, x, [o + span.start for o in offsets], masks)
    return dk.t().contiguous()


def accumulate(
    acc: Tensor,
    x: Tensor,
    columns: tuple[Tensor, ...],
    offsets: list[int],
    start: Tensor | None = None,
    masks: list[Tensor] | None = None,
    *,
    add: bool = False,
) -> None:
    """Write `acc[..., t] = start + sum_s columns[s] x[..., t + offsets[s]]`, where x is zero outside its L samples.

    Args:
        acc: (..., n), written, or added to if `add`.
        x: (..., L).
        columns: for each tap its weights, broadcast against acc.
        offsets: for each tap where it reads.
        start: broadcast against acc, or None for zero.
        masks: for each tap (n,) bool, where it counts. What it does not count may be NaN.
        add: keep what acc holds, and ignore `start`.
    """
    n, L = acc.shape[-1], x.shape[-1]
    order = list(range(len(columns)))
    if start is not None and not add:
        acc.copy_(start.expand_as(acc))
    elif not add:
        # A tap that reaches a sample from everywhere writes, so that nothing has to be cleared.
        full = next((s for s in order if offsets[s] >= 0 and offsets[s] + n <= L), None)
        if full is None or masks is not None:
            acc.zero_()
        else:
            torch.mul(x.narrow(-1, offsets[full], n), columns[full], out=acc)
            order.remove(full)
    for s in order:
        o = offsets[s]
        first, last = max(0, -o), min(n, L - o)
        if first >= last:
            continue
        seen = x.narrow(-1, first + o, last - first)
        if masks is not None:
            seen = torch.where(masks[s][first:last], seen, 0)
        out = acc if last - first == n else acc.narrow(-1, first, last - first)
        out.addcmul_(seen, columns[s])


def correlate(sums: Tensor, grad: Tensor, x: Tensor, offsets: list[int], masks: list[Tensor] | None = None) -> None:
    """Add `sum_{b,t} grad[b,d,t] x[b,d,t + offsets[s]]` to sums (K, D), for blocks (B, D, n) and (B, D, L)."""
    n, L = grad.shape[-1], x.shape[-1]
    room = torch.empty_like(grad)
    for s, o in enumerate(offsets):
        first, last = max(0, -o), min(n, L - o)
        if first >= last:
            continue
        seen = x.narrow(-1, first + o, last - first)
        if masks is not None:
            seen = torch.where(masks[s][first:last], seen, 0)
        whole = last - first == n
        products = torch.mul(
            grad if whole else grad.narrow(-1, first, last - first),
            seen,
            out=room if whole else room.narrow(-1, first, last - first),
        )
        sums[s] += products.sum((0, 2))


def dense(u: Tensor) -> Tensor:
    """Return u (B, D, L), copied if neither its samples nor its channels are neighbours in memory."""
    return u if u.stride(2) == 1 or channels_last(u) else u.contiguous()


def blocks(
    shape: Sequence[int], is_channels_last: bool, device: torch.device
) -> Iterator[tuple[slice, slice, list[slice]]]:
    """Yield slices of the batch and of channels, each with the slices of time to go through for them."""
    B, D, T = shape
    if B * D * T == 0:
        return
    size = BLOCK.get(device.type, BLOCK_ELSEWHERE)
    if is_channels_last:
        per_d = D
        per_t = min(T, max(1, size // D))
    else:
        per_t = min(T, size)
        per_d = min(D, max(1, size // per_t))
    per_b = min(B, max(1, size // (per_d * per_t)))
    times = list(_slices(T, per_t))
    for batch, channels in itertools.product(_slices(B, per_b), _slices(D, per_d)):
        yield batch, channels, times


def _slices(n: int, step: int) -> Iterator[slice]:
    return (slice(i, min(i + step, n)) for i in range(0, n, step))


def _masks(index: Tensor | None, offsets: list[int], span: slice) -> list[Tensor] | None:
    """For each tap, which outputs of a span find it in their own packed sequence."""
    if index is None:
        return None
    here = index[span]
    at = torch.arange(span.start, span.stop, device=index.device)
    return [here == index[(at + o).clamp_(0, index.shape[0] - 1)] for o in offsets]


def composite(
    u: Tensor, k: Tensor, bias: Tensor | None, dilation: int, left: int, right: int, index: Tensor | None = None
) -> Tensor:
    """Evaluate what `convolve` does, by PyTorch's own differentiable operations."""
    dtype, D = compute_dtype(u, k), u.shape[1]
    x = F.pad(u.to(dtype), (left, right)) if left or right else u.to(dtype)
    b = None if bias is None else bias.to(dtype)
    if index is None:
        y = F.conv1d(x, k.to(dtype).flip(-1)[:, None], b, dilation=dilation, groups=D)
        return y.to(u.dtype)
    T, K = u.shape[-1], k.shape[1]
    behind = F.pad(index, (left, right), value=-1)
    total = torch.zeros_like(x[..., :T]) if b is None else b[:, None].expand(u.shape)
    for s in range(K):
        at = (K - 1 - s) * dilation
        seen = torch.where(behind[at : at + T] == index, x[..., at : at + T], 0)
        total = total + k[:, s, None].to(dtype) * seen
    return total.to(u.dtype)
