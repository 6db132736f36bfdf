"""Arguments for the steps of the recurrence, shared by their tests."""

import pytest
import torch

from longconv.kernels import gpu
from longconv.kernels.recurrence import mode_layout

IMPLS = ["torch", "triton"] if gpu.interpreting() else ["torch"]
impls = pytest.mark.parametrize("impl", IMPLS)
HYENA = ("u_t", "short_state", "short_weight", "short_bias", "poles", "residues", "passthrough", "skip", "state")


def modes(D, N, dtype=torch.complex128):
    poles = torch.polar(0.3 + 0.69 * torch.rand(D, N).double(), 6.3 * torch.rand(D, N).double())
    residues = torch.randn(D, N, dtype=torch.complex128)
    return poles.to(dtype), residues.to(dtype), torch.randn(D, dtype=dtype.to_real())


def make(B, D, N, K, dtype=torch.float32, state=torch.complex128, arithmetic=torch.complex128):
    """Arguments of `hyena_step_` by name; those of `modal_step_` are among them."""
    poles, residues, passthrough = modes(D, N, arithmetic)
    wide = torch.promote_types(dtype, torch.float32)
    return {
        "u_t": torch.randn(B, 3 * D).to(dtype),
        "short_state": torch.randn(B, 3 * D, K - 1).to(dtype),
        "short_weight": torch.randn(3 * D, K).to(wide) / K**0.5,
        "short_bias": torch.randn(3 * D).to(wide),
        "poles": poles,
        "residues": residues,
        "passthrough": passthrough,
        "skip": torch.randn(D).to(wide),
        "state": torch.randn(B, D, N, dtype=state),
    }


def ragged(x, keep):
    """The same with modes in a layout, given which are used (D, N); residues of the others become 0."""
    layout = mode_layout(keep)
    x = {**x, "residues": torch.where(keep, x["residues"], 0)}
    packed = {name: layout.pack(x[name]) for name in ("poles", "residues", "state")}
    return x, {**x, **packed, "layout": layout}


def lengths(D, N, low=1):
    """Which modes are used: those of channel d are a random choice of a random number of them."""
    counts = torch.randint(low, N + 1, (D,))
    return torch.rand(D, N).argsort(-1) < counts[:, None]
