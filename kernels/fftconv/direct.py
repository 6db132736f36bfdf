"""A few taps, one by one: oneDNN's depthwise convolution on the frames of `overlap.py`, in place of transforms.

It works on 16 channels at a time, so frames of a row count as channels, and rows of the batch too where there are few.

Shapes: B batch, D channels, J frames of N samples for each row, P taps (the last lag first), S = N - P + 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shortconv.direct import PART

# With so many taps at most, on rows of so many samples at most, it is faster than transforms. Two threads with AVX-512,
# 2M samples, forward: 1.3 to 2.4 times with 4 to 24 taps, 1.1 to 1.4 with 64. Small inputs are left to `blocked.py`.
LIMITS = ((24, 2**17), (64, 2**13))
MOST_TAPS = max(taps for taps, _ in LIMITS)
LEAST_SAMPLES = 2**15
# The gradient of the taps: backward passes 1.3 to 2.3 times as fast with 4 and 16 taps, as fast with 48.
GRADIENT_TAPS = 32
FRAME = PART  # samples
_CHANNELS = 16


def suits(x: Tensor, taps: int, dtype: torch.dtype) -> bool:
    """Whether x (B, D, L) is convolved this way, with so many taps on both sides together and arithmetic in `dtype`."""
    return (
        x.device.type == "cpu"
        and dtype == torch.float32
        and 2 * taps <= x.shape[-1]
        and x.numel() >= LEAST_SAMPLES
        and any(taps <= most and x.shape[-1] <= longest for most, longest in LIMITS)
        and torch.backends.mkldnn.is_available()
    )


def taps_of(k: Tensor, k_reverse: Tensor | None, skip: Tensor | None, channels: slice) -> Tensor:
    """Return the taps of some channels, (D, P) float32, the last lag first."""
    taps = k[channels].flip(1).float()
    if skip is not None:
        taps[:, -1] += skip[channels]
    return taps if k_reverse is None else torch.cat([taps, k_reverse[channels].float()], 1)


def filtered(frames: Tensor, taps: Tensor) -> Tensor:
    """Convolve frames (B, D, J, N) with taps (D, P): (B, D, J, S)."""
    B, D, J, _ = frames.shape
    few = D * J < _CHANNELS
    rows = 1 if few else B
    kernels = taps[None, :, None].expand(B // rows, D, J, -1).reshape(-1, 1, taps.shape[1])
    with torch.autocast("cpu", enabled=False):  # a backward pass inside its block would lose digits
        y = F.conv1d(frames.reshape(rows, len(kernels), -1), kernels, groups=len(kernels))
    return y.view(B, D, J, -1)
