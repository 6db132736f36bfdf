"""Several sequences in one row: the outputs that saw a neighbour are computed again without it.

Shapes: D channels, L time steps, N sequences, K = left + right + 1 taps, seeing `left` samples back and `right` ahead.

Packed in a row of 8,192 samples and 256 channels on one core, K = 3, forward: not packed 3.6 ms; this way 8.6 ms for 8
sequences, 10.7 ms for 1,024; one convolution over a row with zeros between the sequences 30 ms and 25 ms; one masked
product for each tap 26 ms and 10 ms.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor


def check_boundaries(cu_seqlens: Tensor, L: int) -> None:
    """Raise ValueError unless `cu_seqlens` rises from 0 to L.

    A compiled graph does not know the values yet: it holds the check, and raises RuntimeError when it runs.
    """
    if torch.compiler.is_compiling():
        ok = (cu_seqlens[0] == 0) & (cu_seqlens[-1] == L) & (cu_seqlens.diff() >= 0).all()
        torch._assert_async(ok, "cu_seqlens must start at 0, never decrease and end at the length of u")
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0:
        raise ValueError(f"cu_seqlens must start at 0; got {bounds[0]}")
    if bounds[-1] != L:
        raise ValueError(f"cu_seqlens must end at the length of u, {L}; got {bounds[-1]}")
    for before, after in itertools.pairwise(bounds):
        if after < before:
            raise ValueError(f"cu_seqlens must not decrease; got {before} followed by {after}")


def separate(
    y: Tensor, u: Tensor, cu_seqlens: Tensor, left: int, right: int, convolve: Callable[[Tensor, int, int], Tensor]
) -> Tensor:
    """Replace what saw a neighbour: the first `left` and the last `right` outputs of each sequence.

    Args:
        y: (1, D, L+1), the convolution of the whole row; its last sample is scratch.
        u: (1, D, L), the row.
        cu_seqlens: (N+1,) integer, the boundaries.
        left: samples that the taps see back.
        right: samples that they see ahead.
        convolve: `convolve(segments, left, right)`, the same convolution with so many zeros before and behind.

    Returns:
        (1, D, L). Values are replaced, not corrected: a difference would keep a neighbour's NaN.
    """
    L = u.shape[-1]
    cu_seqlens = cu_seqlens.to(torch.int64)
    starts, ends = cu_seqlens[:-1, None], cu_seqlens[1:, None]
    near = torch.arange(left + right, device=u.device)  # K - 1 samples from either end hold all that these outputs see
    positions, values = [], []
    if left:
        at = starts + near
        values.append(convolve(_segments(u, at, at < ends), left, 0))
        # Sequences may be shorter than the taps: what lies beyond their end goes to the scratch sample.
        positions.append(torch.where(at < ends, at, L)[:, :left])
    if right:
        at = ends - (left + right) + near
        values.append(convolve(_segments(u, at, at >= starts), 0, right))
        # Outputs near both ends are among the first ones already; written twice, they would get their gradient twice.
        positions.append(torch.where(at >= starts + left, at, L)[:, left:])
    scattered = torch.cat(values, -1).transpose(0, 1).flatten(1)[None]
    return y.index_copy(-1, torch.cat(positions, -1).flatten(), scattered)[..., :L]


def _segments(u: Tensor, at: Tensor, inside: Tensor) -> Tensor:
    """Gather u (1, D, L) at `at` (N, S), zero where `inside` is False: (N, D, S)."""
    gathered = u[0].index_select(-1, at.clamp(0, u.shape[-1] - 1).flatten()).unflatten(-1, at.shape)
    return torch.where(inside, gathered, 0).transpose(0, 1).contiguous()
