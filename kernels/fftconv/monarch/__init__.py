"""`fft_conv` on matrix units, in Triton: DFTs as matrix products, on the chip as far as they fit.

    conv.py       the two functions that `dispatch.py` calls      configs.py   how a convolution is cut, and what for
    fused_run.py, triton_fused.py   rows and frames that fit the chip
    nested_run.py, triton_nested.py rows of a few tiles, which fit it one after the other
    long_run.py, triton_long.py     longer ones, in three kernels
    triton_stages.py   the transform of one tile              tables.py    DFT matrices, twiddles, filters' spectra

`docs/kernels.md` follows one sample through.
"""

import torch
from torch import Tensor

from longconv.kernels.gpu.device import triton_unavailable

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def unavailable(u: Tensor, *others: Tensor | None) -> str | None:
    """Say why these tensors cannot go to the Triton kernels, in words that follow "because"; None if they can."""
    if reason := triton_unavailable(u.device):
        return reason
    if any(x is not None and x.dtype not in DTYPES for x in (u, *others)):
        return "the kernels take float16, bfloat16 and float32 tensors"
    return None
