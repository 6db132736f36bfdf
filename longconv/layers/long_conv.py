"""A long filter with its skip weight and gates, run in parallel, in chunks, or one sample at a time.

Two kinds of filter, two kinds of state. A recurrent filter (`hasattr(filter, "prepare_step")`) carries its own state,
whose size does not depend on the context. Any other filter is exact only with its past inputs at hand, all of them or,
if it has few taps (`filter.support`), as many as those reach: an `OnlineConv` keeps them, and makes a step cost
O(log^2 T) amortised. What a step needs of the filter's parameters is computed once and kept in the state. With
gradients enabled everything is computed afresh, so that autograd through a carried state is exact; a step without a
recurrence then is a dot product with the history, O(T).

Shapes: B batch, D channels, L samples of this chunk, T samples before it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longconv.filters import PackedModes, RecurrentFilter
from longconv.functional import OnlineConv, fft_conv
from longconv.kernels.recurrence import ModeLayout
from longconv.state import Constant, GrowingBuffer

from .base import packed_lengths


@dataclass
class HistoryState:
    """The inputs so far of a filter that is not a recurrence, as many of the last as it has taps to reach them.

    `past`: an `OnlineConv`, made with all taps of the filter; with gradients enabled just the inputs (B, D, T), growing
    along time. Either is made into the other when gradients are switched. `length`: T, the inputs so far.
    """

    past: OnlineConv | GrowingBuffer
    length: int = 0


@dataclass
class RecurrentState:
    """`state`: what the filter's `step` and `scan` carry. `modes`: what they need of its parameters, once known."""

    state: Any
    modes: Constant | None = None


def is_recurrent(filter: nn.Module) -> bool:
    """Whether a filter can run as a recurrence."""
    return hasattr(filter, "prepare_step")


def support(filter: Any) -> int | None:
    """How many taps a filter has; None if it has as many as the longest sequence (which may be unlimited)."""
    count: int | None = getattr(filter, "support", None)
    limit: int | None = getattr(filter, "max_length", None)
    return None if count is None or (limit is not None and count >= limit) else count


def taps(filter: Any, L: int) -> Tensor:
    """The taps (D, K) that act within L samples: K = L, or fewer if the filter has fewer."""
    finite = support(filter)
    return filter(L if finite is None else min(L, finite))


def init_long_state(filter: Any, batch_size: int, dtype: torch.dtype) -> HistoryState | RecurrentState:
    """Return the state of `filter` before the first input, for inputs of `dtype` on the filter's device."""
    if is_recurrent(filter):
        if not isinstance(filter, RecurrentFilter):
            return _for_mode(filter, RecurrentState(filter.init_state(batch_size)))
        modes = filter.prepare_stream()
        state = filter.init_state(batch_size, modes=modes)
        return RecurrentState(state, None if torch.is_grad_enabled() else Constant(modes))
    parameter = next(filter.parameters())
    # The history is kept as wide as the filter, which is at least float32: its products are summed over the context.
    dtype = torch.promote_types(dtype, parameter.dtype)
    empty = torch.zeros(batch_size, filter.channels, 0, dtype=dtype, device=parameter.device)
    return _for_mode(filter, HistoryState(GrowingBuffer(empty, dim=-1)))


