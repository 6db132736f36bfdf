"""A bank of filters while it is being fitted: the taps, and the best poles found so far.

A method is a function that offers poles to a bank. What all have in common is here: how residues are found, what is
better, what is stable, and how the rows of a bank are worked through in parallel.

Shapes: D filters, L taps, M = L - 1 of them after lag 0, N modes. A mode is a conjugate pair of poles, of which the one
with positive imaginary part is kept (2 real states), or a real pole (1 real state).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from longconv.filters.modal import ModalFilter, round_poles

from .hankel_svd import Section, hankel_sections
from .report import FitReport, numerical_rank, ratio
from .residues import fit_residues

T = TypeVar("T")

# A pole this close to the real axis, relative to its modulus, is real.
_REAL = 1e-13


class Bank:
    """The taps of D filters, and for each the best poles so far.

    Args:
        k: (D, L) real taps.
        max_order: the most real states that will be asked for.
        dtype: of the filter's parameters; the poles are kept stable, and the residues fitted, at its precision.
        thorough: compute the Hankel singular vectors to convergence.

    Attributes:
        k, g: the taps, and those after lag 0 in float64 (D, M).
        norm: (D,) of all taps.
        section: leading singular values and what ERA needs of the vectors (`hankel_sections`).
        rank: (D,) numerical rank, which no order exceeds.
        eps: rounding of `dtype`.
        limit: (D,) the most states that each filter will be given.
        poles, residues, used: (D, N) complex128 and bool.
        error: (D,) relative L2 error with them.
    """

    def __init__(self, k: Tensor, max_order: int, dtype: torch.dtype, *, thorough: bool) -> None:
        self.k, self.dtype, self.eps = k, dtype, torch.finfo(dtype).eps
        self.g = k[:, 1:].double()
        self.norm = torch.linalg.vector_norm(k.double(), dim=-1)
        self.section: Section = hankel_sections(k, max_order + 1, thorough=thorough)
        self.rank = numerical_rank(k, self.section.sigma)
        self.limit = self.rank.clamp(max=max_order)
        self.poles = torch.zeros(len(k), 0, dtype=torch.complex128, device=k.device)
        self.residues = torch.zeros_like(self.poles)
        self.used = torch.zeros(len(k), 0, dtype=torch.bool, device=k.device)
        # Without states the error is everything after lag 0.
        self.error = ratio(torch.linalg.vector_norm(self.g, dim=-1), self.norm)

    @property
    def every(self) -> Tensor:
        """The indices of all filters."""
        return torch.arange(len(self.k), device=self.k.device)

    @property
    def order(self) -> Tensor:
        """(D,) real states of the best poles."""
        return count_states(self.poles, self.used)

    @property
    def taps_noise(self) -> Tensor:
        """(D,) relative error of the taps themselves, from their dtype."""
        return torch.full_like(self.norm, torch.finfo(self.k.dtype).eps)

    def stable(self, poles: Tensor) -> Tensor:
        """The poles as parameters of `dtype` give them, moved radially onto the circle of `ModalFilter` if not inside.

        Of a conjugate pair the one with positive imaginary part; real poles exactly so.
        """
        real = poles.imag.abs() <= _REAL * poles.abs()
        poles = torch.where(poles.imag < 0, poles.conj(), poles)
        poles = round_poles(poles, self.dtype)
        return torch.where(real, poles.real + 0j, poles)

    def offer(self, rows: Tensor, poles: Tensor, used: Tensor, *, tol: float | None = None) -> Tensor:
        """Take the poles (len(rows), N) for those `rows` of the bank where they fit better than what it has.

        With `tol`, where they fit to within it and what the bank has does not, or has more states. Returns the errors
        (len(rows),) of the poles offered.
        """
        poles = self.stable(poles)
        residues, residual = fit_residues(poles, used, self.g[rows], self.eps)
        error = ratio(residual, self.norm[rows])
        better = error < self.error[rows]
        if tol is not None:
            fewer = count_states(poles, used) < self.order[rows]
            better = torch.where(error <= tol, (self.error[rows] > tol) | fewer, better & (self.error[rows] > tol))
        chosen = rows[better]
        width = max(poles.shape[1], self.poles.shape[1])
        for name, new in (("poles", poles), ("residues", residues), ("used", used)):
            values = widen(getattr(self, name), width)
            values[chosen] = widen(new[better], width)
            setattr(self, name, values)
        self.error[chosen] = error[better]
        return error

    def finish(self) -> tuple[Tensor, Tensor, FitReport]:
        """The modes, poles and residues (D, N), slowest first, and the report on the filter they make."""
        index = torch.where(self.used, self.poles.abs(), -1.0).argsort(dim=-1, descending=True, stable=True)
        index = index[:, : int(self.used.sum(-1).max()) if len(index) else 0]
        used = self.used.gather(-1, index)
        poles = torch.where(used, self.poles.gather(-1, index), 0.0)
        residues = torch.where(used, self.residues.gather(-1, index), 0.0)
        modal = ModalFilter.from_modes(poles, residues, self.k[:, 0], dtype=self.dtype)
        return poles, residues, FitReport.of(modal, self.order, used.sum(-1), self.k, self.section.sigma, self.rank)


def widen(x: Tensor, width: int) -> Tensor:
    """Add columns of zeros to (D, N), up to `width`."""
    return torch.nn.functional.pad(x, (0, width - x.shape[1]))


def compact(poles: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Move the modes that are used to the front of each row of (D, N), and drop columns that are left to nobody."""
    index = used.long().argsort(dim=-1, descending=True, stable=True)
    index = index[:, : int(used.sum(-1).max()) if len(used) else 0]
    return poles.gather(-1, index), used.gather(-1, index)


def count_states(poles: Tensor, used: Tensor) -> Tensor:
    """Real states (D,) of modes (D, N): 2 for a conjugate pair, 1 for a real pole."""
    return torch.where(used, 1 + (poles.imag != 0).long(), 0).sum(-1)


def from_eigenvalues(values: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Poles and used (D, N) of eigenvalues (D, d) of real matrices, where `present`; conjugate pairs are neighbours."""
    used = present & (values.imag >= 0)
    index = torch.where(used, values.abs(), -1.0).argsort(dim=-1, descending=True, stable=True)
    index = index[:, : int(used.sum(-1).max()) if len(used) else 0]
    used = used.gather(-1, index)
    return torch.where(used, values.gather(-1, index), 0.0), used


def map_parallel(function: Callable[[Tensor], T], pieces: Sequence[Tensor]) -> list[T]:
    """Map over the pieces with one thread each: the matrices are too small to be worth sharing among threads."""

    def call(piece: Tensor) -> T:
        with torch.no_grad():  # grad mode is per thread
            return function(piece)

    if pieces[0].device.type != "cpu":
        return [call(piece) for piece in pieces]

    def prepare() -> None:
        torch.set_num_threads(1)
        # Exponentials that have died out end in denormal numbers, which take several times as long. This, too, is set
        # per thread; so a single piece has a thread of its own as well.
        torch.set_flush_denormal(True)

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=prepare) as pool:
            return list(pool.map(call, pieces))
    finally:
        torch.set_num_threads(threads)  # part of the setting is shared by the threads of the process


def pieces_of(k: Tensor) -> tuple[Tensor, ...]:
    """Split a bank (D, L) for `map_parallel`."""
    # Sizes depend on D alone, so that the result does not depend on the number of threads. Small ones are nothing but
    # calls, of which threads make only one at a time: 864 filters in 12 take half as long again as in 4.
    return k.split(max(8, min(216, -(-len(k) // 4))))
