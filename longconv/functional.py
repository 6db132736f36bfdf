"""The public operators, re-exported from `longconv.kernels`. Channels first: (B, D, L)."""

from longconv.kernels.dilated import DelayLines, dilated_conv, dilated_conv_step
from longconv.kernels.fftconv import fft_conv
from longconv.kernels.fftconv.conv2d import fft_conv2d
from longconv.kernels.fftconv.mask import SpectrumMask, choose_mask
from longconv.kernels.fftconv.online import OnlineConv
from longconv.kernels.fftconv.sparse import fft_conv_sparse
from longconv.kernels.fftconv.stream import fft_conv_chunk
from longconv.kernels.multires import multires_conv, multires_kernel, multires_levels, multires_state, multires_step
from longconv.kernels.recurrence import (
    hyena_step_,
    modal_kernel,
    modal_scan,
    modal_state,
    modal_step,
    modal_step_,
    multi_hyena_step_,
)
from longconv.kernels.shortconv import short_conv, short_conv_step

__all__ = [
    "DelayLines",
    "OnlineConv",
    "SpectrumMask",
    "choose_mask",
    "dilated_conv",
    "dilated_conv_step",
    "fft_conv",
    "fft_conv2d",
    "fft_conv_chunk",
    "fft_conv_sparse",
    "hyena_step_",
    "modal_kernel",
    "modal_scan",
    "modal_state",
    "modal_step",
    "modal_step_",
    "multi_hyena_step_",
    "multires_conv",
    "multires_kernel",
    "multires_levels",
    "multires_state",
    "multires_step",
    "short_conv",
    "short_conv_step",
]