def long_conv(
    filter: Any,
    u: Tensor,
    skip: Tensor | None = None,
    *,
    reverse: Any = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    state: HistoryState | RecurrentState | None = None,
    return_state: bool = False,
) -> tuple[Tensor, HistoryState | RecurrentState | None]:
    """Evaluate `post_gate * (h * v + skip v)` with v = pre_gate * u over a chunk, h the filter.

    Args:
        filter: a module with `forward(L) -> (D, L)`, the taps at lags 0, 1, ...
        u, pre_gate, post_gate: (B, D, L).
        skip: (D,), or None.
        reverse: a second filter, of the taps at lags -1, -2, ...; then there is no state.
        cu_seqlens: (N+1,) boundaries of packed sequences (B = 1), which are whole: without state.
        state: of the inputs before this chunk; None if there are none.
        return_state: whether to compute the state after the chunk.

    Returns:
        y (B, D, L) and the new state, or None without `return_state`.
    """
    L = u.shape[-1]
    if state is None and not return_state:
        longest = L if cu_seqlens is None else max(packed_lengths(cu_seqlens, L))
        y = fft_conv(
            u,
            taps(filter, longest),
            skip=skip,
            k_reverse=None if reverse is None else taps(reverse, longest),
            pre_gate=pre_gate,
            post_gate=post_gate,
            cu_seqlens=cu_seqlens,
        )
        return y, None
    assert reverse is None
    assert cu_seqlens is None
    v = u if pre_gate is None else pre_gate * u
    if state is None:
        after = init_long_state(filter, u.shape[0], u.dtype)
        if isinstance(after, RecurrentState):
            kernel = taps(filter, L)
            after.state = filter.final_state(v, after.state, _constant(after.modes))
        elif isinstance(after.past, OnlineConv):
            _check_length(filter, L)
            kernel = after.past.taps[:, :L]
            after = HistoryState(after.past.append(v), L)
        else:
            kernel = taps(filter, L)
            after = HistoryState(_reachable(filter, after.past.append(v)), L)
        return fft_conv(v, kernel, skip=skip, post_gate=post_gate), after
    state = _for_mode(filter, state)
    if isinstance(state, RecurrentState):
        y, inner = filter.scan(v, state.state, _constant(state.modes))
        after = RecurrentState(inner, state.modes)
    elif isinstance(state.past, OnlineConv):
        _check_length(filter, state.length + L)
        y, online = state.past.extend(v)
        after = HistoryState(online, state.length + L)
    else:
        _check_length(filter, state.length + L)
        history = state.past.append(v)
        y = fft_conv(history.view, taps(filter, history.length))[..., -L:].to(u.dtype)
        after = HistoryState(_reachable(filter, history), state.length + L)
    if skip is not None:
        y = y + skip[:, None].to(y.dtype) * v
    return (y if post_gate is None else post_gate * y), after if return_state else None


def long_conv_step(
    filter: Any, u_t: Tensor, skip: Tensor | None, state: HistoryState | RecurrentState
) -> tuple[Tensor, HistoryState | RecurrentState]:
    """Evaluate one sample of `h * u + skip u`: u_t (B, D) -> y_t (B, D) and the next state."""
    state = _for_mode(filter, state)
    after: HistoryState | RecurrentState
    if isinstance(state, RecurrentState):
        y, inner = filter.step(u_t, state.state, _constant(state.modes))
        after = RecurrentState(inner, state.modes)
    else:
        _check_length(filter, state.length + 1)
        if isinstance(state.past, OnlineConv):
            y, online = state.past.step(u_t)
            after = HistoryState(online, state.length + 1)
        else:
            history = state.past.append(u_t[..., None])
            kernel = taps(filter, history.length)
            recent = history.view[..., -kernel.shape[1] :]
            with torch.autocast(u_t.device.type, enabled=False):  # a sum over the context, in float32 at least
                y = torch.einsum("bdt,dt->bd", recent, kernel.flip(-1).to(recent.dtype)).to(u_t.dtype)
            after = HistoryState(_reachable(filter, history), state.length + 1)
    return (y if skip is None else y + skip.to(y.dtype) * u_t), after


def long_conv_step_(filter: Any, u_t: Tensor, skip: Tensor | None, state: HistoryState | RecurrentState) -> Tensor:
    """Evaluate one sample of `h * u + skip u` and write the new state over the old one; for recurrences only."""
    assert isinstance(state, RecurrentState)
    modes = stream_modes(filter, state)
    if isinstance(filter, RecurrentFilter):
        y = filter.step_(u_t, state.state, modes)
    else:
        y, after = filter.step(u_t, state.state, modes)
        state.state.copy_(after)
    return y if skip is None else y + skip.to(y.dtype) * u_t


def takes_fused_step(filter: Any) -> bool:
    """Whether what a layer has around this filter is one operator with it; what autograd sees is always the parts."""
    return isinstance(filter, RecurrentFilter)


