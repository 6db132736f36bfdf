"""The definition of the modal recurrence: one step at a time, in float64 / complex128. For tests only: it is slow."""

import torch
from torch import Tensor


def modal_scan_reference(
    u: Tensor, poles: Tensor, residues: Tensor, passthrough: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run `y_t = Re(sum_n R_n x_t) + h_0 u_t`, `x_{t+1} = lambda x_t + u_t`; shapes as in `modal_scan`. Differentiable.

    Returns y (B, D, L) float64 and the final state (B, D, N) complex128.
    """
    u, poles, residues, passthrough = (
        u.double(),
        poles.to(torch.complex128),
        residues.to(torch.complex128),
        passthrough.double(),
    )
    x = (
        torch.zeros(u.shape[0], *poles.shape, dtype=poles.dtype, device=u.device)
        if state is None
        else state.to(torch.complex128)
    )
    outputs = []
    for u_t in u.unbind(-1):
        outputs.append((residues * x).real.sum(-1) + passthrough * u_t)
        x = poles * x + u_t.unsqueeze(-1)
    return torch.stack(outputs, dim=-1), x


def modal_kernel_reference(poles: Tensor, residues: Tensor, passthrough: Tensor, length: int) -> Tensor:
    """Return the taps h_0 .. h_{length-1}, (D, length) float64: the response of the recurrence to an impulse."""
    impulse = torch.zeros(1, poles.shape[0], length, dtype=torch.float64, device=poles.device)
    impulse[..., 0] = 1.0
    return modal_scan_reference(impulse, poles, residues, passthrough)[0][0]


def hyena_step_reference(
    u_t: Tensor,
    short_state: Tensor,
    short_weight: Tensor,
    short_bias: Tensor,
    poles: Tensor,
    residues: Tensor,
    passthrough: Tensor,
    skip: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One sample of a Hyena layer of order 2 between its projections; shapes as in `hyena_step_`, states not modified.

    Returns y (B, D) float64, the next short_state (B, 3D, K-1) float64 and the next state (B, D, N) complex128.
    """
    z, window = _short_step(u_t, short_state, short_weight, short_bias)
    x_0, x_1, v = z.chunk(3, 1)
    w = x_1 * v
    y, state = modal_scan_reference(w[..., None], poles, residues, passthrough, state)
    return x_0 * (y[..., 0] + skip.double() * w), window, state


def multi_hyena_step_reference(
    u_t: Tensor,
    short_state: Tensor,
    short_weight: Tensor,
    short_bias: Tensor,
    poles: Tensor,
    residues: Tensor,
    passthrough: Tensor,
    skip: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One sample of a MultiHyena layer between its projections; shapes as in `multi_hyena_step_`, states not modified.

    Returns y (B, D) float64, the next short_state (B, 3D, K-1) float64 and the next state (B H H, M, N) complex128.
    """
    z, window = _short_step(u_t, short_state, short_weight, short_bias)
    q, k, v = z.unflatten(1, (3, len(skip), -1)).unbind(1)  # (B, M, H)
    w = torch.einsum("bmd,bme->bdem", k, v).flatten(0, 2)
    y, state = modal_scan_reference(w[..., None], poles, residues, passthrough, state)
    mixed = (y[..., 0] + skip.double() * w).unflatten(0, (len(u_t), q.shape[2], q.shape[2]))
    return torch.einsum("bmd,bdem->bme", q, mixed).flatten(1), window, state


def _short_step(u_t: Tensor, short_state: Tensor, short_weight: Tensor, short_bias: Tensor) -> tuple[Tensor, Tensor]:
    """A sample of the short convolution (B, C) and the next window (B, C, K-1), float64."""
    window = torch.cat([short_state.double(), u_t.double()[..., None]], -1)
    z = short_bias.double() + sum(
        tap * past for tap, past in zip(short_weight.double().unbind(1), window.flip(-1).unbind(-1), strict=True)
    )
    return z, window[..., 1:]
