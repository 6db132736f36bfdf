"""Short causal depthwise convolution: a handful of taps per channel, with a streaming form.

`short_conv` works on a sequence, `short_conv_step` on one sample with the last inputs as state.
Imports torch only. Long kernels (FFT) live in `longconv.kernels.fftconv`.
"""

from .direct import short_conv, short_conv_step

__all__ = ["short_conv", "short_conv_step"]
