"""`longconv::multires_conv` as a PyTorch operator: fake kernels, autograd by recomputation, autocast.

Only inputs are saved for the backward pass, which computes the levels of the tree again, a few rows at a time. Second
derivatives go through the tree as a composition of dilated convolutions.
"""

import torch
from torch import Tensor

from ..dilated import direct
from ..dilated.op import dilated_conv_op, lower
from . import tree


@torch.library.custom_op("longconv::multires_conv", mutates_args=())
def multires_conv_op(x: Tensor, h0: Tensor, h1: Tensor, w: Tensor, counts: list[int]) -> Tensor:
    """Multiresolution convolution with `counts` coefficients for each level; see :func:`tree.forward`."""
    return tree.forward(x, h0, h1, w, counts)


@torch.library.custom_op("longconv::multires_conv_backward", mutates_args=())
def multires_conv_backward_op(
    dy: Tensor, x: Tensor, h0: Tensor, h1: Tensor, w: Tensor, counts: list[int], needs: list[bool]
) -> list[Tensor]:
    """Gradients for (x, h0, h1, w); see :func:`tree.backward`."""
    return tree.backward(dy, x, h0, h1, w, counts, needs)


@multires_conv_op.register_fake
def _(x, h0, h1, w, counts):  # type: ignore[no-untyped-def]
    return direct.empty_output(x, x.shape[2])


@multires_conv_backward_op.register_fake
def _(dy, x, h0, h1, w, counts, needs):  # type: ignore[no-untyped-def]
    dtype = direct.compute_dtype(x, h0)
    dx = direct.empty_output(x, x.shape[2]) if needs[0] else x.new_empty(0)
    filters = [h.new_empty(h.shape, dtype=dtype) if needs[1] else x.new_empty(0) for h in (h0, h1, w)]
    return [dx, *filters]


def compose(x: Tensor, h0: Tensor, h1: Tensor, w: Tensor, counts: list[int], cu_seqlens: Tensor | None) -> Tensor:
    """Evaluate the tree as a composition of dilated convolutions, which autograd differentiates."""
    dtype = direct.compute_dtype(x, h0)
    index = None

    def conv(_: int, a: Tensor, taps: Tensor, dilation: int) -> Tensor:
        reach = (taps.shape[1] - 1) * dilation
        if torch._C._are_functorch_transforms_active():  # they know no custom operators
            return direct.composite(a, taps, None, dilation, reach, 0, index)
        return dilated_conv_op(a, taps, None, dilation, reach, 0, cu_seqlens, "torch")

    if cu_seqlens is not None and torch._C._are_functorch_transforms_active():
        index = direct.sequence_index(cu_seqlens, x.shape[-1])
    filters = h0.to(dtype), h1.to(dtype), w.to(dtype)
    return tree.composite(x.to(dtype), *filters, counts, conv).to(x.dtype)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, h0, h1, w, ctx.counts = inputs
    ctx.save_for_backward(x, h0, h1, w)


def _backward(ctx, dy):  # type: ignore[no-untyped-def]
    inputs, wants = ctx.saved_tensors, ctx.needs_input_grad[:4]
    if torch.is_grad_enabled():  # create_graph=True
        wanted = [t for t, want in zip(inputs, wants, strict=True) if want]
        y = compose(*inputs, ctx.counts, None)
        found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
        return *(next(found) if want else None for want in wants), None
    grads = multires_conv_backward_op(dy, *inputs, ctx.counts, [wants[0], any(wants[1:])])
    return *(g.to(t.dtype) if want else None for g, t, want in zip(grads, inputs, wants, strict=True)), None


multires_conv_op.register_autograd(_backward, setup_context=_setup_context)


def _register_autocast(device_type: str, key: str) -> None:
    """Under autocast x takes its dtype; filters and weights stay as they are."""

    def kernel(x, h0, h1, w, counts):  # type: ignore[no-untyped-def]
        x = lower(x)
        with torch.autocast(device_type, enabled=False):
            return multires_conv_op(x, h0, h1, w, counts)

    torch.library.impl("longconv::multires_conv", key, kernel)


_register_autocast("cpu", "AutocastCPU")
_register_autocast("cuda", "AutocastCUDA")
