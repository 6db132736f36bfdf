"""Filters that are sums of damped oscillations, whatever their parameters: the recurrence they share.

h_0 is the pass-through and h_t = Re sum_n R_n lambda_n^(t-1) for t >= 1, as in `longconv.kernels.recurrence`. A
subclass says what the modes are (`prepare_step`) and inherits the kernel and all that streaming needs.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longconv.kernels.recurrence import (
    ModeLayout,
    modal_kernel,
    modal_scan,
    modal_state,
    modal_step,
    modal_step_,
    mode_layout,
)

from .base import Filter

STATE_DTYPES = (torch.complex64, torch.complex128)


class Modes(NamedTuple):
    """What one step of the recurrence needs: poles (D, N) complex, residues (D, N) complex, passthrough (D,) real."""

    poles: Tensor
    residues: Tensor
    passthrough: Tensor


class PackedModes(NamedTuple):
    """The same without padding: poles (P,) and residues (P,) in the order of `layout`, passthrough (D,)."""

    poles: Tensor
    residues: Tensor
    passthrough: Tensor
    layout: ModeLayout


class RecurrentFilter(Filter):
    """A filter of D channels with N complex modes each, which runs as a convolution and as a recurrence.

    A subclass sets `channels` and `order` (N), and defines `prepare_step`. Its modes are complex128, and so is the
    state, whatever the parameters: a pole rounded to complex64 is off by 3e-8 in every step, which a mode that lasts
    for thousands of steps adds up to more than 1e-5; and where residues of 100 cancel to taps of 1, as in some fits,
    complex64 has two digits less (`longconv.kernels.recurrence.step` has the measurements).

    `state_dtype = torch.complex64` halves the memory of new states; poles and arithmetic stay complex128, and a step
    rounds once. Over 65,536 steps that is within 1e-5 of the convolution where residues do not cancel, and not where
    they do. `set_state_dtype` sets it for all filters of a model.

    Two shapes of state, which say themselves which they are. (B, D, N) has every mode of the table. Without gradients,
    a filter of which more than 10% of the modes are padding (residue 0) leaves those out: (B, P), in the order of a
    `ModeLayout`. All methods take both, and with `modes=None` find out what goes with the state.
    """

    order: int
    state_dtype: torch.dtype = torch.complex128

    def prepare_step(self) -> Modes:
        """Return the modes of the table, padding included."""
        raise NotImplementedError

    def prepare_stream(self) -> Modes | PackedModes:
        """Return the modes that a stream needs: compute them once, and give them to all methods for every token.

        They are packed if that pays, which depends on which residues are 0 and so waits for a GPU. While gradients are
        enabled they never are: a residue that is 0 may be about to change.
        """
        modes = self.prepare_step()
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or modes.poles.is_meta:
            return modes
        # Physically conjugate, which is what the output of a step needs.
        readout = modes.residues.conj().resolve_conj().conj()
        layout = mode_layout(modes.residues != 0)
        if layout is None:
            return Modes(modes.poles, readout, modes.passthrough)
        return _pack(modes, layout)

    @property
    def state_size(self) -> int:
        """Real state variables of one channel: two for each complex mode, padding and real poles included."""
        return 2 * self.order

    @torch.no_grad()
    def stored_state_size(self) -> int:
        """Real numbers that a stream keeps for one sequence, all channels together: two for each mode in its state."""
        return 2 * self.prepare_stream().poles.numel()

    def forward(self, length: int) -> Tensor:
        """Return the kernel h_0 .. h_{length-1}: (D, length), float32 (float64 for float64 parameters).

        Raises:
            ValueError: `length` is below 1.
        """
        return modal_kernel(*self.prepare_step(), length).to(self._dtype)

    def init_state(
        self, batch: int, *, dtype: torch.dtype | None = None, modes: Modes | PackedModes | None = None
    ) -> Tensor:
        """Return the zero state, (batch, D, N) or (batch, P), on the filter's device.

        Args:
            batch: number of sequences.
            dtype: complex64 or complex128; default `state_dtype`.
            modes: from `prepare_stream`.

        Raises:
            ValueError: another dtype.
        """
        dtype = check_state_dtype(self.state_dtype if dtype is None else dtype)
        poles = (modes or self.prepare_stream()).poles
        return torch.zeros(batch, *poles.shape, dtype=dtype, device=poles.device)

    def step(self, u_t: Tensor, state: Tensor, modes: Modes | PackedModes | None = None) -> tuple[Tensor, Tensor]:
        """Advance by one input: u_t (B, D) and a state -> y_t (B, D), new state of the same shape and dtype."""
        modes = self._modes_of(state, modes)
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            state = state.clone()
            return self.step_(u_t, state, modes), state
        if isinstance(modes, Modes):
            return modal_step(u_t, *modes, state)
        layout = modes.layout
        table = layout.unpack(modes.poles), layout.unpack(modes.residues), modes.passthrough
        y, after = modal_step(u_t, *table, layout.unpack(state))
        return y, layout.pack(after)

    def step_(self, u_t: Tensor, state: Tensor, modes: Modes | PackedModes | None = None) -> Tensor:
        """Advance by one input and write the new state over the old one: u_t (B, D) -> y_t (B, D). No gradients."""
        with torch.no_grad():
            modes = self._modes_of(state, modes)
            return modal_step_(u_t, *modes[:3], state, modes.layout if isinstance(modes, PackedModes) else None)

    def scan(
        self, u: Tensor, state: Tensor | None = None, modes: Modes | PackedModes | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run over u (B, D, L) from `state` (None: zeros): y (B, D, L) and the final state."""
        modes, state = self._start(u, state, modes)
        if isinstance(modes, Modes):
            y, after = modal_scan(u, *modes, state)
            return y, after.to(state.dtype)
        outputs, states = [], []
        for which, poles, residues, x in _groups(modes, state):
            y, x = modal_scan(u[:, which], poles, residues, modes.passthrough[which], x)
            outputs.append(y)
            states.append(x.flatten(1))
        return torch.cat(outputs, 1)[:, modes.layout.place], torch.cat(states, 1).to(state.dtype)

    def final_state(self, u: Tensor, state: Tensor | None = None, modes: Modes | PackedModes | None = None) -> Tensor:
        """Return only the state after u (B, D, L): the prefill of a layer that convolves by FFT."""
        modes, state = self._start(u, state, modes)
        if isinstance(modes, Modes):
            return modal_state(u, modes.poles, state).to(state.dtype)
        states = [modal_state(u[:, which], poles, x).flatten(1) for which, poles, _, x in _groups(modes, state)]
        return torch.cat(states, 1).to(state.dtype)

    def _start(
        self, u: Tensor, state: Tensor | None, modes: Modes | PackedModes | None
    ) -> tuple[Modes | PackedModes, Tensor]:
        """The modes and the state to begin with."""
        if state is None:
            modes = modes or self.prepare_stream()
            return modes, self.init_state(u.shape[0], modes=modes)
        return self._modes_of(state, modes), state

    def _modes_of(self, state: Tensor, modes: Modes | PackedModes | None) -> Modes | PackedModes:
        """The modes for a state of this shape."""
        if modes is None:
            table = self.prepare_step()
            if state.dim() != 2:
                return table
            layout = mode_layout(table.residues != 0)
            modes = table if layout is None else _pack(table, layout)
        if state.shape[1:] != modes.poles.shape:
            raise ValueError(
                f"state must be (B, {', '.join(map(str, modes.poles.shape))}) for these modes, got "
                f"{tuple(state.shape)}: modes and states come from the same prepare_stream"
            )
        return modes

    @property
    def _parameter(self) -> nn.Parameter:
        return next(self.parameters())

    @property
    def _dtype(self) -> torch.dtype:
        # A model cast to bfloat16 must not run its recurrence in bfloat16.
        return torch.float64 if self._parameter.dtype == torch.float64 else torch.float32


