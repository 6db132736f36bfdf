"""`fft_conv` by the kernels of this folder: the same two functions as `blocked.py` and `overlap.py` have.

What the kernels know is a two-sided filter and two gates. Here a skip weight becomes part of the tap at lag 0, the taps
of a circular filter are folded into lags -(L-1) ... L-1, taps that reach no sample are left out, and packed sequences
are sorted into groups of like length.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import overload

import torch
from torch import Tensor

from longconv.kernels import gpu
from longconv.kernels.gpu import Config, shared_memory_limit

from ..blocked import empty_gradients
from . import fused_run, long_run, nested_run
from .configs import Frames, Outer, Way, ways
from .fused_run import Rows


def conv_forward(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    k_reverse: Tensor | None,
    circular: bool,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    ends: list[int] | None = None,
) -> Tensor:
    """Evaluate `fft_conv` (see there for shapes); `ends` are the values of `cu_seqlens`."""
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    u, pre, post = readable(u), readable(pre_gate), readable(post_gate)
    for rows in _groups(u, ends, circular):
        taps = _two_sided(k, skip, k_reverse, circular, rows.longest)

        def run(cut: Way, rows: Rows = rows, taps: tuple[Tensor, Tensor] = taps) -> None:
            kernels, filter = _launched(cut, taps, u)
            kernels.forward(rows, *filter, u, pre, y, post)

        run(_choose(u, rows, taps, run))
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
    ends: list[int] | None = None,
) -> list[Tensor]:
    """Gradients for (u, k, skip, k_reverse, pre_gate, post_gate); those not in `needs` come back empty.

    Everything is recomputed from the inputs. Filter gradients are summed in float32 and in a fixed order.
    """
    inputs = (u, k, skip, k_reverse, pre_gate, post_gate)
    grads = empty_gradients(inputs, needs)
    du, dk, dskip, dk_reverse, dpre, dpost = (
        grad if need and x is not None else None for grad, need, x in zip(grads, needs, inputs, strict=True)
    )
    dy, u, pre, post = readable(dy), readable(u), readable(pre_gate), readable(post_gate)
    needs_filter = not (dk is None and dskip is None and dk_reverse is None)
    for rows in _groups(u, ends, circular):
        taps = _two_sided(k, skip, k_reverse, circular, rows.longest)
        cut = _choose(u, rows, taps)
        kernels, filter = _launched(cut, taps, u)
        found = kernels.backward(rows, *filter, u, pre, dy, post, du, dpre, dpost, needs_filter)
        if found is not None:
            _add_filter_gradients(found[0], found[1], dk, dskip, dk_reverse, circular, rows.longest)
    return grads


def _choose(u: Tensor, rows: Rows, taps: tuple[Tensor, Tensor], run: Callable[[Way], None] | None = None) -> Way:
    """The cheapest way, or the one that was fastest when such sizes were measured; `run` takes a way, for measuring."""
    K, K_reverse = (side.shape[1] for side in taps)
    limit = shared_memory_limit(u.device)
    named = {way.name: way for way in ways(rows.count, rows.longest, K, K_reverse, u.dtype, limit)}
    configs = [Config({"way": name}, way.tile.warps, 1, way.tile.shared) for name, way in named.items()]
    sizes = [gpu.bucket(n) for n in (rows.count, K, K_reverse + 1)]
    measure = None if run is None else lambda config: run(named[config.constants["way"]])
    choice = gpu.choose("fft_conv", rows.longest, (str(u.dtype)[6:], *sizes), configs, u.device, measure)
    return named[choice.constants["way"]]


def _launched(cut: Way, taps: tuple[Tensor, Tensor], u: Tensor) -> tuple[ModuleType, tuple[object, ...]]:
    """The module whose `forward` and `backward` launch this way, and the filter as they take it."""
    if isinstance(cut, Frames):
        return fused_run, (cut, taps)
    # The outer DFT is a product of the matrix units, or sums in float32.
    module, dtype = (long_run, u.dtype) if isinstance(cut, Outer) else (nested_run, torch.float32)
    return module, (long_run.TwoSided(taps, long_run.outer_tables(cut.tile, cut.P, dtype, u.device)),)


@overload
def readable(x: Tensor) -> Tensor: ...
@overload
def readable(x: None) -> None: ...
def readable(x: Tensor | None) -> Tensor | None:
    """x itself, if its samples lie side by side (or are all one), as the kernels read them; else a copy."""
    if x is None or x.stride(2) in (0, 1):
        return x
    return x.contiguous()


def _groups(u: Tensor, ends: list[int] | None, circular: bool) -> Iterator[Rows]:
    """The batch; or packed sequences, those together that one tile suits (or that wrap at the same length)."""
    if u.numel() == 0:
        return
    if ends is None:
        yield Rows(u.shape[0], u.shape[2])
        return
    groups = defaultdict(list)
    for start, end in itertools.pairwise(ends):
        if end > start:
            groups[end - start if circular else (end - start - 1).bit_length()].append((start, end - start))
    for _, spans in sorted(groups.items()):
        starts, lengths = torch.tensor(spans, dtype=torch.int32).to(u.device).mT.contiguous()
        yield Rows(len(spans), max(length for _, length in spans), starts, lengths)


def _two_sided(
    k: Tensor, skip: Tensor | None, k_reverse: Tensor | None, circular: bool, L: int
) -> tuple[Tensor, Tensor]:
    """The filter on rows of up to L samples: lags 0 ... K - 1, and -1 ... -K', float32, K <= L, K' < L."""
    if circular:
        folded = _fold(k.float(), L)
        if k_reverse is not None:
            folded = folded + _fold(k_reverse.float(), L, first=1).flip(-1).roll(1, -1)
        causal, reverse = folded, folded[:, 1:].flip(-1)
    else:
        causal = k[:, :L].float()
        reverse = k.new_zeros(k.shape[0], 0) if k_reverse is None else k_reverse[:, : L - 1].float()
    if skip is not None:
        causal = torch.cat([causal[:, :1] + skip[:, None].float(), causal[:, 1:]], -1)
    return causal, reverse


def _fold(k: Tensor, L: int, first: int = 0) -> Tensor:
    """Sum the taps of lags `first`, `first` + 1, ... modulo L: (D, K) -> (D, L)."""
    padded = torch.nn.functional.pad(k, (first, -(k.shape[1] + first) % L))
    return padded.view(k.shape[0], -1, L).sum(1)


def _add_filter_gradients(
    causal: Tensor,
    reverse: Tensor,
    dk: Tensor | None,
    dskip: Tensor | None,
    dk_reverse: Tensor | None,
    circular: bool,
    L: int,
) -> None:
    """Undo `_two_sided`, as its adjoint does: add the gradients (D, K), (D, K') of a group's two sides to the taps'."""
    if dskip is not None:
        dskip += causal[:, 0]
    if circular:
        folded = causal.clone()
        folded[:, 1:] += reverse.flip(-1)
        if dk is not None:
            dk += folded[:, torch.arange(dk.shape[1], device=dk.device) % L]
        if dk_reverse is not None:
            dk_reverse += folded[:, -(1 + torch.arange(dk_reverse.shape[1], device=dk_reverse.device)) % L]
        return
    if dk is not None:
        dk[:, : causal.shape[1]] += causal
    if dk_reverse is not None:
        dk_reverse[:, : reverse.shape[1]] += reverse
