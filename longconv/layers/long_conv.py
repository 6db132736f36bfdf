"""A long filter with its skip weight and gates, run in parallel, in chunks, or one sample at a time.

Two kinds of filter, two kinds of state. A recurrent filter (`hasattr(filter, "prepare_step")`) carries its own state,
whose size does not depend on the context. Any other filter is exact only with all its past inputs at hand: an
`OnlineConv` keeps them, and makes a step cost O(log^2 T) amortised. What a step needs of the filter's parameters is
computed once and kept in the state. With gradients enabled everything is computed afresh, so that autograd through a
carried state is exact; a step without a recurrence then is a dot product with the whole history, O(T).

Shapes: B batch, D channels, L samples of this chunk, T samples before it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longconv.functional import OnlineConv, fft_conv
from longconv.state import Constant, GrowingBuffer


@dataclass
class HistoryState:
    """All inputs so far of a filter that is not a recurrence.

    `past`: an `OnlineConv`, made with all taps of the filter; with gradients enabled just the inputs (B, D, T), growing
    along time. Either is made into the other when gradients are switched.
    """

    past: OnlineConv | GrowingBuffer


@dataclass
class RecurrentState:
    """`state`: what the filter's `step` and `scan` carry. `modes`: its `prepare_step()`, or None until needed."""

    state: Any
    modes: Constant | None = None


def is_recurrent(filter: nn.Module) -> bool:
    """Whether a filter can run as a recurrence."""
    return hasattr(filter, "prepare_step")


def init_long_state(filter: Any, batch_size: int, dtype: torch.dtype) -> HistoryState | RecurrentState:
    """Return the state of `filter` before the first input, for inputs of `dtype` on the filter's device."""
    if is_recurrent(filter):
        return _for_mode(filter, RecurrentState(filter.init_state(batch_size)))
    parameter = next(filter.parameters())
    # The history is kept as wide as the filter, which is at least float32: its products are summed over the context.
    dtype = torch.promote_types(dtype, parameter.dtype)
    empty = torch.zeros(batch_size, filter.channels, 0, dtype=dtype, device=parameter.device)
    return _for_mode(filter, HistoryState(GrowingBuffer(empty, dim=-1)))


def long_conv(
    filter: Any,
    u: Tensor,
    skip: Tensor,
    *,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    state: HistoryState | RecurrentState | None = None,
    return_state: bool = False,
) -> tuple[Tensor, HistoryState | RecurrentState | None]:
    """Evaluate `post_gate * (h * v + skip v)` with v = pre_gate * u over a chunk, h the causal filter.

    Args:
        filter: a module with `forward(L) -> (D, L)`.
        u, pre_gate, post_gate: (B, D, L).
        skip: (D,).
        state: of the inputs before this chunk; None if there are none.
        return_state: whether to compute the state after the chunk.

    Returns:
        y (B, D, L) and the new state, or None without `return_state`.
    """
    L = u.shape[-1]
    if state is None and not return_state:
        return fft_conv(u, filter(L), skip=skip, pre_gate=pre_gate, post_gate=post_gate), None
    v = u if pre_gate is None else pre_gate * u
    if state is None:
        after = init_long_state(filter, u.shape[0], u.dtype)
        if isinstance(after, RecurrentState):
            kernel = filter(L)
            after.state = filter.final_state(v, after.state, _constant(after.modes))
        elif isinstance(after.past, OnlineConv):
            _check_length(filter, L)
            kernel = after.past.taps[:, :L]
            after.past = after.past.append(v)
        else:
            kernel = filter(L)
            after.past = after.past.append(v)
        return fft_conv(v, kernel, skip=skip, post_gate=post_gate), after
    state = _for_mode(filter, state)
    if isinstance(state, RecurrentState):
        y, inner = filter.scan(v, state.state, _constant(state.modes))
        after = RecurrentState(inner, state.modes)
    elif isinstance(state.past, OnlineConv):
        _check_length(filter, state.past.length + L)
        y, online = state.past.extend(v)
        after = HistoryState(online)
    else:
        history = state.past.append(v)
        y = fft_conv(history.view, filter(history.length))[..., -L:].to(u.dtype)
        after = HistoryState(history)
    y = y + skip[:, None].to(y.dtype) * v
    return (y if post_gate is None else post_gate * y), after if return_state else None


def long_conv_step(
    filter: Any, u_t: Tensor, skip: Tensor, state: HistoryState | RecurrentState
) -> tuple[Tensor, HistoryState | RecurrentState]:
    """Evaluate one sample of `h * u + skip u`: u_t (B, D) -> y_t (B, D) and the next state."""
    state = _for_mode(filter, state)
    after: HistoryState | RecurrentState
    if isinstance(state, RecurrentState):
        y, inner = filter.step(u_t, state.state, _constant(state.modes))
        after = RecurrentState(inner, state.modes)
    elif isinstance(state.past, OnlineConv):
        _check_length(filter, state.past.length + 1)
        y, online = state.past.step(u_t)
        after = HistoryState(online)
    else:
        history = state.past.append(u_t[..., None])
        taps = filter(history.length).flip(-1)
        with torch.autocast(u_t.device.type, enabled=False):  # a sum over the whole context, in float32 at least
            y = torch.einsum("bdt,dt->bd", history.view, taps.to(history.view.dtype)).to(u_t.dtype)
        after = HistoryState(history)
    return y + skip.to(y.dtype) * u_t, after


def _for_mode(filter: Any, state: Any) -> Any:
    """Fill in what a step needs of the parameters, or take it out if autograd must see how it is computed."""
    if torch.is_grad_enabled():
        if isinstance(state, HistoryState) and isinstance(state.past, OnlineConv):
            return HistoryState(GrowingBuffer(state.past.inputs, dim=-1))
        return state
    if isinstance(state, RecurrentState) and state.modes is None:
        return RecurrentState(state.state, Constant(filter.prepare_step()))
    if isinstance(state, HistoryState) and isinstance(state.past, GrowingBuffer):
        return HistoryState(OnlineConv(filter(filter.max_length), state.past.view))
    return state


def _constant(constant: Constant | None) -> Any:
    return None if constant is None or torch.is_grad_enabled() else constant.value


def _check_length(filter: Any, length: int) -> None:
    """Raise as the filter itself does: it was evaluated once, in full, and does not see this length."""
    if length > filter.max_length:
        raise ValueError(f"sequence of length {length} is longer than the filter's max_length = {filter.max_length}")
