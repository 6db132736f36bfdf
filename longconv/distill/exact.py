"""Filters that are recurrences already: nothing has to be fitted, whatever the method."""

from typing import Any

import torch
from torch import Tensor, nn

from longconv.filters import Modes
from longconv.filters.rtf import RationalSystem
from longconv.kernels.recurrence import modal_kernel

from .fitting.hankel import hankel_singular_values
from .fitting.report import FitReport, numerical_rank

# A pole this close to the real axis, relative to its modulus, is real: polar coordinates round the angle pi.
_REAL = 1e-12


@torch.no_grad()
def keep(filter: nn.Module, k: Tensor, limit: int) -> FitReport | None:
    """The report on a filter that stays what it is; None if it is no recurrence, or one of more than `limit` states.

    Modes of S4D, EMA and modal filters count 2 real states, or 1 if the pole is real, and 0 without a residue; a
    rational transfer function has as many as its order.

    Args:
        filter: any module with `forward(L)`.
        k: (D, L), its taps.
        limit: most real states that each of its D filters may have.

    Returns:
        A report with errors of 0, and the leading singular values of k, which tell whether fewer states would do.
    """
    system: Any = filter.prepare_step() if hasattr(filter, "prepare_step") else None  # type: ignore[operator]
    if isinstance(system, Modes):
        poles, residues = system.poles, system.residues
        used = (poles != 0) & (residues != 0)
        real = poles.imag.abs() <= _REAL * poles.abs()
        order, modes = torch.where(used, 2 - real.long(), 0).sum(-1), used.sum(-1)
        gross = modal_kernel(poles.abs() + 0j, residues.abs() + 0j, system.passthrough.double().abs(), k.shape[1])
    elif isinstance(system, RationalSystem):
        poles = _roots(system.a)
        order, modes = (
            torch.full_like(system.h_0, system.a.shape[1]).long(),
            torch.full_like(system.h_0, (system.a.shape[1] + 1) // 2).long(),
        )
        gross = k.double()  # its state is no sum of modes that could cancel
    else:
        return None
    if len(order) and int(order.max()) > limit:
        return None
    norm = torch.linalg.vector_norm(k.double(), dim=-1)
    sigma = hankel_singular_values(k, limit + 1)
    zero = torch.zeros_like(norm)
    fields = {
        "order": order,
        "modes": modes,
        "relative_error": zero,
        "error_bound": zero,
        "hankel_error": zero,
        "hankel_bound": zero,
        "radius": nn.functional.pad(poles.abs(), (0, 1)).amax(-1),
        "cancellation": torch.where(norm > 0, torch.linalg.vector_norm(gross, dim=-1) / norm.clamp(min=1e-300), 0.0),
        "numerical_rank": numerical_rank(k, sigma),
        "singular_values": sigma,
    }
    return FitReport(length=k.shape[1], **{name: value.cpu() for name, value in fields.items()})


def _roots(a: Tensor) -> Tensor:
    """The poles (D, N) of 1 / (1 + a_1 z^-1 + ... + a_N z^-N), equal rows computed once."""
    rows, place = a.unique(dim=0, return_inverse=True)
    shift = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)[:-1].expand(len(rows), -1, -1)
    return torch.linalg.eigvals(torch.cat([-rows[:, None], shift], dim=1))[place]