def _pack(modes: Modes, layout: ModeLayout) -> PackedModes:
    residues = layout.pack(modes.residues.conj().resolve_conj()).conj()
    return PackedModes(layout.pack(modes.poles), residues, modes.passthrough, layout)


def _groups(modes: PackedModes, state: Tensor) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For each group its channels, and their poles and residues (n, width) and state (B, n, width)."""
    split = modes.layout.split
    parts = zip(split(modes.poles), split(modes.residues), split(state), strict=True)
    return [(which, poles, residues, x) for (which, poles), (_, residues), (_, x) in parts]


def set_state_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    """Choose the dtype of new states of all recurrences in a module: see `RecurrentFilter`. It is not saved.

    Args:
        module: a model, a layer or a filter.
        dtype: complex128, as exact as the convolution; or complex64, half the memory.

    Raises:
        ValueError: another dtype.
    """
    check_state_dtype(dtype)
    for part in module.modules():
        if isinstance(part, RecurrentFilter):
            part.state_dtype = dtype


def check_state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype, or raise ValueError if a state cannot have it."""
    if dtype not in STATE_DTYPES:
        raise ValueError(f"dtype of a state must be complex64 or complex128, got {dtype}")
    return dtype


def init_log_dt(log_dt: Tensor, dt_min: float, dt_max: float) -> None:
    """Fill in place with logarithms of time scales, uniform between those of dt_min and dt_max."""
    nn.init.uniform_(log_dt, math.log(dt_min), math.log(dt_max))


def check_dt(dt_min: float, dt_max: float) -> None:
    """Raise ValueError unless 0 < dt_min <= dt_max."""
    if not 0 < dt_min <= dt_max:
        raise ValueError(f"expected 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
