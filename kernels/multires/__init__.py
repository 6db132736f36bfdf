"""Multiresolution convolution: `multires_conv`, its dense kernel, and `multires_step` for one sample at a time.

reference.py defines it in float64; tree.py evaluates the tree and its gradients, op.py makes that a PyTorch operator;
stream.py keeps what a stream has to remember. Of a batch the tree is evaluated once, to give the kernel of a long
convolution. Imports torch only.
"""

from typing import Literal, overload

import torch
from torch import Tensor

from ..dilated import DelayLines, check_packed
from ..dilated.direct import channels_last, compute_dtype
from ..dilated.op import lower
from ..fftconv import fft_conv
from . import stream
from .op import compose, multires_conv_op
from .reference import multires_conv_reference
from .tree import products, spend

TREE_SELECTIONS = ("fading", "uniform")

# With so many rows of a batch, and so many multiply-adds for a sample, `fft_conv` with the dense kernel is faster than
# the tree for every row on a CPU. Two threads, two rows, L = 1000 to 65536, forward and backward: 1.2 to 2.0 times,
# more with more rows; forward alone 0.75 (L = 1000) to 1.5. The kernel is the tree of a single row.
BATCH, PRODUCTS = 2, 24


@overload
def multires_conv(
    x: Tensor,
    h0: Tensor,
    h1: Tensor,
    w: Tensor,
    *,
    levels: int | None = ...,
    tree_select: str = ...,
    cu_seqlens: Tensor | None = ...,
    state: DelayLines | None = ...,
    return_state: Literal[False] = ...,
) -> Tensor: ...
@overload
def multires_conv(
    x: Tensor,
    h0: Tensor,
    h1: Tensor,
    w: Tensor,
    *,
    levels: int | None = ...,
    tree_select: str = ...,
    cu_seqlens: Tensor | None = ...,
    state: DelayLines | None = ...,
    return_state: Literal[True],
) -> tuple[Tensor, DelayLines]: ...
def multires_conv(
    x: Tensor,
    h0: Tensor,
    h1: Tensor,
    w: Tensor,
    *,
    levels: int | None = None,
    tree_select: str = "fading",
    cu_seqlens: Tensor | None = None,
    state: DelayLines | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, DelayLines]:
    """Convolve over a tree of dilations, and weigh what comes out at its levels.

    The operator of Shi, Wang & Fox (2023), "Sequence Modeling with Multiresolution Convolutional Memory": causal
    dilated convolutions whose two filters are shared by all levels, j = 0 ... J-1, from a_0 = x::

        a_{j+1} = h0 *_{2^j} a_j,    b_{j+1} = h1 *_{2^j} a_j,    (h *_d a)[t] = sum_s h[s] a[t - s d]

    where samples before the first are zero, and the weighted coefficients that `tree_select` keeps. "fading" keeps one
    of every level, the coarsest first::

        y = w_0 a_J + w_1 b_J + w_2 b_{J-1} + ... + w_J b_1 + w_{J+1} x

    "uniform" spends its coefficients on the coarsest level first, on all nodes of the tree that the coarser ones see:
    one on a_J[t], one on b_J[t], then up to K on b_{J-1}[t - i 2^{J-1}], i = 0, 1, ..., up to 2 (K-1) + K on
    b_{J-2}[t - i 2^{J-2}], and so on, n coefficients on a level leading to 2 (n-1) + K on the next; the last column of
    w is x's. Columns that the tree has no more nodes for stay unused, as in the published code
    (thjashin/multires-conv). That code stores a filter (D, 1, K) with its oldest tap first: its `h0[:, 0].flip(-1)` is
    `h0` here, and w is the same.

    It is one causal convolution with `multires_kernel`, of 1 + (K-1) (2^J - 1) taps. The tree costs O(K L J), and needs
    the memory of a few rows beside its result, also backward, where levels are computed again. From four rows in a
    batch on `fft_conv` does it on a CPU, and only the kernel is computed by the tree; a NaN then reaches its whole row.

    Args:
        x: (B, D, L), floating point, any strides; D, L >= 1.
        h0: (D, K), K >= 1, the low-pass filter; tap s multiplies the input s 2^j steps back.
        h1: (D, K), the high-pass filter.
        w: (D, J+2) for "fading", (D, coefficients + 1) for "uniform" with at least one coefficient.
        levels: J >= 0, see `multires_levels`; may be left out for "fading", where w tells it.
        tree_select: `"fading"` or `"uniform"`.
        cu_seqlens: (N+1,) int32 or int64, boundaries of sequences packed in x, where B = 1, as in `dilated_conv`.
            Gradients then save the levels.
        state: from `multires_state`, `multires_step`, or the call over the preceding chunk.
        return_state: also return the state to go on with: (K-1) (2^J - 1) samples a channel for "fading", which is the
            least that an exact stream can have (stream.py says why). With a state gradients save the levels.

    Returns:
        y (B, D, L) in the dtype of x, channels last in memory if x is; or `(y, state)`. Arithmetic is in the widest of
        the dtypes of x and the filters, at least float32. Under autocast x takes its dtype, and filters keep theirs.

    Raises:
        ValueError: naming the argument whose shape, device or value does not fit; `state` or `return_state` with
            `cu_seqlens`.
        TypeError: for a tensor that is not floating point, `cu_seqlens` that is not integer.
    """
    counts = _check(x, h0, h1, w, levels, tree_select, "x", 3)
    if x.shape[2] == 0:
        raise ValueError(f"x must have at least one time step (L >= 1); got shape {tuple(x.shape)}")
    x, (h0, h1, w) = _autocast(x), _widest(h0, h1, w)
    with torch.autocast(x.device.type, enabled=False):
        if state is not None or return_state:
            name = "state" if state is not None else "return_state"
            if cu_seqlens is not None:
                raise ValueError(f"{name} cannot be combined with cu_seqlens: packed sequences are whole")
            K, dtype = h0.shape[1], compute_dtype(x, h0)
            if state is None:
                state = stream.empty(counts, K, (x.shape[0], x.shape[1]), dtype, x.device)
            _check_state(state, x, counts, K)
            y, after = stream.chunk(x, h0, h1, w, counts, state)
            return (y, after) if return_state else y
        if cu_seqlens is not None:
            check_packed(cu_seqlens, x)
            return compose(x, h0, h1, w, counts, cu_seqlens)
        if torch._C._are_functorch_transforms_active():
            return compose(x, h0, h1, w, counts, None)
        # An exported program has one way, for every number of rows.
        some = x.device.type == "cpu" and not torch.compiler.is_exporting()
        if some and x.shape[0] >= BATCH and products(counts, h0.shape[1]) >= PRODUCTS:
            return _by_kernel(x, h0, h1, w, counts, tree_select)
        return multires_conv_op(x, h0, h1, w, counts)


