"""The public operators, re-exported from `longconv.kernels`. Channels first: (B, D, L)."""

from longconv.kernels.fftconv import fft_conv

__all__ = ["fft_conv"]
