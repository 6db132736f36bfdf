"""Long depthwise convolution by FFT. Imports torch only."""

from .reference import fft_conv_reference


def fft_conv(u, k, *, skip=None, k_reverse=None, circular=False, pre_gate=None, post_gate=None, cu_seqlens=None, impl="auto"):
    return fft_conv_reference(u, k, skip=skip, k_reverse=k_reverse, circular=circular, pre_gate=pre_gate, post_gate=post_gate)
