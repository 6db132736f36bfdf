"""The tree of `multires_conv`: which coefficients there are, how it is evaluated and differentiated.

Shapes: B batch, D channels, L samples, K taps, J levels. `counts[j]` coefficients are spent on b_{j+1}, the details
that level j gives, in w from column `columns(counts)[j]` on; the i-th of them weighs the node i 2^{j+1} samples back:

    y = w_0 a_J + w_last x + sum_j sum_i w_{column_j + i} b_{j+1}[t - i 2^{j+1}].

A level with one coefficient needs no b of its own: the taps w h1 lead from a_j to y.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dilated import direct
from ..dilated.direct import accumulate, correlate

Taps = tuple[Tensor, ...]


def spend(levels: int, K: int, coefficients: int, tree_select: str) -> list[int]:
    """Return how many of the coefficients (w has one more, for x itself) each level gets, the finest first.

    Of those one is spent on a_J. "uniform" spends the others on the coarsest level first: one on its node at t, then on
    all nodes of the next level that this one sees, and so on, as long as there are any.
    """
    if tree_select == "fading":
        return [1] * levels
    counts, left, nodes = [0] * levels, coefficients - 1, 1
    for j in reversed(range(levels)):
        counts[j] = min(nodes, left)
        left -= counts[j]
        nodes = 2 * (nodes - 1) + K
    return counts


def columns(counts: list[int]) -> list[int]:
    """Return for each level the column of w where its coefficients begin: the coarsest level's stand first."""
    return [1 + sum(counts[j + 1 :]) for j in range(len(counts))]


def products(counts: list[int], K: int) -> int:
    """Return how many multiply-adds the tree makes for a sample."""
    return sum(K + (K if count else 0) + (count if count > 1 else 0) for count in counts)


def composite(
    x: Tensor,
    h0: Tensor,
    h1: Tensor,
    w: Tensor,
    counts: list[int],
    conv: Callable[[int, Tensor, Tensor, int], Tensor],
    conv_details: Callable[[int, Tensor, Tensor, int], Tensor] | None = None,
) -> Tensor:
    """Evaluate the tree by differentiable operations.

    Args:
        x: (B, D, L), in the dtype of the arithmetic, as are the others.
        h0: (D, K).
        h1: (D, K).
        w: (D, coefficients + 1).
        counts: from `spend`.
        conv: `conv(j, a, taps, dilation)`, the causal convolution of a_j.
        conv_details: the same of b_{j+1}; default `conv`.

    Returns:
        y (B, D, L).
    """
    a, y = x, w[:, -1:] * x
    for j, (count, column) in enumerate(zip(counts, columns(counts), strict=True)):
        if count:
            b = conv(j, a, h1, 2**j)
            if count == 1:
                y = y + w[:, column, None] * b
            else:
                y = y + (conv_details or conv)(j, b, w[:, column : column + count], 2 ** (j + 1))
        a = conv(j, a, h0, 2**j)
    return y + w[:, :1] * a


@dataclass
class _Filters:
    """The filters of some channels, each tap a column (D, 1) of the dtype of the arithmetic."""

    h0: Taps
    h1: Taps
    w: Taps

    def details(self, column: int) -> Taps:
        """Taps from a level to y where it has one coefficient."""
        return tuple(tap * self.w[column] for tap in self.h1)


def forward(x: Tensor, h0: Tensor, h1: Tensor, w: Tensor, counts: list[int]) -> Tensor:
    """Evaluate `multires_conv` row by row: all levels of a few rows, in cache, before the next rows."""
    dtype = direct.compute_dtype(x, h0)
    y = direct.empty_output(x, x.shape[-1])
    for rows, channels in _blocks(x):
        f = _filters(h0, h1, w, channels, dtype)
        a = x[rows, channels].to(dtype).contiguous()
        acc, room, spare = (torch.empty_like(a) for _ in range(3))
        torch.mul(a, f.w[-1], out=acc)
        for j, (count, column) in enumerate(zip(counts, columns(counts), strict=True)):
            back = _lags(f.h1, -(2**j))
            if count == 1:
                accumulate(acc, a, f.details(column), back, add=True)
            elif count:
                accumulate(room, a, f.h1, back)
                taps = f.w[column : column + count]
                accumulate(acc, room, taps, _lags(taps, -(2 ** (j + 1))), add=True)
            accumulate(room, a, f.h0, back)
            a, room, spare = room, (spare if j == 0 else a), spare  # a_0 is the input: it is not written to
        y[rows, channels] = acc.addcmul_(a, f.w[0])
    return y