def _by_kernel(x: Tensor, h0: Tensor, h1: Tensor, w: Tensor, counts: list[int], tree_select: str) -> Tensor:
    """Evaluate it by `fft_conv`; arguments as in `multires_conv`, after checks."""
    taps = min(x.shape[2], 1 + (h0.shape[1] - 1) * (2 ** len(counts) - 1))
    dtype = compute_dtype(x, h0)
    h0, h1, w = h0.to(dtype), h1.to(dtype), w.to(dtype)
    y = fft_conv(x, multires_kernel(h0, h1, w, taps, levels=len(counts), tree_select=tree_select))
    return y.mT.contiguous().mT if channels_last(x) else y


def multires_step(
    x_t: Tensor,
    state: DelayLines,
    h0: Tensor,
    h1: Tensor,
    w: Tensor,
    *,
    levels: int | None = None,
    tree_select: str = "fading",
) -> tuple[Tensor, DelayLines]:
    """Evaluate one time step of :func:`multires_conv`, in 2 K J products and one for each coefficient.

    Args:
        x_t: (B, D), the next input.
        state: from `multires_state`, `multires_conv` or the last step; it stays usable.
        h0: (D, K), as are the others those of `multires_conv`.
        h1: (D, K).
        w: (D, coefficients + 1).
        levels: J.
        tree_select: `"fading"` or `"uniform"`.

    Returns:
        `(y_t, state)`: y_t (B, D) in x_t's dtype, and the next state.

    Raises:
        ValueError: naming the argument whose shape, device or value does not fit.
        TypeError: for a tensor that is not floating point.
    """
    counts = _check(x_t, h0, h1, w, levels, tree_select, "x_t", 2)
    _check_state(state, x_t, counts, h0.shape[1])
    x_t, (h0, h1, w) = _autocast(x_t), _widest(h0, h1, w)
    with torch.autocast(x_t.device.type, enabled=False):
        return stream.step(x_t, state, h0, h1, w, counts)


def multires_state(
    batch_size: int,
    h0: Tensor,
    w: Tensor,
    *,
    levels: int | None = None,
    tree_select: str = "fading",
    dtype: torch.dtype = torch.float32,
) -> DelayLines:
    """Return the state of a stream before its first sample, for inputs of `dtype`; other arguments as above.

    Raises:
        ValueError: naming the argument whose shape or value does not fit.
    """
    x = torch.empty(batch_size, h0.shape[0], dtype=dtype, device=h0.device)
    counts = _check(x, h0, h0, w, levels, tree_select, "x", 2)
    return stream.empty(counts, h0.shape[1], (batch_size, h0.shape[0]), compute_dtype(x, h0), h0.device)


