"""`longconv::fft_conv` as a PyTorch operator: fake kernels for tracing, autograd, vmap, autocast.

The convolution is linear in u, in each gate, and in its filters (k, skip, k_reverse) together. So the derivative of its
backward pass consists of convolutions and backward passes again, to any order.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import dispatch
from .transforms import add, changed, fold, in_torch_func, lower, unfold

# Positions of the differentiable tensors, in the order of `needs` and of the gradients.
_TENSORS = ("u", "k", "skip", "k_reverse", "pre_gate", "post_gate")
# What y is linear in: the filters together, the others one by one.
_FACTORS = ({"u"}, {"k", "skip", "k_reverse"}, {"pre_gate"}, {"post_gate"})


@torch.library.custom_op("longconv::fft_conv", mutates_args=())
def fft_conv_op(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    k_reverse: Tensor | None,
    circular: bool,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    cu_seqlens: Tensor | None,
    impl: str,
) -> Tensor:
    """Convolution; arguments as in `longconv.functional.fft_conv`, which checks them."""
    return dispatch.conv_forward(u, k, skip, k_reverse, circular, pre_gate, post_gate, cu_seqlens, impl)


@torch.library.custom_op("longconv::fft_conv_backward", mutates_args=())
def fft_conv_backward_op(
    dy: Tensor,
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    k_reverse: Tensor | None,
    circular: bool,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    needs: list[bool],
    cu_seqlens: Tensor | None,
    impl: str,
) -> list[Tensor]:
    """Gradients for (u, k, skip, k_reverse, pre_gate, post_gate); an empty tensor where `needs` is False."""
    return dispatch.conv_backward(dy, u, k, skip, k_reverse, circular, pre_gate, post_gate, needs, cu_seqlens, impl)


@fft_conv_op.register_fake
def _(u, k, skip, k_reverse, circular, pre_gate, post_gate, cu_seqlens, impl):  # type: ignore[no-untyped-def]
    return torch.empty(u.shape, dtype=u.dtype, device=u.device)


@fft_conv_backward_op.register_fake
def _(dy, u, k, skip, k_reverse, circular, pre_gate, post_gate, needs, cu_seqlens, impl):  # type: ignore[no-untyped-def]
    inputs = (u, k, skip, k_reverse, pre_gate, post_gate)
    return [
        torch.empty(x.shape, dtype=x.dtype, device=x.device) if need and x is not None else u.new_empty(0)
        for x, need in zip(inputs, needs, strict=True)
    ]


# --- Autograd ---------------------------------------------------------------------------------------------------------


class _Way(NamedTuple):
    """What a call and all its derivatives have in common."""

    circular: bool
    cu_seqlens: Tensor | None
    impl: str


def _forward(x: dict[str, Tensor | None], way: _Way) -> Tensor:
    filters = (x["k"], x["skip"], x["k_reverse"])
    return conv(x["u"], *filters, way.circular, x["pre_gate"], x["post_gate"], way.cu_seqlens, way.impl)


def _gradients(dy: Tensor, x: dict[str, Tensor | None], way: _Way, wanted: set[str]) -> dict[str, Tensor]:
    wanted = {name for name in wanted if x[name] is not None}
    if not wanted:
        return {}
    grads = conv_backward(
        dy, x["u"], x["k"], x["skip"], x["k_reverse"], way.circular, x["pre_gate"], x["post_gate"],
        [name in wanted for name in _TENSORS], way.cu_seqlens, way.impl,
    )  # fmt: skip
    return {name: grad for name, grad in zip(_TENSORS, grads, strict=True) if name in wanted}


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    u, k, skip, k_reverse, ctx.circular, pre_gate, post_gate, cu_seqlens, ctx.impl = inputs
    # Inputs only: the spectra are recomputed.
    ctx.save_for_backward(u, k, skip, k_reverse, pre_gate, post_gate, cu_seqlens)


def _backward(ctx, dy):  # type: ignore[no-untyped-def]
    *tensors, cu_seqlens = ctx.saved_tensors
    x = dict(zip(_TENSORS, tensors, strict=True))
    wants = ctx.needs_input_grad
    needs = dict(zip(_TENSORS, (*wants[:4], *wants[5:7]), strict=True))
    way = _Way(ctx.circular, cu_seqlens, ctx.impl)
    grads = _gradients(dy, x, way, {name for name in _TENSORS if needs[name]})
    du, dk, dskip, dk_reverse, dpre, dpost = (grads.get(name) for name in _TENSORS)
    return du, dk, dskip, dk_reverse, None, dpre, dpost, None, None


fft_conv_op.register_autograd(_backward, setup_context=_setup_context)


def _setup_context_of_backward(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    dy, u, k, skip, k_reverse, ctx.circular, pre_gate, post_gate, ctx.needs, cu_seqlens, ctx.impl = inputs
    ctx.save_for_backward(dy, u, k, skip, k_reverse, pre_gate, post_gate, cu_seqlens)


def _double_backward(ctx, cotangents):  # type: ignore[no-untyped-def]
    """Differentiate <cotangents, gradients> = <dy, the change of y when the inputs change by the cotangents>.

    That change is a sum of convolutions in which one factor is replaced by its cotangent (the filters count as one,
    because y is linear in them together); each is differentiated for the factors that were not replaced, and for dy.
    """
    dy, *tensors, cu_seqlens = ctx.saved_tensors
    x = dict(zip(_TENSORS, tensors, strict=True))
    changes = {name: g for name, g, need in zip(_TENSORS, cotangents, ctx.needs, strict=True) if need}
    wants = ctx.needs_input_grad
    wanted = {name for name, want in zip(_TENSORS, (*wants[1:5], *wants[6:8]), strict=True) if want}
    totals: dict[str, Tensor] = {}
    way = _Way(ctx.circular, cu_seqlens, ctx.impl)
    for factor, replaced in changed(x, changes, _FACTORS):
        parts = _gradients(dy, replaced, way, wanted - factor)
        if wants[0]:
            parts["dy"] = _forward(replaced, way)
        add(totals, parts)
    # Under AMP or with float64 filters the pieces may be wider than what they belong to.
    ddy = totals["dy"].to(dy.dtype) if "dy" in totals else None
    du, dk, dskip, dk_reverse, dpre, dpost = (totals.get(name) for name in _TENSORS)
    return ddy, du, dk, dskip, dk_reverse, None, dpre, dpost, None, None, None


fft_conv_backward_op.register_autograd(_double_backward, setup_context=_setup_context_of_backward)


# --- vmap: a mapped dimension becomes part of the channels, which are independent of each other -----------------------


def _vmap_forward(info, dims, *args):  # type: ignore[no-untyped-def]
    u, k, skip, k_reverse, circular, pre_gate, post_gate, cu_seqlens, impl = args
    _refuse_mapped_boundaries(dims[7])
    N = info.batch_size
    u, pre_gate, post_gate = (fold(x, d, N, 1) for x, d in ((u, dims[0]), (pre_gate, dims[5]), (post_gate, dims[6])))
    k, skip, k_reverse = (fold(x, d, N, 0) for x, d in ((k, dims[1]), (skip, dims[2]), (k_reverse, dims[3])))
    y = conv(u, k, skip, k_reverse, circular, pre_gate, post_gate, cu_seqlens, impl)
    return unfold(y, 1, N), 1


def _vmap_backward(info, dims, *args):  # type: ignore[no-untyped-def]
    dy, u, k, skip, k_reverse, circular, pre_gate, post_gate, needs, cu_seqlens, impl = args
    _refuse_mapped_boundaries(dims[9])
    N = info.batch_size
    dy, u, pre_gate, post_gate = (
        fold(x, d, N, 1) for x, d in ((dy, dims[0]), (u, dims[1]), (pre_gate, dims[6]), (post_gate, dims[7]))
    )
    k, skip, k_reverse = (fold(x, d, N, 0) for x, d in ((k, dims[2]), (skip, dims[3]), (k_reverse, dims[4])))
    grads = conv_backward(dy, u, k, skip, k_reverse, circular, pre_gate, post_gate, needs, cu_seqlens, impl)
    inputs = (u, k, skip, k_reverse, pre_gate, post_gate)
    there = [need and x is not None for need, x in zip(needs, inputs, strict=True)]
    channel = [c if present else None for c, present in zip((1, 0, 0, 0, 1, 1), there, strict=True)]
    out = [grad if c is None else unfold(grad, c, N) for grad, c in zip(grads, channel, strict=True)]
    return out, channel


def _refuse_mapped_boundaries(dim: int | None) -> None:
    if dim is not None:
        raise ValueError("cu_seqlens: vmap over the boundaries of packed sequences is not supported")


fft_conv_op.register_vmap(_vmap_forward)
fft_conv_backward_op.register_vmap(_vmap_backward)


# --- torch.func: its grad, vjp and jacrev do not go through the autograd of a registered operator ---------------------


class _Conv(torch.autograd.Function):
    """`fft_conv_op` as the transformations of torch.func want it."""

    @staticmethod
    def forward(*args):  # type: ignore[no-untyped-def]
        return fft_conv_op(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        _setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:4], *inputs[5:8])

    @staticmethod
    def jvp(ctx, du, dk, dskip, dk_reverse, _, dpre, dpost, *_rest):  # type: ignore[no-untyped-def]
        *tensors, cu_seqlens = ctx.saved_tensors
        x = dict(zip(_TENSORS, tensors, strict=True))
        changes = dict(zip(_TENSORS, (du, dk, dskip, dk_reverse, dpre, dpost), strict=True))
        way = _Way(ctx.circular, cu_seqlens, ctx.impl)
        return sum(_forward(replaced, way) for _, replaced in changed(x, changes, _FACTORS))

    backward = staticmethod(_backward)
    vmap = staticmethod(_vmap_forward)


class _ConvBackward(torch.autograd.Function):
    """`fft_conv_backward_op` as the transformations of torch.func want it."""

    @staticmethod
    def forward(*args):  # type: ignore[no-untyped-def]
        return tuple(fft_conv_backward_op(*args))

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        _setup_context_of_backward(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:5], *inputs[6:8], inputs[9])

    @staticmethod
    def jvp(ctx, ddy, du, dk, dskip, dk_reverse, _, dpre, dpost, *_rest):  # type: ignore[no-untyped-def]
        dy, *tensors, cu_seqlens = ctx.saved_tensors
        x = dict(zip(_TENSORS, tensors, strict=True))
        needed = {name for name, need in zip(_TENSORS, ctx.needs, strict=True) if need}
        way = _Way(ctx.circular, cu_seqlens, ctx.impl)
        totals = {} if ddy is None else _gradients(ddy, x, way, needed)
        changes = dict(zip(_TENSORS, (du, dk, dskip, dk_reverse, dpre, dpost), strict=True))
        for factor, replaced in changed(x, changes, _FACTORS):
            add(totals, _gradients(dy, replaced, way, needed - factor))
        return tuple(
            totals[name]
            if name in totals
            else dy.new_zeros(0)
            if t is None or name not in needed
            else torch.zeros_like(t)
            for name, t in x.items()
        )

    @staticmethod
    def backward(ctx, *cotangents):  # type: ignore[no-untyped-def]
        return _double_backward(ctx, cotangents)

    @staticmethod
    def vmap(info, dims, *args):  # type: ignore[no-untyped-def]
        out, out_dims = _vmap_backward(info, dims, *args)
        return tuple(out), tuple(out_dims)


def conv(*args):  # type: ignore[no-untyped-def]
    """`fft_conv_op`, under any transformation."""
    return _Conv.apply(*args) if in_torch_func() else fft_conv_op(*args)


def conv_backward(*args):  # type: ignore[no-untyped-def]
    """`fft_conv_backward_op`, under any transformation."""
    return _ConvBackward.apply(*args) if in_torch_func() else fft_conv_backward_op(*args)


# --- Autocast ---------------------------------------------------------------------------------------------------------


def _register_autocast(device_type: str, key: str) -> None:
    """Under autocast the activations (u and the gates) take its dtype; filters and skip stay as they are."""

    def kernel(u, k, skip, k_reverse, circular, pre_gate, post_gate, cu_seqlens, impl):  # type: ignore[no-untyped-def]
        u, pre_gate, post_gate = (lower(x, device_type) for x in (u, pre_gate, post_gate))
        with torch.autocast(device_type, enabled=False):
            return fft_conv_op(u, k, skip, k_reverse, circular, pre_gate, post_gate, cu_seqlens, impl)

    torch.library.impl("longconv::fft_conv", key, kernel)


_register_autocast("cpu", "AutocastCPU")
_register_autocast("cuda", "AutocastCUDA")
