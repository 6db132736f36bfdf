"""Whether a step runs in Triton."""

import torch
from torch import Tensor

from ..gpu import interpreting, triton_unavailable

IMPLEMENTATIONS = ("auto", "torch", "triton")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Past inputs are read one by one.
MAX_TAPS = 128


def takes_triton(impl: str, u_t: Tensor, state: Tensor, *around: Tensor) -> bool:
    """Whether Triton takes a step; `around` are further tensors, of three dimensions the window of inputs (B, D, K-1).

    Raises:
        ValueError: an unknown `impl`, or "triton" where it is not possible, with the reason.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    if impl == "torch" or (impl == "auto" and (u_t.device.type != "cuda" or interpreting())):
        return False
    reason = unsuitable(u_t, state, *around)
    if reason is not None and impl == "triton":
        raise ValueError(f"impl='triton' is not possible here: {reason}")
    return reason is None


def unsuitable(u_t: Tensor, state: Tensor, *around: Tensor) -> str | None:
    """Say why Triton cannot take a step; None if it can."""
    if reason := triton_unavailable(u_t.device):
        return reason
    for x in (u_t, *around):
        if x.dtype not in DTYPES:
            return f"it takes float32, float16 and bfloat16, not {x.dtype}"
    for window in (x for x in around if x.dim() == 3):
        if window.shape[-1] >= MAX_TAPS:
            return f"it takes up to {MAX_TAPS} taps, not {window.shape[-1] + 1}"
    if len(state) and not state[0].is_contiguous():
        return "it takes a state whose rows are contiguous"
    return None
