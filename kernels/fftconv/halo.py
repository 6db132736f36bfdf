"""Blocks of rows with what lies before and behind them: what filters of few taps need to see.

Shapes: B batch, D channels, L samples of a row, T samples of a block.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

Block = tuple[slice, slice, slice]  # of the batch, the channels and the time steps

# Samples in a block: enough for an operation to take longer than starting it, few enough for the cache, ...
BLOCK_SAMPLES, LEAST_SAMPLES = {"cpu": 2**19}, 2**15
BLOCK_SAMPLES_ELSEWHERE = 2**26
# ... and no more than this part of the input, or of a long row and of an input of long rows, so that what a block needs
# (some four times its size) is little beside it.
PARTS, PARTS_OF_A_ROW = 4, 24


def blocks(shape: torch.Size, step: int, device: torch.device) -> Iterator[tuple[slice, list[tuple[slice, slice]]]]:
    """Yield slices of channels, each with the slices of batch and time to go through for them.

    A block is whole rows, or part of a few rows whose length is a multiple of `step` (but for the last part).
    """
    B, D, L = shape
    if shape.numel() == 0:
        return
    at_most = BLOCK_SAMPLES.get(device.type, BLOCK_SAMPLES_ELSEWHERE)
    whole = min(at_most, max(LEAST_SAMPLES, shape.numel() // PARTS))
    if whole >= L:
        per_t, rows = L, whole // L
    else:
        part = min(at_most, max(LEAST_SAMPLES, L // PARTS_OF_A_ROW))
        per_t = min(L, max(1, part // step) * step)
        rows = max(1, min(at_most, shape.numel() // PARTS_OF_A_ROW) // per_t)
    per_d = min(D, rows)
    per_b = min(B, max(1, rows // per_d))
    places = [
        (slice(b, min(b + per_b, B)), slice(t, min(t + per_t, L)))
        for b in range(0, B, per_b)
        for t in range(0, L, per_t)
    ]
    for d in range(0, D, per_d):
        yield slice(d, min(d + per_d, D)), places


def fill(rows: Tensor, x: Tensor, gate: Tensor | None, at: Block, past: int, future: int, circular: bool) -> None:
    """Write v = gate * x over a block, `past` samples before and `future` behind it into rows (B, D, T+past+future).

    Where v has no samples come zeros, or with `circular` those from the other end (`past` and `future` at most L).
    """
    batch, channels, times = at
    L = x.shape[-1]

    def copy(target: Tensor, start: int, stop: int) -> None:
        source = (batch, channels, slice(start, stop))
        target.copy_(x[source])
        if gate is not None:
            target.mul_(gate[source])

    first, last = times.start - past, times.stop + future
    begin, end = max(first, 0), min(last, L)
    before, behind = rows[..., : begin - first], rows[..., end - first :]
    copy(rows[..., begin - first : end - first], begin, end)
    if first < 0:
        copy(before, first + L, L) if circular else before.zero_()
    if last > L:
        copy(behind, 0, last - L) if circular else behind.zero_()