def backward(
    dy: Tensor, x: Tensor, h0: Tensor, h1: Tensor, w: Tensor, counts: list[int], needs: list[bool]
) -> list[Tensor]:
    """Gradients for (x, h0, h1, w), those of filters in at least float32; `needs` says whether for x, for filters.

    The levels of a few rows at a time are computed again. What is not needed comes back empty.
    """
    dtype = direct.compute_dtype(x, h0)
    needs_x, needs_filters = needs
    dx = direct.empty_output(x, x.shape[-1]) if needs_x else x.new_empty(0)
    sums = [torch.zeros(h.shape[::-1], dtype=dtype, device=x.device) for h in (h0, h1, w)]
    for rows, channels in _blocks(x):
        f = _filters(h0, h1, w, channels, dtype)
        grad = dy[rows, channels].to(dtype).contiguous()
        a = x[rows, channels].to(dtype).contiguous()
        levels = [a]
        if needs_filters:
            for j in range(len(counts)):
                levels.append(torch.empty_like(a))
                accumulate(levels[-1], levels[-2], f.h0, _lags(f.h0, -(2**j)))
        a_bar = _through_tree(grad, levels, f, counts, [s[:, channels] for s in sums] if needs_filters else None)
        if needs_x:
            dx[rows, channels] = a_bar.addcmul_(grad, f.w[-1])
    filters = [s.t().contiguous() if needs_filters else x.new_empty(0) for s in sums]
    return [dx, *filters]


def _through_tree(
    grad: Tensor, levels: list[Tensor], f: _Filters, counts: list[int], sums: list[Tensor] | None
) -> Tensor:
    """Return the gradient that reaches x through the tree; add those of the filters to `sums` (h0, h1, w)."""
    if sums is not None:
        correlate(sums[2][-1:], grad, levels[0], [0])
        correlate(sums[2][:1], grad, levels[-1], [0])
    a_bar = grad * f.w[0]
    for j, column in reversed(list(enumerate(columns(counts)))):
        below, count = torch.empty_like(grad), counts[j]
        back, ahead = _lags(f.h0, -(2**j)), _lags(f.h0, 2**j)
        accumulate(below, a_bar, f.h0, ahead)
        if sums is not None:
            correlate(sums[0], a_bar, levels[j], back)
        if count == 1:
            accumulate(below, grad, f.details(column), ahead, add=True)
            if sums is not None:
                products = torch.zeros_like(sums[1])
                correlate(products, grad, levels[j], back)
                sums[1] += products * f.w[column][:, 0]
                sums[2][column] += (products * torch.stack(f.h1)[..., 0]).sum(0)
        elif count:
            taps = f.w[column : column + count]
            b_bar = torch.empty_like(grad)
            accumulate(b_bar, grad, taps, _lags(taps, 2 ** (j + 1)))
            accumulate(below, b_bar, f.h1, ahead, add=True)
            if sums is not None:
                correlate(sums[1], b_bar, levels[j], back)
                accumulate(b_bar, levels[j], f.h1, back)
                correlate(sums[2][column : column + count], grad, b_bar, _lags(taps, -(2 ** (j + 1))))
        a_bar = below
    return a_bar


def _filters(h0: Tensor, h1: Tensor, w: Tensor, channels: slice, dtype: torch.dtype) -> _Filters:
    return _Filters(*(h[channels].to(dtype).t().contiguous().unsqueeze(-1).unbind() for h in (h0, h1, w)))


def _lags(taps: Taps, dilation: int) -> list[int]:
    return [s * dilation for s in range(len(taps))]


def _blocks(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of the batch and of channels; whole rows, because a level sees as far back as a row reaches."""
    return ((rows, channels) for rows, channels, _ in direct.blocks(x.shape, False, x.device))
