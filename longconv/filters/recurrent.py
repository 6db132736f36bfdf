"""Filters that are sums of damped oscillations, whatever their parameters: the recurrence they share.

h_0 is the pass-through and h_t = Re sum_n R_n lambda_n^(t-1) for t >= 1, as in `longconv.kernels.recurrence`. A
subclass says what the modes are (`prepare_step`) and inherits the kernel and all that streaming needs.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longconv.kernels.recurrence import modal_kernel, modal_scan, modal_state, modal_step

from .base import Filter


class Modes(NamedTuple):
    """What one step of the recurrence needs: poles (D, N) complex, residues (D, N) complex, passthrough (D,) real."""

    poles: Tensor
    residues: Tensor
    passthrough: Tensor


class RecurrentFilter(Filter):
    """A filter of D channels with N complex modes each, which runs as a convolution and as a recurrence.

    A subclass sets `channels` and `order` (N), and defines `prepare_step`. Its modes are complex128, and so is the
    state, whatever the parameters: a pole rounded to complex64 is off by 3e-8 in every step, which a mode that lasts
    for thousands of steps adds up to more than 1e-5; and where residues of 100 cancel to taps of 1, as in some fits,
    complex64 has two digits less. A step costs up to twice as much for it, 20 to 70 us with 8 to 32 modes of 768
    channels, which is little beside the projections around it.
    """

    order: int

    def prepare_step(self) -> Modes:
        """Return the modes as tensors: compute them once, and give them to `step` for every token."""
        raise NotImplementedError

    @property
    def state_size(self) -> int:
        """Real state variables of one channel: two for each complex mode, padding and real poles included."""
        return 2 * self.order

    def forward(self, length: int) -> Tensor:
        """Return the kernel h_0 .. h_{length-1}: (D, length), float32 (float64 for float64 parameters).

        Raises:
            ValueError: `length` is below 1.
        """
        return modal_kernel(*self.prepare_step(), length).to(self._dtype)

    def init_state(self, batch: int) -> Tensor:
        """Return the zero state (batch, D, N), complex128, on the filter's device."""
        return torch.zeros(batch, self.channels, self.order, dtype=torch.complex128, device=self._parameter.device)

    def step(self, u_t: Tensor, state: Tensor, modes: Modes | None = None) -> tuple[Tensor, Tensor]:
        """Advance by one input: u_t (B, D), state (B, D, N) -> y_t (B, D), new state. `modes` from `prepare_step`."""
        return modal_step(u_t, *(modes or self.prepare_step()), state)

    def scan(self, u: Tensor, state: Tensor | None = None, modes: Modes | None = None) -> tuple[Tensor, Tensor]:
        """Run over u (B, D, L) from `state` (None: zeros): y (B, D, L) and the final state (B, D, N)."""
        return modal_scan(u, *(modes or self.prepare_step()), state)

    def final_state(self, u: Tensor, state: Tensor | None = None, modes: Modes | None = None) -> Tensor:
        """Return only the state (B, D, N) after u (B, D, L): the prefill of a layer that convolves by FFT."""
        return modal_state(u, (modes or self.prepare_step()).poles, state)

    @property
    def _parameter(self) -> nn.Parameter:
        return next(self.parameters())

    @property
    def _dtype(self) -> torch.dtype:
        # A model cast to bfloat16 must not run its recurrence in bfloat16.
        return torch.float64 if self._parameter.dtype == torch.float64 else torch.float32


def init_log_dt(log_dt: Tensor, dt_min: float, dt_max: float) -> None:
    """Fill in place with logarithms of time scales, uniform between those of dt_min and dt_max."""
    nn.init.uniform_(log_dt, math.log(dt_min), math.log(dt_max))


def check_dt(dt_min: float, dt_max: float) -> None:
    """Raise ValueError unless 0 < dt_min <= dt_max."""
    if not 0 < dt_min <= dt_max:
        raise ValueError(f"expected 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
