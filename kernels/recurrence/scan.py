"""The modal (diagonal) recurrence, chunk-parallel: its output and its final state. One step of it: step.py.

The system, per channel d with N complex modes (lambda_n, R_n) and a pass-through h_0:

    y_t = Re( sum_n R_n x_{n,t} ) + h_0 u_t,      x_{n,t+1} = lambda_n x_{n,t} + u_t,      x_{n,0} = 0 or given,

so x_t is the state *before* input t, and the impulse response is h_0, then h_t = Re sum_n R_n lambda_n^(t-1) for
t >= 1. One complex mode stands for a conjugate pair (two real states). A mode whose residue is 0 is padding; lambda = 0
is a legal pole, with 0^0 = 1.

Shapes: B batch, D channels, L time, N modes, T taps of a chunk, C chunks of a block. Powers of the poles are made in
complex128 by repeated multiplication (no logarithm: lambda = 0 needs no special case, forward or backward) and only
then rounded; a rounding error in lambda^t would grow with t. Everything else is real GEMMs, in which a complex number
is an interleaved pair and Re(a b) is the dot product of (Re, Im) of conj(a) with (Re, Im) of b.
The chunked form of a linear recurrence: Dao & Gu 2024 (Mamba-2, "state space duality"), here with time-invariant poles.
"""

import functools
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Upper limit on the scratch elements (of the working real dtype) of one block of chunks: 16 MiB in float32.
_BLOCK_ELEMENTS = 1 << 22
_MAX_CHUNK = 64
# The same for `modal_state`, of its tables and of its chunks: prefill should cost no memory worth mentioning.
_STATE_ELEMENTS = 1 << 20
# A table, because torch.compile does not trace dtype.to_complex().
_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}

P = ParamSpec("P")
R = TypeVar("R")


