"""Dilated depthwise convolution: `dilated_conv`, and `dilated_conv_step` for one sample at a time.

reference.py defines it in float64; direct.py evaluates it and its weight gradient on a CPU, triton_dilated.py on a GPU;
op.py makes that a PyTorch operator; delay.py keeps the past of a stream; dense.py: where channels mix.
Imports torch only. Convolutions over a tree of dilations: `longconv.kernels.multires`.
"""

import importlib.util
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shortconv.packed import check_boundaries
from . import direct
from .delay import DelayLines
from .op import dilated_conv_op, lower
from .reference import dilated_conv_reference

IMPLEMENTATIONS = ("auto", "torch", "reference", "triton")
PADDINGS = ("causal", "same", "valid")
# What the Triton kernels compute in float32.
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@overload
def dilated_conv(
    u: Tensor,
    k: Tensor,
    bias: Tensor | None = ...,
    *,
    dilation: int = ...,
    padding: str = ...,
    cu_seqlens: Tensor | None = ...,
    state: Tensor | DelayLines | None = ...,
    return_state: Literal[False] = ...,
    impl: str = ...,
) -> Tensor: ...
@overload
def dilated_conv(
    u: Tensor,
    k: Tensor,
    bias: Tensor | None = ...,
    *,
    dilation: int = ...,
    padding: str = ...,
    cu_seqlens: Tensor | None = ...,
    state: Tensor | DelayLines | None = ...,
    return_state: Literal[True],
    impl: str = ...,
) -> tuple[Tensor, Tensor]: ...
def dilated_conv(
    u: Tensor,
    k: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int = 1,
    padding: str = "causal",
    cu_seqlens: Tensor | None = None,
    state: Tensor | DelayLines | None = None,
    return_state: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise convolution whose taps stand `dilation` samples apart.

    ::

        y[b,d,t] = bias[d] + sum_{s=0}^{K-1} k[d,s] u[b,d,t + a - s dilation]

    where u is zero outside 0 ... L-1, t goes from 0 to L-1, and a is 0 for "causal" and
    `ceil((K-1) dilation / 2)` for "same". "valid" gives the causal outputs t = (K-1) dilation ... L-1, which see no
    zeros. `torch.nn.Conv1d(D, D, K, dilation=dilation, groups=D)` does the same with its taps in reverse order and its
    padding "same" or, for "valid", 0: its `weight[:, 0].flip(-1)` is `k` here.

    On a CPU it is shifted multiply-adds on blocks in cache (direct.py), so cost grows with K.

    Args:
        u: (B, D, L), floating point, any strides; D, L >= 1.
        k: (D, K), K >= 1; tap s multiplies the input s * dilation steps back.
        bias: (D,) or None.
        dilation: at least 1; may exceed L.
        padding: `"causal"`, `"same"` or `"valid"`.
        cu_seqlens: (N+1,) int32 or int64, boundaries of sequences packed in u, where B = 1: sequence i is
            `u[..., cu_seqlens[i]:cu_seqlens[i+1]]`, may be empty, and is convolved as if it were alone. The values are
            read and checked, which waits for a GPU. Not with "valid".
        state: (B, D, (K-1) dilation), the inputs just before u, oldest first, or what `dilated_conv_step` returned;
            None means zeros. Causal only.
        return_state: also return the last (K-1) dilation inputs, to be the `state` of the next chunk. Causal only.
        impl: "torch", "reference" (float64, differentiable by autograd), "triton" (a GPU, or Triton's interpreter; u
            and k float32, float16 or bfloat16), or "auto": "triton" on a GPU that can, else "torch".

    Returns:
        y (B, D, L), or (B, D, L - (K-1) dilation) for "valid", in the dtype of u, channels last in memory if u is; or
        `(y, state)` with state (B, D, (K-1) dilation) in the dtype of u. Arithmetic is in the wider of u's and k's
        dtype, at least float32. Under autocast u takes the autocast dtype, and k and bias keep theirs.

    Raises:
        ValueError: naming the argument whose shape, device or value does not fit; `state`, `return_state` with a
            padding that is not causal or with `cu_seqlens`; `impl="triton"` where it cannot be had.
        TypeError: for a tensor that is not floating point, `cu_seqlens` or a dilation that is not integer.
    """
    _check(u, k, bias, dilation, "u", 3)
    if padding not in PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(PADDINGS)}; got {padding!r}")
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")
    L, reach = u.shape[2], (k.shape[1] - 1) * dilation
    if L == 0:
        raise ValueError(f"u must have at least one time step (L >= 1); got shape {tuple(u.shape)}")
    if padding == "valid" and reach >= L:
        raise ValueError(f"u is too short for padding='valid': L must exceed (K-1) dilation = {reach}; got L = {L}")
    u = lower(u) if torch.is_autocast_enabled(u.device.type) else u
    if state is not None or return_state:
        name = "state" if state is not None else "return_state"
        if padding != "causal":
            raise ValueError(f"{name} needs padding='causal'; got padding={padding!r}")
        if cu_seqlens is not None:
            raise ValueError(f"{name} cannot be combined with cu_seqlens: packed sequences are whole")
    if cu_seqlens is not None:
        check_packed(cu_seqlens, u)
        if padding == "valid":
            raise ValueError("padding='valid' cannot be combined with cu_seqlens: outputs would shift")
    left, right = {"causal": (reach, 0), "same": (reach // 2, reach - reach // 2), "valid": (0, 0)}[padding]
    if state is not None:
        u = torch.cat([_window(state, u, k, dilation).to(u.dtype), u], dim=-1)
        left = 0
    y = _convolve(u, k, bias, dilation, left, right, cu_seqlens, impl, padding if state is None else "valid")
    # The last inputs, zeros before the beginning. `pad` copies: a view would keep the whole chunk in memory for as long
    # as the state lives.
    return (y, F.pad(u, (reach - u.shape[-1], 0))) if return_state else y


def dilated_conv_step(
    u_t: Tensor, state: Tensor | DelayLines, k: Tensor, bias: Tensor | None = None, *, dilation: int = 1
) -> tuple[Tensor, DelayLines]:
    """Evaluate one time step of the causal :func:`dilated_conv`.

    Args:
        u_t: (B, D), the next input, floating point.
        state: (B, D, (K-1) dilation), the inputs before it, oldest first, which is copied; or the state that the last
            step returned. From there on a step touches K samples, however large the dilation is (and moves one, on
            average; see `DelayLines`), except with gradients enabled, where it copies its state.
        k: (D, K); tap `s` multiplies the input `s * dilation` steps back.
        bias: (D,) or None.
        dilation: as in `dilated_conv`, the same for all steps.

    Returns:
        `(y_t, state)`: y_t (B, D) in u_t's dtype and the next state, whose `window(0)` is (B, D, (K-1) dilation), in
        the dtype of the first state; `state` itself is left as it was. Arithmetic and autocast as in `dilated_conv`.

    Raises:
        ValueError: naming the argument whose shape, device or value does not fit.
        TypeError: for a tensor that is not floating point, or a dilation that is not an integer.
    """
    _check(u_t, k, bias, dilation, "u_t", 2)
    window = _window(state, u_t, k, dilation)
    lines = state if isinstance(state, DelayLines) else DelayLines([window], [dilation])
    u_t = lower(u_t) if torch.is_autocast_enabled(u_t.device.type) else u_t
    dtype = direct.compute_dtype(u_t, k)
    seen = torch.cat([u_t[:, None].to(dtype), lines.taps().to(dtype)], 1)  # (B, K, D), latest first
    y = (seen * k.to(dtype).t()).sum(1)
    if bias is not None:
        y = y + bias.to(dtype)
    return y.to(u_t.dtype), lines.append(u_t[:, None])


def _convolve(
    u: Tensor,
    k: Tensor,
    bias: Tensor | None,
    dilation: int,
    left: int,
    right: int,
    cu_seqlens: Tensor | None,
    impl: str,
    padding: str,
) -> Tensor:
    """Convolve with zeros around u, by the implementation that is asked for."""
    if impl == "reference":
        y = dilated_conv_reference(u, k, bias, dilation=dilation, padding=padding, cu_seqlens=cu_seqlens)
        return y.to(u.dtype)
    # A custom operator has no rule for torch.func.grad, jvp and vmap.
    if torch._C._are_functorch_transforms_active() and impl != "triton":
        index = None if cu_seqlens is None else direct.sequence_index(cu_seqlens, u.shape[-1])
        with torch.autocast(u.device.type, enabled=False):
            return direct.composite(u, k, bias, dilation, left, right, index)
    if impl != "torch":
        reason = _no_triton(u, k)
        if impl == "triton" and reason is not None:
            raise ValueError(f"impl='triton' cannot be had because {reason}; use 'auto' or 'torch'")
        if impl == "auto":
            impl = "torch" if reason is not None or u.device.type == "cpu" else "triton"
    return dilated_conv_op(u, k, bias, dilation, left, right, cu_seqlens, impl)


def _no_triton(u: Tensor, k: Tensor) -> str | None:
    """Why the Triton kernels cannot do it, or None."""
    for name, x in (("u", u), ("k", k)):
        if x.dtype not in TRITON_DTYPES:
            return f"it computes in float32, and {name} is {x.dtype}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    from ..gpu import triton_unavailable

    return triton_unavailable(u.device)


def _window(state: Tensor | DelayLines, u: Tensor, k: Tensor, dilation: int) -> Tensor:
    """Return the inputs before u as a tensor, after a check."""
    window = state.window(0) if isinstance(state, DelayLines) else state
    expected = (u.shape[0], u.shape[1], (k.shape[1] - 1) * dilation)
    if window.shape != expected:
        raise ValueError(f"state must have shape (B, D, (K-1) dilation) = {expected}; got {tuple(window.shape)}")
    if isinstance(state, DelayLines) and state.dilations != (dilation,):
        raise ValueError(f"state belongs to dilation {state.dilations[0]}; got dilation = {dilation}")
    _check_kind("state", window, "u" if u.ndim == 3 else "u_t", u)
    return window


def _check(u: Tensor, k: Tensor, bias: Tensor | None, dilation: int, name: str, ndim: int) -> None:
    if u.ndim != ndim:
        raise ValueError(f"{name} must have shape {'(B, D, L)' if ndim == 3 else '(B, D)'}; got {tuple(u.shape)}")
    D = u.shape[1]
    if k.ndim != 2 or k.shape[0] != D or k.shape[1] < 1:
        raise ValueError(f"k must have shape (D, K) with D = {D} as in {name}, K >= 1; got {tuple(k.shape)}")
    if D == 0:
        raise ValueError(f"{name} must have at least one channel; got shape {tuple(u.shape)}")
    if bias is not None and bias.shape != (D,):
        raise ValueError(f"bias must have shape (D,) = ({D},) as in {name}; got {tuple(bias.shape)}")
    for argument, x in ((name, u), ("k", k), ("bias", bias)):
        if x is not None:
            _check_kind(argument, x, name, u)
    if isinstance(dilation, bool) or not isinstance(dilation, int | torch.SymInt):
        raise TypeError(f"dilation must be an integer; got {dilation!r}")
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1; got {dilation}")


def _check_kind(argument: str, x: Tensor, name: str, u: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{argument} must be floating point; got {x.dtype}")
    if x.device != u.device:
        raise ValueError(f"{argument} must be on the device of {name}, {u.device}; got {x.device}")


def check_packed(cu_seqlens: Tensor, u: Tensor) -> None:
    """Raise unless `cu_seqlens` are boundaries of sequences packed in u (1, D, L)."""
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens must be int32 or int64; got {cu_seqlens.dtype}")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(f"cu_seqlens must have shape (N+1,) with N >= 1; got {tuple(cu_seqlens.shape)}")
    if u.shape[0] != 1:
        raise ValueError(f"cu_seqlens needs u with B = 1; got shape {tuple(u.shape)}")
    if cu_seqlens.device != u.device:
        raise ValueError(f"cu_seqlens must be on the device of u, {u.device}; got {cu_seqlens.device}")
    check_boundaries(cu_seqlens, u.shape[-1])


__all__ = ["DelayLines", "dilated_conv", "dilated_conv_reference", "dilated_conv_step"]
