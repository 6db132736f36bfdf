"""Packed sequences: rows of different lengths, one behind the other in a single row, each convolved on its own.

Sequences of similar length are laid side by side in a batch, with zeros behind the shorter ones, and convolved there:
the cost follows the number of samples, not that of sequences times the longest one. Zeros behind a sequence change
nothing unless it wraps; circular convolutions put only equal lengths together.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .blocked import empty_gradients

# Sequences in one batch are padded to the next multiple of this fraction of a power of two: by at most a quarter.
STEPS_PER_OCTAVE = 4
# Samples in a batch of sequences: enough to keep the transforms busy, few beside the packed row itself.
BATCH_SAMPLES = 2**20

Convolve = Callable[..., Any]


def check_cu_seqlens(cu_seqlens: Tensor, u: Tensor) -> None:
    """Raise ValueError unless `cu_seqlens` is a vector of integers beside a u (1, D, L)."""
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.shape[0] < 2:
        raise ValueError(
            "cu_seqlens must be a vector of N + 1 >= 2 integers (int32 or int64); "
            f"got shape {tuple(cu_seqlens.shape)}, {cu_seqlens.dtype}"
        )
    if u.shape[0] != 1:
        raise ValueError(
            f"cu_seqlens: packed sequences lie in a single row, so u must have B = 1; got B = {u.shape[0]}"
        )


def boundaries(cu_seqlens: Tensor, u: Tensor) -> list[int]:
    """Return the values of `cu_seqlens`; ValueError unless they go from 0 to L without a step back."""
    ends: list[int] = cu_seqlens.tolist()
    if ends[0] != 0 or ends[-1] != u.shape[-1]:
        raise ValueError(f"cu_seqlens must start at 0 and end at L = {u.shape[-1]}; got {ends[0]} and {ends[-1]}")
    if any(after < before for before, after in itertools.pairwise(ends)):
        raise ValueError("cu_seqlens must not decrease")
    return ends


def conv_forward(
    convolve: Convolve,
    ends: list[int],
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    k_reverse: Tensor | None,
    circular: bool,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    """Evaluate the sequences that end at `ends[1:]`, each by `convolve` (`fft_conv`'s arguments, in that order)."""
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    for spans in _batches(ends, u.shape[1], circular):
        rows, pre, post = (_gather(x, spans) for x in (u, pre_gate, post_gate))
        _scatter(convolve(rows, k, skip, k_reverse, circular, pre, post), y, spans)
    return y


def conv_backward(
    convolve_backward: Convolve,
    ends: list[int],
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
    """Gradients as `blocked.conv_backward` gives them; those of filters are summed over the sequences in order."""
    inputs = (u, k, skip, k_reverse, pre_gate, post_gate)
    grads = empty_gradients(inputs, needs)
    for spans in _batches(ends, u.shape[1], circular):
        rows, pre, post, drows = (_gather(x, spans) for x in (u, pre_gate, post_gate, dy))
        parts = convolve_backward(drows, rows, k, skip, k_reverse, circular, pre, post, needs)
        for i, (grad, part) in enumerate(zip(grads, parts, strict=True)):
            if not needs[i] or inputs[i] is None:
                continue
            if i in (1, 2, 3):
                grad += part
            else:
                _scatter(part, grad, spans)
    return grads


_Spans = list[tuple[int, int]]  # start and end of each sequence


def _batches(ends: list[int], D: int, circular: bool) -> Iterator[_Spans]:
    """Yield sequences that go together."""
    by_length: dict[int, _Spans] = defaultdict(list)
    for start, end in itertools.pairwise(ends):
        if end > start:
            by_length[end - start if circular else _rounded(end - start)].append((start, end))
    for length, spans in sorted(by_length.items()):
        per_batch = max(1, BATCH_SAMPLES // (length * max(D, 1)))
        for first in range(0, len(spans), per_batch):
            yield spans[first : first + per_batch]


def _rounded(length: int) -> int:
    step = max(1, (1 << (length - 1).bit_length()) // (2 * STEPS_PER_OCTAVE))
    return -(-length // step) * step


def _gather(x: Tensor | None, spans: _Spans) -> Tensor | None:
    """Lay the spans of x (1, D, L) side by side: (len(spans), D, length of the longest)."""
    if x is None:
        return None
    longest = max(end - start for start, end in spans)
    if len(spans) == 1:
        return x[..., spans[0][0] : spans[0][1]]
    rows = torch.zeros(len(spans), x.shape[1], longest, dtype=x.dtype, device=x.device)
    for row, (start, end) in zip(rows, spans, strict=True):
        row[:, : end - start] = x[0, :, start:end]
    return rows


def _scatter(rows: Tensor, target: Tensor, spans: _Spans) -> None:
    """Put each of `rows` back where `_gather` took it from."""
    for row, (start, end) in zip(rows, spans, strict=True):
        target[0, :, start:end] = row[:, : end - start]
