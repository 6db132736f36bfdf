"""`longconv::dilated_conv` as a PyTorch operator: fake kernels, autograd by recomputation, autocast.

The convolution and its weight gradient are one another's derivatives, so registering these two gives derivatives of
every order. Only inputs are saved for the backward pass. `impl` is "torch" or "triton".
"""

import torch
from torch import Tensor

from . import direct


@torch.library.custom_op("longconv::dilated_conv", mutates_args=())
def dilated_conv_op(
    u: Tensor,
    k: Tensor,
    bias: Tensor | None,
    dilation: int,
    left: int,
    right: int,
    cu_seqlens: Tensor | None,
    impl: str,
) -> Tensor:
    """Dilated convolution with `left` and `right` zeros around u; see :func:`direct.shifted`."""
    index = None if cu_seqlens is None else direct.sequence_index(cu_seqlens, u.shape[-1])
    if impl == "triton":
        from . import triton_dilated

        return triton_dilated.convolve(u, k, bias, dilation, left, right, index)
    return direct.convolve(u, k, bias, dilation, left, right, index)


@torch.library.custom_op("longconv::dilated_conv_weight_grad", mutates_args=())
def weight_grad_op(
    dy: Tensor, u: Tensor, K: int, dilation: int, left: int, right: int, cu_seqlens: Tensor | None, impl: str
) -> Tensor:
    """Gradient of the taps, (D, K), at least float32; see :func:`direct.weight_gradient`."""
    index = None if cu_seqlens is None else direct.sequence_index(cu_seqlens, u.shape[-1])
    if impl == "triton":
        from . import triton_dilated

        return triton_dilated.weight_gradient(dy, u, K, dilation, left, right, index)
    return direct.weight_gradient(dy, u, K, dilation, left, right, index)


@dilated_conv_op.register_fake
def _(u, k, bias, dilation, left, right, cu_seqlens, impl):  # type: ignore[no-untyped-def]
    return direct.empty_output(u, u.shape[2] + left + right - (k.shape[1] - 1) * dilation)


@weight_grad_op.register_fake
def _(dy, u, K, dilation, left, right, cu_seqlens, impl):  # type: ignore[no-untyped-def]
    return torch.empty((u.shape[1], K), dtype=direct.compute_dtype(dy, u), device=u.device)


def _setup_conv(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    u, k, bias, ctx.dilation, ctx.left, ctx.right, cu_seqlens, ctx.impl = inputs
    ctx.save_for_backward(u, k, bias, cu_seqlens)


def _conv_backward(ctx, dy):  # type: ignore[no-untyped-def]
    u, k, bias, cu_seqlens = ctx.saved_tensors
    K, dtype = k.shape[1], direct.compute_dtype(u, k)
    dilation, left, right, reach = ctx.dilation, ctx.left, ctx.right, (K - 1) * ctx.dilation
    du = dk = dbias = None
    if ctx.needs_input_grad[0]:
        du = dilated_conv_op(dy, k.flip(-1), None, dilation, reach - left, reach - right, cu_seqlens, ctx.impl)
    if ctx.needs_input_grad[1]:
        wide = u.to(dtype) if dtype == torch.float64 else u  # otherwise float32 is what it is computed in anyway
        dk = weight_grad_op(dy, wide, K, dilation, left, right, cu_seqlens, ctx.impl).to(k.dtype)
    if ctx.needs_input_grad[2]:
        dbias = dy.sum((0, 2), dtype=dtype).to(bias.dtype)
    return du, dk, dbias, None, None, None, None, None


def _setup_weight_grad(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    dy, u, _, ctx.dilation, ctx.left, ctx.right, cu_seqlens, ctx.impl = inputs
    ctx.save_for_backward(dy, u, cu_seqlens)


def _weight_grad_backward(ctx, g):  # type: ignore[no-untyped-def]
    dy, u, cu_seqlens = ctx.saved_tensors
    dilation, left, right, reach = ctx.dilation, ctx.left, ctx.right, (g.shape[1] - 1) * ctx.dilation
    d_dy = du = None
    if ctx.needs_input_grad[0]:
        d_dy = dilated_conv_op(u, g, None, dilation, left, right, cu_seqlens, ctx.impl).to(dy.dtype)
    if ctx.needs_input_grad[1]:
        du = dilated_conv_op(dy, g.flip(-1), None, dilation, reach - left, reach - right, cu_seqlens, ctx.impl)
        du = du.to(u.dtype)
    return d_dy, du, None, None, None, None, None, None


dilated_conv_op.register_autograd(_conv_backward, setup_context=_setup_conv)
weight_grad_op.register_autograd(_weight_grad_backward, setup_context=_setup_weight_grad)


def lower(u: Tensor) -> Tensor:
    """Return u in the dtype of the autocast that is on; float64 stays."""
    return u if u.dtype == torch.float64 else u.to(torch.get_autocast_dtype(u.device.type))


def _register_autocast(device_type: str, key: str) -> None:
    """Under autocast u takes its dtype; taps and bias stay as they are."""

    def kernel(u, k, bias, dilation, left, right, cu_seqlens, impl):  # type: ignore[no-untyped-def]
        u = lower(u)
        with torch.autocast(device_type, enabled=False):
            return dilated_conv_op(u, k, bias, dilation, left, right, cu_seqlens, impl)

    torch.library.impl("longconv::dilated_conv", key, kernel)


_register_autocast("cpu", "AutocastCPU")
_register_autocast("cuda", "AutocastCUDA")