def _without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Keep autocast from turning the GEMMs to bfloat16: a recurrence does not survive it."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0] if args else next(iter(kwargs.values()))
        if not isinstance(first, Tensor) or first.device.type == "meta":
            return function(*args, **kwargs)
        # A step is a handful of operations: no context for nothing.
        if not torch.is_autocast_enabled(first.device.type):
            return function(*args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return function(*args, **kwargs)

    return wrapped


@_without_autocast
def modal_scan(
    u: Tensor, poles: Tensor, residues: Tensor, passthrough: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the modal recurrence (module docstring) over a sequence, in parallel within blocks of chunks.

    Each chunk of T <= 64 inputs meets the first T taps of the kernel and the state at its start in batched GEMMs; only
    the chunk states are chained, L / T steps. Blocks of chunks bound the scratch memory, and the backward pass
    recomputes them, so the peak grows with B D L but not with N L. Differentiable in every tensor; running a sequence
    whole, in pieces with carried state, or by `modal_step` gives the same result.

    Args:
        u: (B, D, L) real, L >= 1, any strides.
        poles, residues: (D, N) complex64 or complex128.
        passthrough: (D,) real.
        state: (B, D, N) complex, the state before u[..., 0]; None for zeros.

    Returns:
        y (B, D, L) in u's dtype, and the final state (B, D, N), complex128 if any input is double precision, else
        complex64. Arithmetic is in that precision.

    Raises:
        ValueError: an argument has the wrong shape, dtype or device.
    """
    _check_modes(poles, residues, passthrough)
    _check_input(u, poles, 3, "u")
    _check_state(state, u, poles)
    dtype = _working_dtype(u, poles, residues, passthrough, state)
    B, D, L = u.shape
    N = poles.shape[1]
    T = _power_of_two(max(math.isqrt(L), N), 1, min(_MAX_CHUNK, L))
    powers = _powers(poles, T)  # (D, T+1, N)
    taps = torch.cat(
        [passthrough.double()[:, None], (residues.to(torch.complex128)[:, None] * powers[:, : T - 1]).real.sum(-1)],
        dim=-1,
    )
    into_state = _pairs(powers[:, :T].flip(1), dtype)  # (D, T, 2N): weight of input b in the state at the chunk's end
    from_u = torch.cat([_toeplitz(taps.to(dtype)), into_state], dim=-1)
    from_state = _pairs((residues.to(torch.complex128)[:, None] * powers[:, :T]).conj(), dtype).mT  # (D, 2N, T)
    decay = powers[:, T].to(_COMPLEX[dtype])

    x = _initial_state(state, u, poles, dtype).transpose(0, 1)  # (D, B, N): channels first, the batch of the GEMMs
    span = T * max(1, _BLOCK_ELEMENTS // max(1, B * D * (2 * T + 4 * N)))
    whole = L - L % T
    outputs = []
    # One chunk needs no recomputation: its scratch is as small as the state.
    recompute = torch.is_grad_enabled() and L > T
    for start in range(0, whole, span):
        block = (u[..., start : min(start + span, whole)].to(dtype), x, from_u, from_state, decay)
        y, x = checkpoint(_scan_block, *block, use_reentrant=False) if recompute else _scan_block(*block)
        outputs.append(y.to(u.dtype))
    if rest := L - whole:  # the last, shorter chunk uses the corners of the same tables
        short = torch.cat([from_u[:, :rest, :rest], into_state[:, T - rest :]], dim=-1)
        block = (u[..., whole:].to(dtype), x, short, from_state[..., :rest], powers[:, rest].to(decay.dtype))
        y, x = _scan_block(*block)
        outputs.append(y.to(u.dtype))
    return torch.cat(outputs, dim=-1), x.transpose(0, 1)


@_without_autocast
def modal_state(u: Tensor, poles: Tensor, state: Tensor | None = None) -> Tensor:
    """Return only the state after a sequence, as prefill needs it: x_L = lambda^L x_0 + sum_t lambda^(L-1-t) u_t.

    A two-level Vandermonde product: O(B D L N) operations. Channels are taken a few at a time, and so are their chunks,
    so the scratch memory (some 50 MB) depends neither on the length nor on the order. Differentiable.

    Args:
        u: (B, D, L) real, L >= 1, any strides.
        poles: (D, N) complex64 or complex128.
        state: (B, D, N) complex, the state before u[..., 0]; None for zeros.

    Returns:
        (B, D, N), complex128 if any input is double precision, else complex64.

    Raises:
        ValueError: an argument has the wrong shape, dtype or device.
    """
    _check_modes(poles)
    _check_input(u, poles, 3, "u")
    _check_state(state, u, poles)
    T = _power_of_two(math.isqrt(u.shape[-1]), 1, 2 * _MAX_CHUNK)
    few = max(1, _STATE_ELEMENTS // max(1, 2 * poles.shape[1] * (T + 1)))
    some = [slice(at, at + few) for at in range(0, max(1, len(poles)), few)]
    parts = [_state_of_channels(u[:, d], poles[d], None if state is None else state[:, d], T) for d in some]
    return torch.cat(parts, 1)


def _state_of_channels(u: Tensor, poles: Tensor, state: Tensor | None, T: int) -> Tensor:
    """`modal_state` for so many channels that their tables are small, in chunks of T samples."""
    dtype = _working_dtype(u, poles, state)
    B, D, L = u.shape
    N = poles.shape[1]
    chunks = max(1, min(-(-L // T), _STATE_ELEMENTS // max(1, B * D * (T + 4 * N))))
    powers = _powers(poles, T)
    into_state = _pairs(powers[:, :T].flip(1), dtype)
    across = _powers(powers[:, T], chunks).flip(1).to(_COMPLEX[dtype])  # lambda^(T C) .. lambda^0
    x = _initial_state(state, u, poles, dtype).transpose(0, 1)
    if rest := L % T:  # the shorter piece goes first, so that every other chunk is whole
        x = (
            powers[:, None, rest].to(x.dtype) * x
            + _chunk_states(u[..., :rest].to(dtype), into_state[:, T - rest :], 1)[:, :, 0]
        )
    for start in range(rest, L, T * chunks):
        stop = min(start + T * chunks, L)
        C = (stop - start) // T
        ends = _chunk_states(u[..., start:stop].to(dtype), into_state, C)
        weights = across[:, None, chunks - C :]
        x = weights[:, :, 0] * x + (weights[:, :, 1:] * ends).sum(2)
    return x.transpose(0, 1)


def _scan_block(u: Tensor, x: Tensor, from_u: Tensor, from_state: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """Scan C whole chunks: u (B, D, C T), x (D, B, N) -> y (B, D, C T), x (D, B, N)."""
    B, D, _ = u.shape
    T = from_state.shape[-1]
    C = u.shape[-1] // T
    N = decay.shape[-1]
    both = torch.bmm(u.transpose(0, 1).reshape(D, B * C, T), from_u).view(D, B, C, T + 2 * N)
    starts = [x]
    ends = torch.complex(both[..., T::2], both[..., T + 1 :: 2])
    for end in ends.unbind(2):
        starts.append(decay[:, None] * starts[-1] + end)
    x_C = torch.view_as_real(torch.stack(starts[:-1], dim=2)).reshape(D, B * C, 2 * N)
    y = torch.baddbmm(both[..., :T].reshape(D, B * C, T), x_C, from_state)
    return y.view(D, B, C * T).transpose(0, 1), starts[-1]


def _chunk_states(u: Tensor, into_state: Tensor, C: int) -> Tensor:
    """State that each of the C chunks of u (B, D, C T) leaves when it starts from zero: (D, B, C, N) complex."""
    B, D, _ = u.shape
    _, T, N2 = into_state.shape
    ends = torch.bmm(u.transpose(0, 1).reshape(D, B * C, T), into_state)
    return torch.view_as_complex(ends.view(D, B, C, N2 // 2, 2))


def _powers(poles: Tensor, count: int) -> Tensor:
    """lambda^0 .. lambda^count as (D, count + 1, N) complex128, by doubling."""
    square = poles.to(torch.complex128)[:, None]
    table = torch.ones_like(square)
    while table.shape[1] <= count:
        table = torch.cat([table, table * square], dim=1)
        square = square * square
    return table[:, : count + 1]


def _pairs(table: Tensor, dtype: torch.dtype) -> Tensor:
    """(D, T, N) complex -> (D, T, 2N) real, each number as (Re, Im)."""
    return torch.view_as_real(table.resolve_conj()).flatten(-2).to(dtype)


def _toeplitz(taps: Tensor) -> Tensor:
    """(D, T) -> (D, T, T) with entry [s, t] = taps[t - s] for t >= s, else 0: right factor of a causal convolution."""
    T = taps.shape[-1]
    # Row s of a (T, 2T - 1) Hankel view of [0 .. 0, taps] read backwards is the taps delayed by s.
    return torch.nn.functional.pad(taps, (T - 1, 0)).unfold(-1, T, 1).flip(1)


def _initial_state(state: Tensor | None, u: Tensor, poles: Tensor, dtype: torch.dtype) -> Tensor:
    if state is None:
        return torch.zeros(u.shape[0], *poles.shape, dtype=_COMPLEX[dtype], device=u.device)
    return state.to(_COMPLEX[dtype])


def _working_dtype(*tensors: Tensor | None) -> torch.dtype:
    double = any(t is not None and t.dtype in (torch.float64, torch.complex128) for t in tensors)
    return torch.float64 if double else torch.float32


def _power_of_two(value: int, low: int, high: int) -> int:
    """The smallest power of two >= value, held within [low, high] (high itself need not be a power of two)."""
    return max(low, min(1 << (max(1, value) - 1).bit_length(), high))


def _check_modes(poles: Tensor, residues: Tensor | None = None, passthrough: Tensor | None = None) -> None:
    if poles.dim() != 2 or not poles.is_complex():
        raise ValueError(f"poles must be a complex tensor (D, N), got {poles.dtype} {tuple(poles.shape)}")
    if residues is not None:
        if residues.shape != poles.shape or not residues.is_complex():
            raise ValueError(
                f"residues must be a complex tensor {tuple(poles.shape)} like poles, "
                f"got {residues.dtype} {tuple(residues.shape)}"
            )
        _check_device("residues", residues, poles)
    if passthrough is not None:
        if passthrough.shape != poles.shape[:1] or not passthrough.is_floating_point():
            raise ValueError(
                f"passthrough must be a real tensor ({poles.shape[0]},), "
                f"got {passthrough.dtype} {tuple(passthrough.shape)}"
            )
        _check_device("passthrough", passthrough, poles)


def _check_input(u: Tensor, poles: Tensor, dims: int, name: str) -> None:
    shape = "(B, D, L)" if dims == 3 else "(B, D)"
    if u.dim() != dims or u.shape[1] != poles.shape[0] or not u.is_floating_point():
        raise ValueError(
            f"{name} must be a real tensor {shape} with D = {poles.shape[0]}, got {u.dtype} {tuple(u.shape)}"
        )
    if dims == 3 and u.shape[-1] < 1:
        raise ValueError(f"{name} must have a length of at least 1, got {tuple(u.shape)}")
    _check_device(name, u, poles)


def _check_state(state: Tensor | None, u: Tensor, poles: Tensor) -> None:
    if state is None:
        return
    expected = (u.shape[0], *poles.shape)
    if state.shape != expected or not state.is_complex():
        raise ValueError(f"state must be a complex tensor {expected}, got {state.dtype} {tuple(state.shape)}")
    _check_device("state", state, poles)


def _check_device(name: str, tensor: Tensor, poles: Tensor) -> None:
    if tensor.device != poles.device:
        raise ValueError(f"{name} is on {tensor.device}, poles on {poles.device}")
