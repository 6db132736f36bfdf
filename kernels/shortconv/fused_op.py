"""`longconv::gated_short_conv` as a PyTorch operator: gates, taps, bias and SiLU in one pass, by Triton or in C.

Only inputs are saved for the backward pass. That one has no derivative of its own: where one is wanted
(`create_graph=True`), the gradients are taken through `composite`, the same in PyTorch's operators. Triton is imported
when the operator runs.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from longconv.kernels.gpu import triton_unavailable

from . import direct, native
from .composite import composite
from .layout import laid_out_as

# From here on, products of Toeplitz blocks or an FFT are the better way.
MAX_TAPS = 128
MAX_LENGTH = 2**31 - 2**16  # samples are counted in 32 bits; offsets, from which rows may be further apart, in 64
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@torch.library.custom_op("longconv::gated_short_conv", mutates_args=())
def gated_short_conv_op(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    cu_seqlens: Tensor | None,
    left: int,
    right: int,
    silu: bool,
    impl: str,
) -> Tensor:
    """Convolve with `left` and `right` zeros around u; see `triton_launch.forward`. `impl`: "triton" or "native"."""
    return _launcher(impl).forward(u, weight, bias, pre_gate, post_gate, cu_seqlens, left, right, silu)


@torch.library.custom_op("longconv::gated_short_conv_backward", mutates_args=())
def gated_short_conv_backward_op(
    dy: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    cu_seqlens: Tensor | None,
    left: int,
    right: int,
    silu: bool,
    impl: str,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients for (u, weight, bias, pre_gate, post_gate); an empty tensor where `needs` is False."""
    return _launcher(impl).backward(dy, u, weight, bias, pre_gate, post_gate, cu_seqlens, left, right, silu, needs)


def _launcher(impl: str) -> ModuleType:
    if impl == "native":
        return native
    from . import triton_launch

    return triton_launch


def unsuitable(
    impl: str, u: Tensor, weight: Tensor, bias: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None
) -> str | None:
    """Say why the operator cannot take u (B, D, L), taps (D, K) and the others by `impl`; None if it can."""
    if impl == "native":
        if why := native.unavailable(u, weight, bias, pre_gate, post_gate):
            return why
    else:
        if reason := triton_unavailable(u.device):
            return reason
        for x in (u, weight, bias, pre_gate, post_gate):
            if x is not None and x.dtype not in DTYPES:
                return f"it takes float32, float16 and bfloat16, not {x.dtype}"
    if weight.shape[1] > MAX_TAPS:
        return f"it takes up to {MAX_TAPS} taps, not {weight.shape[1]}"
    if u.shape[-1] > MAX_LENGTH:
        return f"it takes rows of up to {MAX_LENGTH} samples, not {u.shape[-1]}"
    if torch._C._are_functorch_transforms_active():
        return "it has no rules for the transformations of torch.func"
    if not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0:
        return "it has no derivative in forward mode"
    return None


@gated_short_conv_op.register_fake
def _(u, weight, bias, pre_gate, post_gate, cu_seqlens, left, right, silu, impl):  # type: ignore[no-untyped-def]
    B, D, L = u.shape
    return torch.empty((B, D, L + left + right - weight.shape[1] + 1), dtype=u.dtype, device=u.device)


@gated_short_conv_backward_op.register_fake
def _(dy, u, weight, bias, pre_gate, post_gate, cu_seqlens, left, right, silu, impl, needs):  # type: ignore[no-untyped-def]
    def gradient(x: Tensor) -> Tensor:
        return laid_out_as(x, x.shape[-1]) if x.ndim == 3 else torch.empty(x.shape, dtype=x.dtype, device=x.device)

    inputs = (u, weight, bias, pre_gate, post_gate)
    return [gradient(x) if need and x is not None else u.new_empty(0) for x, need in zip(inputs, needs, strict=True)]


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.left, ctx.right, ctx.silu, ctx.impl = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy):  # type: ignore[no-untyped-def]
    tensors, needs = ctx.saved_tensors, list(ctx.needs_input_grad[:5])
    options = {"left": ctx.left, "right": ctx.right, "silu": ctx.silu}
    if torch.is_grad_enabled():
        grads = _differentiable_gradients(dy, tensors, options, needs)
    else:
        grads = gated_short_conv_backward_op(dy, *tensors, **options, impl=ctx.impl, needs=needs)
    return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), None, None, None, None, None


def _differentiable_gradients(
    dy: Tensor, tensors: Any, options: dict[str, Any], needs: list[bool]
) -> list[Tensor | None]:
    wanted = [x for x, need in zip(tensors, needs, strict=False) if need]
    with torch.autocast(dy.device.type, enabled=False):
        y = composite(direct.convolve, *tensors, **options)
        found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return [next(found) if need else None for need in needs]


gated_short_conv_op.register_autograd(_backward, setup_context=_setup_context)
