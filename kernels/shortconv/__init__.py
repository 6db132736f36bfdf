"""Short depthwise convolution, causal or centred: `short_conv`, and `short_conv_step` for one sample at a time.

reference.py defines it in float64; direct.py evaluates it and its weight gradient; op.py makes that a PyTorch
operator; packed.py keeps packed sequences apart; composite.py adds gates. On a GPU all of it is one pass over memory:
fused_op.py is that operator, triton_launch.py and triton_short.py do the work. Imports torch, and triton lazily. Long
kernels (FFT): `longconv.kernels.fftconv`.

So it is on a CPU, in C (native/). Without a C compiler, in float64, with more than 128 taps and under torch.func it is
grouped `conv1d` there, which no form of PyTorch's operators tried beats forward: K shifted multiply-adds, or products
with Toeplitz blocks (3.9 / 3.4 / 8.3 / 48 ms at K = 16 / 32 / 64 / 128, against 2.5 / 2.1 / 3.2 / 4.9). Backward,
autograd of `conv1d` is the best for few taps, and from K = 8 on the operator is, with a gradient of the taps of its
own. Forward + backward of (4, 256, 1024), float32, AMD EPYC, CPU ms of one core, median of interleaved runs on a busy
machine:

    K                                        3      8     16     64    128
    conv1d's autograd                      4.4   17.9   23.3   55.0  109.0
    operator                               5.6   13.5   14.4   13.3   19.1
    conv1d's autograd, channels last      14.7   19.2   25.6   54.8   95.5
    operator, channels last               14.7   15.8   17.4   16.8   19.9
"""

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from longconv.kernels.gpu import interpreting

from . import direct, packed
from .composite import composite
from .fused_op import gated_short_conv_op, unsuitable
from .op import lower, short_conv_op
from .reference import short_conv_reference

IMPLEMENTATIONS = ("auto", "native", "torch", "triton")
# The operator is taken on a CPU from so many taps and B D L K products on. Below, its calls (about 0.3 ms forward and
# backward) cost more than it saves.
OPERATOR_TAPS = 8
OPERATOR_PRODUCTS = 2**20


