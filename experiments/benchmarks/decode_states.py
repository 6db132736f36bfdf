"""States of decoding without a prefill, and what states take: for `longconv bench decode`.

A token takes the same time whatever is in a cache of keys and values or in a state, so the benchmark fills them at the
right lengths with small random numbers. An attention prefill of 65,536 tokens would take hours on a CPU.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from longconv.functional import OnlineConv
from longconv.kernels.fftconv.online import BLOCK
from longconv.layers.attention import AttentionState
from longconv.layers.hyena import HyenaState
from longconv.layers.long_conv import HistoryState, RecurrentState
from longconv.state import Constant, GrowingBuffer, map_tensors

# Random numbers that are drawn; longer tensors repeat them. On a CPU they stay in cache, elsewhere launches cost more.
DRAWN, DRAWN_ELSEWHERE = 2**20, 2**26
# Taps of synthetic filters fall to exp(-DECAY) at their end, as those of trained ones do, well above denormal numbers.
DECAY = 5.0


def fill_(t: Tensor) -> Tensor:
    """Fill a floating-point or complex tensor with normal numbers, the same ones over and over if it is long."""
    flat = (torch.view_as_real(t) if t.is_complex() else t).view(-1)
    count = min(flat.numel(), DRAWN if t.device.type == "cpu" else DRAWN_ELSEWHERE)
    drawn = torch.randn(count, dtype=torch.float32, device=t.device)
    for piece in flat.split(max(1, count)):
        piece.copy_(drawn[: piece.numel()])
    return t


def buffer_of(data: Tensor, dim: int, length: int) -> GrowingBuffer:
    """A buffer over `data` whose first `length` are filled, so that the rest takes appended ones without a copy.

    Grown by `append` alone it would have twice the room; this is the least, as if the final length had been known.
    """
    buffer = GrowingBuffer(data, dim)
    buffer.length, buffer._filled = length, [length]
    return buffer


def synthetic_taps(channels: int, K: int, device: torch.device) -> Tensor:
    """Taps (D, K), float32, of unit norm about, that decay."""
    window = torch.exp(torch.arange(K, device=device) * (-DECAY / K))
    return fill_(torch.empty(channels, K, device=device)) * (window / window.norm())


def hyena_state(fresh: HyenaState, context: int, spare: int) -> HyenaState:
    """A state of `Hyena` after `context` tokens, from the one before the first.

    Recurrent filters have the state they had, filled. A cached history (`CachedHistory`) has room for `spare` more
    tokens; an `OnlineConv` has a filter of 2 `context` taps, for `context` more.
    """
    return replace(
        fresh,
        position=context,
        short=fill_(fresh.short),
        long=tuple(_long_state(long, context, spare) for long in fresh.long),
    )


def _long_state(long: HistoryState | RecurrentState, context: int, spare: int) -> HistoryState | RecurrentState:
    if isinstance(long, HistoryState):
        inputs = long.past.inputs if isinstance(long.past, OnlineConv) else long.past.view
        B, D, _ = inputs.shape
        past = fill_(inputs.new_empty(B, D, context))
        return HistoryState(OnlineConv(synthetic_taps(D, 2 * context, past.device), past), context)
    if isinstance(long.state, GrowingBuffer):
        B, D, _ = long.state.view.shape
        past = fill_(long.state.view.new_empty(B, D, context + spare))
        taps = synthetic_taps(D, context + spare, past.device).to(past.dtype)
        return RecurrentState(buffer_of(past, 2, context), Constant(taps))
    return RecurrentState(map_tensors(long.state, fill_), long.modes)


def attention_state(fresh: AttentionState, context: int, spare: int) -> AttentionState:
    """A cache of `context` keys and values, with room for `spare` more, from an empty one."""
    B, H, _, d = fresh.keys.view.shape

    def buffer(old: GrowingBuffer) -> GrowingBuffer:
        return buffer_of(fill_(old.view.new_empty(B, H, context + spare, d)), 2, context)

    return replace(fresh, position=context, keys=buffer(fresh.keys), values=buffer(fresh.values))


# --- The rare steps of OnlineConv -------------------------------------------------------------------------------------


def rare_steps(states: list[Any], context: int) -> Iterator[float]:
    """Bring online states, fresh after `context` tokens, before each kind of step that does more than the others.

    Yields, after every change, how many such steps there are for one token when `context` tokens are made from there:
    the caller makes one step, in place of which the next change begins. First comes the pass over all inputs; then the
    tile of the last U inputs for U = 64, 128, ..., which is due after U (2n + 1) tokens. The states are told that so
    many tokens have gone by; the sums they hold are then wrong, and cost the same.
    """
    origins = [conv.length for conv in _online(states)]
    yield 1 / context
    tile = BLOCK
    while tile < context:
        for origin, conv in zip(origins, _online(states), strict=True):
            conv.length = conv._storage.filled = origin + tile
        yield 1 / (2 * tile)
        tile *= 2


def _online(states: list[Any]) -> list[OnlineConv]:
    return [long.past for state in states for long in state.long if isinstance(long.past, OnlineConv)]


# --- What states hold -------------------------------------------------------------------------------------------------


def bytes_of(state: Any, batch: int) -> tuple[int, int]:
    """Bytes of all memory behind a state, spare room included, each counted once.

    Returns:
        Those of tensors whose first dimension is the batch, and those of others: what all sequences share, such as taps
        and their spectra. `batch` must be no number of channels.
    """
    sizes: dict[int, tuple[int, bool]] = {}

    def count(t: Tensor) -> None:
        storage = t.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes(), t.dim() > 0 and t.shape[0] == batch

    _walk(state, count, set())
    return sum(n for n, own in sizes.values() if own), sum(n for n, own in sizes.values() if not own)


def shapes_of(state: Any) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """Dtypes and shapes of what a state holds of its sequences, without spare room and constants."""
    shapes: list[tuple[torch.dtype, tuple[int, ...]]] = []
    _walk(state, lambda t: shapes.append((t.dtype, tuple(t.shape))), set(), contents=True)
    return shapes


def _walk(value: Any, visit: Callable[[Tensor], None], seen: set[int], contents: bool = False) -> None:
    """Visit every tensor that can be reached from a value of containers and plain objects."""
    if id(value) in seen:
        return
    if isinstance(value, Tensor):
        visit(value)
        return
    if contents and isinstance(value, Constant):
        return
    if contents and isinstance(value, GrowingBuffer | OnlineConv):
        visit(value.view if isinstance(value, GrowingBuffer) else value.inputs)
        return
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    elif hasattr(value, "__dict__") or hasattr(value, "__slots__"):
        names = [*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())]
        parts = [getattr(value, name) for name in names if hasattr(value, name)]
    else:
        return
    seen.add(id(value))
    for part in parts:
        _walk(part, visit, seen, contents)
