"""The exponential window of Hyena's filters (Poli et al. 2023, section 3.3), which other filters can use too."""

import math

import torch
from torch import Tensor


def decay_rates(channels: int, fast_decay_pct: float, slow_decay_pct: float, target: float) -> Tensor:
    """Rates delta (channels,), float64, from the slow to the fast one in equal steps.

    A window `exp(-|delta| x)`, x from 0 at lag 0 to 1 at the last, has decayed to `target` at x = `slow_decay_pct` in
    the first channel and at x = `fast_decay_pct` in the last. Rates are negative, as in the authors' code.
    """
    slow, fast = math.log(target) / slow_decay_pct, math.log(target) / fast_decay_pct
    return torch.linspace(slow, fast, channels, dtype=torch.float64, device="cpu")


def exponential_window(deltas: Tensor, L: int, max_length: int, shift: float = 0.0) -> Tensor:
    """`exp(-t/(M-1) |delta|) + shift` for t = 0 .. L-1 and M = `max_length`: (channels, L) in deltas' dtype."""
    t = torch.arange(L, dtype=deltas.dtype, device=deltas.device) / max(max_length - 1, 1)
    return torch.exp(-t * deltas.abs()[:, None]) + shift