def steps_on_a_copy(fused: bool) -> bool:
    """Whether a step that is a value is the fused one on a copy of the state: not where a graph is being recorded."""
    return fused and not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def own_state(filter: Any, state: HistoryState | RecurrentState) -> RecurrentState:
    """The state of a recurrence in memory of its own, for a step that is a value although it works in place."""
    state = _for_mode(filter, state)
    assert isinstance(state, RecurrentState)
    return RecurrentState(state.state.clone(), state.modes)


def recurrence(
    filter: Any, state: HistoryState | RecurrentState
) -> tuple[Tensor, Tensor, Tensor, Tensor, ModeLayout | None]:
    """What a fused step takes: poles, residues, pass-through, the state's tensor, and the modes' layout."""
    assert isinstance(state, RecurrentState)
    modes = stream_modes(filter, state)
    return *modes[:3], state.state, modes.layout if isinstance(modes, PackedModes) else None


def stream_modes(filter: Any, state: RecurrentState) -> Any:
    """What a step needs of the filter's parameters, for a state of this shape; kept in the state."""
    if state.modes is None:
        packed = isinstance(filter, RecurrentFilter) and state.state.dim() == 2
        state.modes = Constant(filter.prepare_stream() if packed else filter.prepare_step())
    return state.modes.value


def dense_kernel(filter: Any, L: int, skip: Tensor | None = None, reverse: Any = None) -> Tensor:
    """The taps as a kernel (D, L), lag s at tap s, or (D, 2L - 1) with a `reverse` filter, lag s at tap L - 1 + s."""
    kernel = nn.functional.pad(taps(filter, L), (0, L))[:, :L]
    if skip is not None:
        kernel = torch.cat([kernel[:, :1] + skip[:, None].to(kernel.dtype), kernel[:, 1:]], dim=1)
    if reverse is None:
        return kernel
    behind = nn.functional.pad(taps(reverse, max(L - 1, 1)), (0, L))[:, : L - 1]
    return torch.cat([behind.flip(-1), kernel], dim=1)


def _reachable(filter: Any, history: GrowingBuffer) -> GrowingBuffer:
    """Without the inputs that the filter has no taps for."""
    finite = support(filter)
    if finite is None or history.length < finite:
        return history
    return GrowingBuffer(history.view[..., history.length - (finite - 1) :], dim=-1)


def _for_mode(filter: Any, state: Any) -> Any:
    """Fill in what a step needs of the parameters, or take it out if autograd must see how it is computed."""
    if torch.is_grad_enabled():
        if isinstance(state, HistoryState) and isinstance(state.past, OnlineConv):
            return HistoryState(GrowingBuffer(state.past.inputs, dim=-1), state.length)
        if isinstance(state, RecurrentState) and state.modes is not None and isinstance(state.modes.value, PackedModes):
            # With padding again: a residue of zero may change.
            return RecurrentState(state.modes.value.layout.unpack(state.state))
        return state
    if isinstance(state, RecurrentState) and state.modes is None:
        if not isinstance(filter, RecurrentFilter):
            return RecurrentState(state.state, Constant(filter.prepare_step()))
        modes = filter.prepare_stream()
        inner = state.state
        if isinstance(modes, PackedModes) and inner.dim() == 3:
            inner = modes.layout.pack(inner)
        return RecurrentState(inner, Constant(modes))
    if isinstance(state, HistoryState) and isinstance(state.past, GrowingBuffer):
        finite = support(filter)
        kernel = filter(filter.max_length if finite is None else finite)
        return HistoryState(OnlineConv(kernel, state.past.view), state.length)
    return state


def _constant(constant: Constant | None) -> Any:
    return None if constant is None or torch.is_grad_enabled() else constant.value


def _check_length(filter: Any, length: int) -> None:
    """Raise as the filter itself does: it was evaluated once, in full, and does not see this length."""
    if filter.max_length is not None and length > filter.max_length:
        raise ValueError(f"sequence of length {length} is longer than the filter's max_length = {filter.max_length}")
