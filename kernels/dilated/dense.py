"""Dilated convolutions that mix channels: `F.conv1d`, with a faster gradient of the input on a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# From where on the gradient of the input is left to a forward convolution. oneDNN's own takes 2 to 4 times as long with
# 32 channels, 5 to 15 taps and dilations from 8 on (one core, L = 16384), as long at dilations 1 and 2, and 1.0 to 1.6
# times with 3 taps of 128 channels. With one input channel it takes a fifth.
DILATION, CHANNELS = 4, 16
# The forward convolution also goes over the padding, twice the reach of the filter: less than that is no gain.
REACHES = 2.5


def dense_conv(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Convolve x (B, I, W + L) with weight (O, I, K), oldest tap first, to (B, O, L), W = (K-1) dilation.

    It is `F.conv1d(x, weight, bias, dilation=dilation)`, and so are its gradients and their gradients.
    """
    reach = (weight.shape[-1] - 1) * dilation
    gain = dilation >= DILATION and weight.shape[1] >= CHANNELS and x.shape[-1] - reach >= REACHES * reach > 0
    if (
        gain
        and x.device.type == "cpu"
        and x.requires_grad
        and x.dtype == weight.dtype in (torch.float32, torch.float64)
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    ):
        y: Tensor = _DenseConv.apply(x, weight, bias, dilation)
        return y
    return F.conv1d(x, weight, bias, dilation=dilation)


class _DenseConv(torch.autograd.Function):
    """`F.conv1d`, whose gradient of x is the convolution of the padded gradient with the reversed filter."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
        return F.conv1d(x, weight, bias, dilation=dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.dilation = inputs
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None, _: None) -> Any:
        x, weight = ctx.saved_tensors
        y_t = 0 if bias_t is None else bias_t[:, None]
        if x_t is not None:
            y_t = y_t + F.conv1d(x_t, weight, dilation=ctx.dilation)
        if weight_t is not None:
            y_t = y_t + F.conv1d(x, weight_t, dilation=ctx.dilation)
        return y_t

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x, weight), dilation = ctx.saved_tensors, ctx.dilation
        reach = (weight.shape[-1] - 1) * dilation
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            # With the padding left to conv1d it takes 1.1 to 1.8 times as long.
            dx = F.conv1d(F.pad(dy, (reach, reach)), weight.transpose(0, 1).flip(-1), dilation=dilation)
        if ctx.needs_input_grad[1]:
            only_weight = [False, True, False]
            geometry = [1], [0], [dilation], False, [0], 1  # stride, padding, dilation, not transposed, groups
            dweight = torch.ops.aten.convolution_backward(dy, x, weight, None, *geometry, only_weight)[1]
        if ctx.has_bias and ctx.needs_input_grad[2]:
            dbias = dy.sum((0, 2))
        return dx, dweight, dbias, None
