"""`longconv::short_conv` as a PyTorch operator: fake kernels, autograd by recomputation, vmap, autocast.

The convolution and its weight gradient are one another's derivatives, so registering these two gives derivatives of
every order. Only inputs are saved for the backward pass.
"""

import torch
from torch import Tensor

from . import direct


@torch.library.custom_op("longconv::short_conv", mutates_args=())
def short_conv_op(u: Tensor, weight: Tensor, bias: Tensor | None, left: int, right: int, silu: bool) -> Tensor:
    """Depthwise convolution with `left` and `right` zeros around u; see :func:`direct.convolve`."""
    return direct.convolve(u, weight, bias, left, right, silu)


@torch.library.custom_op("longconv::short_conv_weight_grad", mutates_args=())
def weight_grad_op(dy: Tensor, u: Tensor, left: int, right: int) -> Tensor:
    """Gradient of the taps, (D, K), at least float32; see :func:`direct.weight_gradient`."""
    return direct.weight_gradient(dy, u, left, right)


@short_conv_op.register_fake
def _(u, weight, bias, left, right, silu):  # type: ignore[no-untyped-def]
    B, D, L = u.shape
    return torch.empty((B, D, L + left + right - weight.shape[1] + 1), dtype=u.dtype, device=u.device)


@weight_grad_op.register_fake
def _(dy, u, left, right):  # type: ignore[no-untyped-def]
    K = u.shape[2] + left + right - dy.shape[2] + 1
    return torch.empty((u.shape[1], K), dtype=direct.compute_dtype(dy, u), device=u.device)


def _setup_conv(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    u, weight, bias, ctx.left, ctx.right, ctx.silu = inputs
    ctx.save_for_backward(u, weight, bias)


def _conv_backward(ctx, dy):  # type: ignore[no-untyped-def]
    u, weight, bias = ctx.saved_tensors
    left, right, before = ctx.left, ctx.right, weight.shape[1] - 1
    dtype = direct.compute_dtype(u, weight)
    if ctx.silu:
        y = short_conv_op(u.to(dtype), weight, bias, left, right, False)
        dy = _silu_backward(dy.to(dtype), y)
    du = dweight = dbias = None
    if ctx.needs_input_grad[0]:
        du = short_conv_op(dy, weight.flip(-1), None, before - left, before - right, False).to(u.dtype)
    if ctx.needs_input_grad[1]:
        dweight = weight_grad_op(dy, u.to(dtype), left, right).to(weight.dtype)
    if ctx.needs_input_grad[2]:
        dbias = dy.sum((0, 2), dtype=dtype).to(bias.dtype)
    return du, dweight, dbias, None, None, None


def _silu_backward(dy: Tensor, y: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(dy, y)  # one pass, but it has no derivative
    sigmoid = y.sigmoid()
    return dy * sigmoid * (1 + y * (1 - sigmoid))


def _setup_weight_grad(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    dy, u, ctx.left, ctx.right = inputs
    ctx.save_for_backward(dy, u)


def _weight_grad_backward(ctx, g):  # type: ignore[no-untyped-def]
    dy, u = ctx.saved_tensors
    left, right, before = ctx.left, ctx.right, g.shape[1] - 1
    d_dy = du = None
    if ctx.needs_input_grad[0]:
        d_dy = short_conv_op(u, g, None, left, right, False).to(dy.dtype)
    if ctx.needs_input_grad[1]:
        du = short_conv_op(dy, g.flip(-1), None, before - left, before - right, False).to(u.dtype)
    return d_dy, du, None, None


short_conv_op.register_autograd(_conv_backward, setup_context=_setup_conv)
weight_grad_op.register_autograd(_weight_grad_backward, setup_context=_setup_weight_grad)


def _as_channels(x: Tensor, dim: int | None, size: int, channels: int) -> Tensor:
    """Merge the mapped dimension of x, expanded to `size` if it has none, into its dimension of channels."""
    x = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.movedim(0, channels).flatten(channels, channels + 1)


@short_conv_op.register_vmap
def _(info, in_dims, u, weight, bias, left, right, silu):  # type: ignore[no-untyped-def]
    V = info.batch_size
    if in_dims[1] is None and in_dims[2] is None:
        rows = u.movedim(in_dims[0], 0).flatten(0, 1)
        y = short_conv_op(rows, weight, bias, left, right, silu)
        return y.reshape(V, -1, *y.shape[1:]) if y.numel() else y.new_empty(V, y.shape[0] // V, *y.shape[1:]), 0
    bias = None if bias is None else _as_channels(bias, in_dims[2], V, 0)
    u, weight = _as_channels(u, in_dims[0], V, 1), _as_channels(weight, in_dims[1], V, 0)
    return short_conv_op(u, weight, bias, left, right, silu).unflatten(1, (V, -1)), 1


@weight_grad_op.register_vmap
def _(info, in_dims, dy, u, left, right):  # type: ignore[no-untyped-def]
    V = info.batch_size
    dy, u = _as_channels(dy, in_dims[0], V, 1), _as_channels(u, in_dims[1], V, 1)
    return weight_grad_op(dy, u, left, right).unflatten(0, (V, -1)), 0


def _register_autocast(device_type: str, key: str) -> None:
    """Under autocast u takes its dtype; taps and bias stay as they are."""

    def kernel(u, weight, bias, left, right, silu):  # type: ignore[no-untyped-def]
        u = lower(u)
        with torch.autocast(device_type, enabled=False):
            return short_conv_op(u, weight, bias, left, right, silu)

    torch.library.impl("longconv::short_conv", key, kernel)


def lower(u: Tensor) -> Tensor:
    """Return u in the dtype of the autocast that is on; float64 stays."""
    return u if u.dtype == torch.float64 else u.to(torch.get_autocast_dtype(u.device.type))


_register_autocast("cpu", "AutocastCPU")
_register_autocast("cuda", "AutocastCUDA")