@overload
def short_conv(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    *,
    padding: str = ...,
    activation: str | None = ...,
    state: Tensor | None = ...,
    return_state: Literal[False] = ...,
    cu_seqlens: Tensor | None = ...,
    pre_gate: Tensor | None = ...,
    post_gate: Tensor | None = ...,
    impl: str = ...,
) -> Tensor: ...
@overload
def short_conv(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    *,
    padding: str = ...,
    activation: str | None = ...,
    state: Tensor | None = ...,
    return_state: Literal[True],
    cu_seqlens: Tensor | None = ...,
    pre_gate: Tensor | None = ...,
    post_gate: Tensor | None = ...,
    impl: str = ...,
) -> tuple[Tensor, Tensor]: ...
def short_conv(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: str = "causal",
    activation: str | None = None,
    state: Tensor | None = None,
    return_state: bool = False,
    cu_seqlens: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise convolution with a few taps per channel.

    With ``v = pre_gate * u``::

        y[b,d,t] = post_gate[b,d,t] * act(bias[d] + sum_{s=0}^{K-1} weight[d,s] v[b,d,t+a-s])

    where a = 0 (causal) or K // 2 (same), and v is zero outside 0 ... L-1. Tap s = a is lag 0. Causal taps are those of
    `fft_conv`; "same" centres them, and for even K the extra tap looks ahead: `K//2` samples ahead, `K//2 - 1` back.
    `torch.nn.Conv1d(D, D, K, padding="same", groups=D)` does the same with its taps in reverse order: its
    `weight[:, 0].flip(-1)` is `weight` here.

    Any K works, and cost grows with it: on a CPU `fft_conv` is faster from about K = 32 on, twice as fast at K = 128
    for (8, 64, 4096).

    Args:
        u: (B, D, L), floating point, any strides; D, L >= 1.
        weight: (D, K), K >= 1.
        bias: (D,) or None.
        padding: `"causal"` or `"same"`.
        activation: None or `"silu"`.
        state: (B, D, K-1), the v just before u, oldest first; None means zeros. Causal only.
        return_state: also return the last K-1 samples of v, to be the `state` of the next chunk. Causal only.
        cu_seqlens: (N+1,) int32 or int64, boundaries of sequences packed in u, where B = 1: sequence i is
            `u[..., cu_seqlens[i]:cu_seqlens[i+1]]`, may be empty, and is convolved as if it were alone. The cost is
            that of L + N (K-1) samples. The values are read and checked, which waits for a GPU.
        pre_gate: (B, D, L), multiplies the input.
        post_gate: (B, D, L), multiplies the output.
        impl: "torch" (PyTorch's operators); "native" (C, compiled at its first use: one pass over memory forward and
            one backward, on a CPU); "triton" (one pass forward, and one backward up to 4 taps; on a GPU, or anywhere
            under `TRITON_INTERPRET=1`); "auto" takes Triton on a GPU and C on a CPU where it can: float32 or half
            precision, K <= 128, no transformation of torch.func and no forward mode, and on a CPU a C compiler.

    Returns:
        y (B, D, L) in the dtype of u, or `(y, state)` with state (B, D, K-1) in the dtype of u. Arithmetic is in the
        wider of u's and weight's dtype, at least float32. Under autocast u takes the autocast dtype, and weight and
        bias keep theirs; the gates are lowered with u.

    Raises:
        ValueError: naming the argument whose shape, device or value does not fit; `state`, `return_state` with
            `padding="same"` or `cu_seqlens`; an `impl` that cannot do it, with the reason.
        TypeError: for a tensor that is not floating point, or `cu_seqlens` that is not integer.
    """
    _check(u, weight, bias, activation, "u", 3)
    _check_gates(u, pre_gate, post_gate)
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")
    if padding not in ("causal", "same"):
        raise ValueError(f"padding must be 'causal' or 'same'; got {padding!r}")
    L, K = u.shape[2], weight.shape[1]
    if L == 0:
        raise ValueError(f"u must have at least one time step (L >= 1); got shape {tuple(u.shape)}")
    right = K // 2 if padding == "same" else 0
    left = K - 1 - right
    silu = activation == "silu"
    u, pre_gate, post_gate = _autocast(u), _autocast(pre_gate), _autocast(post_gate)
    if state is not None or return_state:
        name = "state" if state is not None else "return_state"
        if padding != "causal":
            raise ValueError(f"{name} needs padding='causal'; got padding={padding!r}")
        if cu_seqlens is not None:
            raise ValueError(f"{name} cannot be combined with cu_seqlens: packed sequences are whole")
    if cu_seqlens is not None:
        _check_cu_seqlens(cu_seqlens, u)
    if state is not None:
        _check_state(state, u, K)
        v = u if pre_gate is None else (u * pre_gate).to(u.dtype)
        u, pre_gate, left = torch.cat([state.to(u.dtype), v], dim=-1), None, 0
    arguments = (u, weight, bias, pre_gate, post_gate, cu_seqlens, left, right, silu)
    fused = _fused(impl, u, weight, bias, pre_gate, post_gate)
    y = gated_short_conv_op(*arguments, fused) if fused else composite(_convolve, *arguments)
    if not return_state:
        return y
    # K-1 samples from the end, zeros before the beginning. `pad` copies: a view would keep the whole chunk in memory
    # for as long as the state lives.
    last = F.pad(u, (K - 1 - u.shape[-1], 0))
    return y, last if pre_gate is None else (last * F.pad(pre_gate, (K - 1 - u.shape[-1], 0))).to(u.dtype)


def short_conv_step(
    u_t: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Evaluate one time step of the causal :func:`short_conv`.

    Args:
        u_t: (B, D), the next input, floating point.
        state: (B, D, K-1), the inputs before it, oldest first.
        weight: (D, K); tap `s` multiplies the input `s` steps back.
        bias: (D,) or None.
        activation: None or `"silu"`.

    Returns:
        `(y_t, state)`: y_t (B, D) and the next state (B, D, K-1), in u_t's dtype; `state` itself is left as it was.
        Arithmetic and autocast as in `short_conv`.

    Raises:
        ValueError: naming the argument whose shape, device or value does not fit.
        TypeError: for a tensor that is not floating point.
    """
    _check(u_t, weight, bias, activation, "u_t", 2)
    _check_state(state, u_t, weight.shape[1])
    u_t = _autocast(u_t)
    window = torch.cat([state.to(u_t.dtype), u_t[..., None]], dim=-1)
    dtype = direct.compute_dtype(u_t, weight)
    y = (window.to(dtype) * weight.to(dtype).flip(-1)).sum(-1)
    if bias is not None:
        y = y + bias.to(dtype)
    return (F.silu(y) if activation == "silu" else y).to(u_t.dtype), window[..., 1:]


def _convolve(u: Tensor, weight: Tensor, bias: Tensor | None, left: int, right: int, silu: bool) -> Tensor:
    """Convolve with zeros around u, by the operator or by PyTorch's own autograd, whichever is faster."""
    if _operator_pays(u, weight, bias):
        return short_conv_op(u, weight, bias, left, right, silu)
    if torch.is_autocast_enabled(u.device.type):  # conv1d would lower the taps
        with torch.autocast(u.device.type, enabled=False):
            return direct.convolve(u, weight, bias, left, right, silu)
    return direct.convolve(u, weight, bias, left, right, silu)


def _operator_pays(u: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if torch._C._are_functorch_transforms_active():  # a custom operator has no rule for torch.func.grad and jvp
        return False
    if torch.compiler.is_compiling():  # Inductor would fix the length at which it saw the backward pass of conv1d
        return True
    if u.device.type != "cpu" or weight.shape[1] < OPERATOR_TAPS:
        return False
    differentiable = torch.is_grad_enabled() and (
        u.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    return differentiable and u.numel() * weight.shape[1] >= OPERATOR_PRODUCTS


def _fused(
    impl: str, u: Tensor, weight: Tensor, bias: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None
) -> str | None:
    """Return by what the operator that does all in one pass is to do it: "triton", "native", or None: not at all."""
    if impl == "torch":
        return None
    wanted = impl
    if impl == "auto":
        if torch.compiler.is_exporting() or (u.device.type == "cuda" and interpreting()):
            return None
        wanted = "native" if u.device.type == "cpu" else "triton"
    reason = unsuitable(wanted, u, weight, bias, pre_gate, post_gate)
    if reason is not None and impl != "auto":
        raise ValueError(f"impl={impl!r} is not possible here: {reason}")
    return wanted if reason is None else None


@overload
def _autocast(x: Tensor) -> Tensor: ...
@overload
def _autocast(x: Tensor | None) -> Tensor | None: ...
def _autocast(x: Tensor | None) -> Tensor | None:
    return lower(x) if x is not None and torch.is_autocast_enabled(x.device.type) else x


def _check(u: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, name: str, ndim: int) -> None:
    if u.ndim != ndim:
        raise ValueError(f"{name} must have shape {'(B, D, L)' if ndim == 3 else '(B, D)'}; got {tuple(u.shape)}")
    D = u.shape[1]
    if weight.ndim != 2 or weight.shape[0] != D or weight.shape[1] < 1:
        raise ValueError(f"weight must have shape (D, K) with D = {D} as in {name}, K >= 1; got {tuple(weight.shape)}")
    if D == 0:
        raise ValueError(f"{name} must have at least one channel; got shape {tuple(u.shape)}")
    if bias is not None and bias.shape != (D,):
        raise ValueError(f"bias must have shape (D,) = ({D},) as in {name}; got {tuple(bias.shape)}")
    for argument, x in ((name, u), ("weight", weight), ("bias", bias)):
        if x is not None:
            _check_kind(argument, x, name, u)
    if activation not in (None, "silu"):
        raise ValueError(f"activation must be None or 'silu'; got {activation!r}")


def _check_gates(u: Tensor, pre_gate: Tensor | None, post_gate: Tensor | None) -> None:
    for name, gate in (("pre_gate", pre_gate), ("post_gate", post_gate)):
        if gate is not None:
            if gate.shape != u.shape:
                raise ValueError(f"{name} must have the shape of u, {tuple(u.shape)}; got {tuple(gate.shape)}")
            _check_kind(name, gate, "u", u)


def _check_kind(argument: str, x: Tensor, name: str, u: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{argument} must be floating point; got {x.dtype}")
    if x.device != u.device:
        raise ValueError(f"{argument} must be on the device of {name}, {u.device}; got {x.device}")


def _check_state(state: Tensor, u: Tensor, K: int) -> None:
    if state.shape != (u.shape[0], u.shape[1], K - 1):
        raise ValueError(
            f"state must have shape (B, D, K-1) = {(u.shape[0], u.shape[1], K - 1)}; got {tuple(state.shape)}"
        )
    _check_kind("state", state, "u" if u.ndim == 3 else "u_t", u)


def _check_cu_seqlens(cu_seqlens: Tensor, u: Tensor) -> None:
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens must be int32 or int64; got {cu_seqlens.dtype}")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(f"cu_seqlens must have shape (N+1,) with N >= 1; got {tuple(cu_seqlens.shape)}")
    if u.shape[0] != 1:
        raise ValueError(f"cu_seqlens needs u with B = 1; got shape {tuple(u.shape)}")
    if cu_seqlens.device != u.device:
        raise ValueError(f"cu_seqlens must be on the device of u, {u.device}; got {cu_seqlens.device}")
    packed.check_boundaries(cu_seqlens, u.shape[-1])


__all__ = ["short_conv", "short_conv_reference", "short_conv_step"]