def multires_kernel(
    h0: Tensor, h1: Tensor, w: Tensor, L: int, *, levels: int | None = None, tree_select: str = "fading"
) -> Tensor:
    """Return the dense kernel (D, L), tap s at lag s, with which `fft_conv` does what :func:`multires_conv` does.

    It is the response to an impulse: exact, differentiable, O(K L J) for a channel. Arguments as in `multires_conv`.

    Raises:
        ValueError: L < 1, or naming the argument whose shape or value does not fit.
        TypeError: for a tensor that is not floating point.
    """
    if L < 1:
        raise ValueError(f"L must be at least 1; got {L}")
    h0, h1, w = _widest(h0, h1, w)
    impulse = torch.zeros(1, h0.shape[0], L, dtype=h0.dtype, device=h0.device)
    impulse[..., 0] = 1
    with torch.autocast(h0.device.type, enabled=False):
        return multires_conv(impulse, h0, h1, w, levels=levels, tree_select=tree_select)[0]


def multires_levels(L: int, K: int) -> int:
    """Return the number of levels with which the first of L samples reaches the last: ceil(log2((L-1)/(K-1) + 1)).

    Raises:
        ValueError: L < 1, or K < 2, with which no number of levels reaches anything.
    """
    if L < 1:
        raise ValueError(f"L must be at least 1; got {L}")
    if K < 2:
        raise ValueError(f"K must be at least 2; got {K}")
    return (-(-(L - 1) // (K - 1))).bit_length()


def _check(
    x: Tensor, h0: Tensor, h1: Tensor, w: Tensor, levels: int | None, tree_select: str, name: str, ndim: int
) -> list[int]:
    """Return how many coefficients each level has, after checks."""
    if x.ndim != ndim:
        raise ValueError(f"{name} must have shape {'(B, D, L)' if ndim == 3 else '(B, D)'}; got {tuple(x.shape)}")
    D = x.shape[1]
    if D == 0:
        raise ValueError(f"{name} must have at least one channel; got shape {tuple(x.shape)}")
    if h0.ndim != 2 or h0.shape[0] != D or h0.shape[1] < 1:
        raise ValueError(f"h0 must have shape (D, K) with D = {D} as in {name}, K >= 1; got {tuple(h0.shape)}")
    if h1.shape != h0.shape:
        raise ValueError(f"h1 must have the shape of h0, {tuple(h0.shape)}; got {tuple(h1.shape)}")
    if w.ndim != 2 or w.shape[0] != D or w.shape[1] < 2:
        raise ValueError(
            f"w must have shape (D, coefficients + 1) with D = {D} as in {name}, at least 2 columns; "
            f"got {tuple(w.shape)}"
        )
    for argument, tensor in ((name, x), ("h0", h0), ("h1", h1), ("w", w)):
        if not tensor.is_floating_point():
            raise TypeError(f"{argument} must be floating point; got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{argument} must be on the device of {name}, {x.device}; got {tensor.device}")
    if tree_select not in TREE_SELECTIONS:
        raise ValueError(f"tree_select must be one of {', '.join(TREE_SELECTIONS)}; got {tree_select!r}")
    if levels is None:
        if tree_select != "fading":
            raise ValueError(f"levels must be given for tree_select={tree_select!r}")
        levels = w.shape[1] - 2
    if levels < 0:
        raise ValueError(f"levels must be at least 0; got {levels}")
    if tree_select == "fading" and w.shape[1] != levels + 2:
        raise ValueError(f"w must have shape (D, levels + 2) = {(D, levels + 2)} for 'fading'; got {tuple(w.shape)}")
    return spend(levels, h0.shape[1], w.shape[1] - 1, tree_select)


def _check_state(state: DelayLines, x: Tensor, counts: list[int], K: int) -> None:
    if not isinstance(state, DelayLines):
        raise TypeError(f"state must be what multires_state, multires_conv or multires_step gave; got {type(state)}")
    reaches, dilations = stream.signals(counts, K)
    if (list(state.reaches), list(state.dilations)) != (reaches, dilations):
        raise ValueError(f"state must keep {reaches} samples of its signals; got one that keeps {list(state.reaches)}")
    window = state.window(0)
    if window.shape[:2] != x.shape[:2]:
        raise ValueError(f"state must be of {tuple(x.shape[:2])} rows; got {tuple(window.shape[:2])}")
    if window.device != x.device:
        raise ValueError(f"state must be on the device of the input, {x.device}; got {window.device}")


def _autocast(x: Tensor) -> Tensor:
    return lower(x) if torch.is_autocast_enabled(x.device.type) else x


def _widest(*filters: Tensor) -> tuple[Tensor, ...]:
    """The filters in the widest of their dtypes, at least float32: all arithmetic goes by that of the first."""
    dtype = torch.float32
    for h in filters:
        dtype = torch.promote_types(dtype, h.dtype)
    return tuple(h.to(dtype) for h in filters)


__all__ = [
    "multires_conv",
    "multires_conv_reference",
    "multires_kernel",
    "multires_levels",
    "multires_state",
    "multires_step",
]
