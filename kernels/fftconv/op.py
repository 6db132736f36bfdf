"""`longconv::fft_conv` as a PyTorch operator: fake kernels for tracing, autograd by recomputation, autocast."""

import torch
from torch import Tensor

from . import blocked


@torch.library.custom_op("longconv::fft_conv", mutates_args=())
def fft_conv_op(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    k_reverse: Tensor | None,
    circular: bool,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    """Blocked convolution; arguments as in `longconv.functional.fft_conv`, which checks them."""
    return blocked.conv_forward(u, k, skip, k_reverse, circular, pre_gate, post_gate)


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
) -> list[Tensor]:
    """Gradients for (u, k, skip, k_reverse, pre_gate, post_gate); an empty tensor where `needs` is False."""
    return blocked.conv_backward(dy, u, k, skip, k_reverse, circular, pre_gate, post_gate, needs)


@fft_conv_op.register_fake
def _(u, k, skip, k_reverse, circular, pre_gate, post_gate):  # type: ignore[no-untyped-def]
    return torch.empty(u.shape, dtype=u.dtype, device=u.device)


@fft_conv_backward_op.register_fake
def _(dy, u, k, skip, k_reverse, circular, pre_gate, post_gate, needs):  # type: ignore[no-untyped-def]
    inputs = (u, k, skip, k_reverse, pre_gate, post_gate)
    return [
        torch.empty(x.shape, dtype=x.dtype, device=x.device) if need and x is not None else u.new_empty(0)
        for x, need in zip(inputs, needs, strict=True)
    ]


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    u, k, skip, k_reverse, circular, pre_gate, post_gate = inputs
    ctx.circular = circular
    ctx.save_for_backward(u, k, skip, k_reverse, pre_gate, post_gate)  # inputs only: the spectra are recomputed


def _backward(ctx, dy):  # type: ignore[no-untyped-def]
    u, k, skip, k_reverse, pre_gate, post_gate = ctx.saved_tensors
    wants = ctx.needs_input_grad
    needs = [wants[0], wants[1], wants[2], wants[3], wants[5], wants[6]]
    grads = fft_conv_backward_op(dy, u, k, skip, k_reverse, ctx.circular, pre_gate, post_gate, needs)
    du, dk, dskip, dk_reverse, dpre, dpost = (g if need else None for g, need in zip(grads, needs, strict=True))
    return du, dk, dskip, dk_reverse, None, dpre, dpost


fft_conv_op.register_autograd(_backward, setup_context=_setup_context)


def _register_autocast(device_type: str, key: str) -> None:
    """Under autocast the activations (u and the gates) take its dtype; filters and skip stay as they are."""

    def lower(x: Tensor | None) -> Tensor | None:
        if x is None or not x.is_floating_point() or x.dtype == torch.float64:
            return x
        return x.to(torch.get_autocast_dtype(device_type))

    def kernel(u, k, skip, k_reverse, circular, pre_gate, post_gate):  # type: ignore[no-untyped-def]
        u, pre_gate, post_gate = lower(u), lower(pre_gate), lower(post_gate)
        with torch.autocast(device_type, enabled=False):
            return fft_conv_op(u, k, skip, k_reverse, circular, pre_gate, post_gate)

    torch.library.impl("longconv::fft_conv", key, kernel)


_register_autocast("cpu", "AutocastCPU")
_register_autocast("cuda", "AutocastCUDA")
