"""Hankel-SVD realisation: the best-understood way from a bank of filters to stable modal recurrences.

The taps g_j = k_{j+1} after lag 0 fill a Hankel matrix H_{ij} = g_{i+j}. A recurrence with d real states has
rank H <= d, so the singular values of H say what any order can do, and the shift invariance of the leading left
singular vectors yields the poles (Ho & Kalman 1966; Kung 1978; Juang & Pappa 1985, "ERA"). Residues are then refitted
by linear least squares over all taps. Massaroli et al. 2023 (Laughing Hyena) choose the order from the same values.

Which matrix: H is the section that is as square as L - 1 taps allow, m = (L - 1) // 2 + 1 rows and L - m columns,
each tap on one antidiagonal and nothing invented beyond tap L - 1. The triangular, zero-padded matrix of the same taps
is the Hankel operator of the *truncated* filter: it sees a jump at the end of any filter that has not died out, and
does not return the poles of an exact modal system. (To get it, pad k with L zeros.)

Shapes: D channels, L taps, M = L - 1 taps after lag 0, m rows of H, d real states, n singular values.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from longconv.distill.hankel_svd import BLOCK_ELEMENTS, hankel_svd
from longconv.distill.residues import fit_residues
from longconv.filters.modal import ModalFilter
from longconv.kernels.recurrence import modal_kernel

_FALLBACK_STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16)
_SUSPECT = 32.0  # a fit this many times above what the singular values promise is worth a look at other orders
_DONE = 1e3  # a fit this many roundings from the taps is not


T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class FitReport:
    """How well a bank of D filters was realised. All tensors are float64 or int64, on the CPU.

    Two errors, each with what no recurrence of the same order could beat (Eckart-Young for the section H; Adamyan, Arov
    & Krein 1971 for the infinite operator, whose norm is at least the section's):

    - `relative_error` = ||k - k_hat||_2 / ||k||_2 over all L taps, at least
      `error_bound` = sqrt(sum_{i > d} sigma_i^2) / (sqrt(columns of H) ||k||_2), because ||H(e)||_F^2 counts each
      tap of e at most that many times. Loose by up to that square root.
    - `hankel_error` = ||H(k - k_hat)||_2 / ||H(k)||_2 (lag 0 excluded), at least
      `hankel_bound` = sigma_{d+1} / sigma_1. Above 255 taps the numerator is a randomised estimate, from below,
      typically to a few per cent.

    The bounds use the computed singular values, which never exceed the true ones, less an allowance for rounding.

    Attributes:
        length: L.
        order: (D,) real states used: 2 for each complex mode, 1 for each real one.
        modes: (D,) modes used, without padding.
        relative_error, error_bound, hankel_error, hankel_bound: (D,), see above; 0 for a filter of zeros.
        radius: (D,) largest |lambda|, 0 without modes.
        cancellation: (D,) ||sum_n |R_n lambda_n^t| ||_2 / ||k||_2: how much rounding errors are amplified.
        numerical_rank: (D,) singular values above the noise of the taps' dtype, counted among those computed.
        singular_values: (D, n) leading Hankel singular values.
    """

    length: int
    order: Tensor
    modes: Tensor
    relative_error: Tensor
    error_bound: Tensor
    hankel_error: Tensor
    hankel_bound: Tensor
    radius: Tensor
    cancellation: Tensor
    numerical_rank: Tensor
    singular_values: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python numbers and lists, for JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in fields.items()}

    def __str__(self) -> str:
        names = ("order", "modes", "numerical_rank", "relative_error", "error_bound", "hankel_error", "hankel_bound")
        lines = [f"{len(self.order)} filters of {self.length} taps", f"{'':16}{'min':>10}{'median':>10}{'max':>10}"]
        for name in (*names, "radius", "cancellation"):
            values = getattr(self, name).double()
            if len(values):
                row = (values.min().item(), values.quantile(0.5).item(), values.max().item())
                lines.append(f"{name:16}" + "".join(f"{value:>10.3g}" for value in row))
        if len(self.order):
            worst = int(self.relative_error.argmax())
            lines.append(f"worst filter: {worst}, {self.order[worst]} states, error {self.relative_error[worst]:.3g}")
        return "\n".join(lines)


_PER_FILTER = tuple(field.name for field in dataclasses.fields(FitReport) if field.name != "length")


@torch.no_grad()
def hankel_singular_values(k: Tensor, n: int) -> Tensor:
    """Return the n leading Hankel singular values of each filter, largest first.

    The matrix is the section described in the module docstring; lag 0 is not in it. Values beyond its size are 0.
    Relative to the largest, they are good to about 1e-15 where they fall off; in a flat spectrum the last few of a
    filter of more than 255 taps can be some per cent low.

    Args:
        k: (D, L) real taps, L >= 1.
        n: how many, >= 1.

    Returns:
        (D, n) float64 on k's device.

    Raises:
        ValueError: k is not a finite real (D, L) tensor with L >= 1, or n < 1.
    """
    _check_taps(k)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return torch.cat(_map_parallel(lambda rows: hankel_svd(rows[:, 1:].double(), n)[0], _pieces(k)))


@torch.no_grad()
def hankel_realisation(
    k: Tensor,
    *,
    order: int | None = None,
    tol: float | None = None,
    max_order: int = 64,
    dtype: torch.dtype | None = None,
) -> tuple[ModalFilter, FitReport]:
    """Realise each filter of a bank as a stable modal recurrence, and say how well.

    Poles by ERA, moved radially onto the circle of `ModalFilter` where they come out unstable; the order never exceeds
    the numerical rank of H. Where the fit is far above its lower bound (unstable poles, or a nilpotent part: delays),
    lower orders and a ring of small poles are tried too and the best is kept, so that the error is nearly monotone in
    the order. Residues are the least-squares fit to all taps, with a Tikhonov term of the size of the rounding errors
    of `dtype`, for the poles as parameters of `dtype` give them. The pass-through is k[:, 0].

    Args:
        k: (D, L) real taps, L >= 1. float32 taps carry rounding noise, and are fitted no further than that.
        order: real states of every filter (an upper limit: see `FitReport.order` for those used). Or else
        tol: relative L2 error to reach; each filter then gets the smallest order found to reach it, up to
        max_order: the limit with `tol`.
        dtype: float32 or float64, of the filter's parameters; default float64 for float64 taps, else float32.

    Returns:
        The filter, on k's device, with as many modes as the largest of its D realisations needs (others are padded
        with zero poles and residues; slowest poles first), and the report on exactly that filter.

    Raises:
        ValueError: k is not a finite real (D, L) tensor with L >= 1; not exactly one of order and tol is given, or it
            is negative; max_order < 1; dtype is neither float32 nor float64.
    """
    _check_taps(k)
    if (order is None) == (tol is None):
        raise ValueError("give exactly one of order and tol")
    if (order is not None and order < 0) or (tol is not None and not tol >= 0):
        raise ValueError(f"order and tol must not be negative, got order={order}, tol={tol}")
    if max_order < 1:
        raise ValueError(f"max_order must be at least 1, got {max_order}")
    dtype = dtype or (torch.float64 if k.dtype == torch.float64 else torch.float32)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype}")

    def realise(rows: Tensor) -> tuple[Tensor, Tensor, FitReport]:
        with torch.no_grad():  # grad mode is per thread
            return _realise(rows, max_order if order is None else order, tol, dtype)

    poles, residues, reports = zip(*_map_parallel(realise, _pieces(k)), strict=True)
    report = FitReport(k.shape[1], **{name: torch.cat([getattr(r, name) for r in reports]) for name in _PER_FILTER})
    N = max(1, int(report.modes.max()) if len(k) else 1)

    def pack(pieces: tuple[Tensor, ...]) -> Tensor:  # modes come first, padding last
        modes = torch.cat(pieces)[:, :N]
        return torch.nn.functional.pad(modes, (0, N - modes.shape[1]))

    return ModalFilter.from_modes(pack(poles), pack(residues), k[:, 0], dtype=dtype), report


def _pieces(k: Tensor) -> tuple[Tensor, ...]:
    # Sizes depend on D alone, so that the result does not depend on the number of threads.
    return k.split(max(1, min(16, len(k) // 8)))


def _map_parallel(function: Callable[[Tensor], T], pieces: Sequence[Tensor]) -> list[T]:
    """Map over the pieces with one thread each: the matrices are too small to be worth sharing among threads."""
    threads = torch.get_num_threads()
    if threads == 1 or len(pieces) == 1 or pieces[0].device.type != "cpu":
        return [function(piece) for piece in pieces]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, pieces))
    finally:
        torch.set_num_threads(threads)  # part of the setting is shared by the threads of the process


def _realise(k: Tensor, max_order: int, tol: float | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, FitReport]:
    """Return poles and residues (D, d) complex128, each filter's padding at the end of its row, and their report."""
    g = k[:, 1:].double()
    sigma, shift, last_row = hankel_svd(g, max_order + 1)
    rank = numerical_rank(k, sigma)
    norm = torch.linalg.vector_norm(k.double(), dim=-1)
    search = _Search(g, sigma, shift, last_row, norm, torch.finfo(dtype).eps)
    search.improve(rank.clamp(max=max_order))
    if tol is not None:
        search.shrink(tol)
    poles, residues = _modes(search, k[:, 0], dtype)
    modal = ModalFilter.from_modes(poles, residues, k[:, 0], dtype=dtype)
    return poles, residues, _report(modal, k, search, rank)


def numerical_rank(k: Tensor, sigma: Tensor) -> Tensor:
    """How many of the singular values sigma (D, n) of taps k (D, L) are above the noise of the taps' dtype: (D,)."""
    # Rounding each tap to k's dtype moves H by about eps ||g|| in norm; the SVD itself is good to a few eps sigma_1.
    noise = torch.finfo(k.dtype).eps * torch.linalg.vector_norm(k[:, 1:].double(), dim=-1)
    return (sigma > torch.maximum(noise, _rounding(sigma, k.shape[1]))[:, None]).sum(-1)


class _Search:
    """The best poles found so far for each filter: (D, d) complex128, of which the first `order[i]` of row i count.

    A conjugate pair stands as two neighbours, the one with positive imaginary part first, as LAPACK returns them.
    """

    def __init__(self, g: Tensor, sigma: Tensor, shift: Tensor, last_row: Tensor, norm: Tensor, eps: float) -> None:
        self.g, self.sigma, self.shift, self.last_row, self.norm, self.eps = g, sigma, shift, last_row, norm, eps
        D = len(g)
        self.order = torch.zeros(D, dtype=torch.long, device=g.device)
        self.poles = torch.zeros(D, shift.shape[-1], dtype=torch.complex128, device=g.device)
        # ||H||_F^2 counts each tap once per place on its antidiagonal.
        M = g.shape[1]
        rising = torch.arange(1, M + 1, device=g.device)
        places = torch.minimum(rising, rising.flip(0)).clamp(max=max(1, M - M // 2))
        self.frobenius = (g * places.sqrt()).square().sum(-1)
        # Without states the error is everything after lag 0.
        self.error = _ratio(torch.linalg.vector_norm(g, dim=-1), norm)

    def improve(self, order: Tensor) -> None:
        """Fit each filter with `order` (D,) states, or with other poles of at most as many where those do better."""
        every = torch.arange(len(self.g), device=self.g.device)
        unstable = self._try(every, order)
        doubtful = (unstable | (self.error > _SUSPECT * self._expected(order))) & (self.error > _DONE * self.eps)
        suspects = doubtful.nonzero()[:, 0]
        self._try(suspects, order[suspects], ring=True)
        for step in _FALLBACK_STEPS:
            suspects = suspects[order[suspects] > step]
            self._try(suspects, order[suspects] - step)

    def _expected(self, order: Tensor) -> Tensor:
        """`error_bound`, with the singular values not computed added through ||H||_F: an estimate, no bound."""
        bound = error_bound(self.sigma, order, self.g.shape[1], self.norm)
        kept = torch.arange(self.sigma.shape[1], device=order.device) < order[:, None]
        left = (self.frobenius - (self.sigma.square() * kept).sum(-1)).clamp(min=0).sqrt()
        return torch.maximum(bound, _ratio(left, self.norm * math.sqrt(max(1, self.g.shape[1]) / 2)))

    def shrink(self, tol: float) -> None:
        """Bisect each filter that meets `tol` for a smaller order that still does."""
        low, high = torch.zeros_like(self.order), self.order.clone()
        for d in range(int(high.max()) if len(high) else 0):  # orders the bound excludes need no trial
            low += error_bound(self.sigma, torch.full_like(low, d), self.g.shape[-1], self.norm) > tol
        low = torch.minimum(low, high)
        low = torch.where(self.error <= tol, low, high)
        while len(rows := (low < high).nonzero()[:, 0]):
            middle = (low + high)[rows] // 2
            self._try(rows, middle, tol=tol)
            reached = self.order[rows] == middle
            high[rows] = torch.where(reached, middle, high[rows])
            low[rows] = torch.where(reached, low[rows], middle + 1)

    def _try(self, rows: Tensor, order: Tensor, *, ring: bool = False, tol: float | None = None) -> Tensor:
        """Keep the poles of `order` for those `rows` where they fit better (or within `tol`); tell unstable ones."""
        if not len(rows):
            return torch.zeros(0, dtype=torch.bool, device=rows.device)
        poles = _shift_poles(self.shift[rows], self.last_row[rows], order)
        if ring:
            poles = _spread_small(poles, order, self.eps)
        radius, limit = poles.abs(), math.exp(-self.eps)
        poles = torch.where(radius > limit, poles * (limit / radius), poles)
        residual = fit_residues(poles, order, self.g[rows], self.eps)[1]
        error = _ratio(residual, self.norm[rows])
        better = (error < self.error[rows]) if tol is None else (error <= tol)
        chosen = rows[better]
        self.order[chosen], self.error[chosen] = order[better], error[better]
        self.poles[chosen] = torch.nn.functional.pad(poles[better], (0, self.poles.shape[1] - poles.shape[1]))
        return (radius > limit).any(-1)


def _shift_poles(shift: Tensor, last_row: Tensor, order: Tensor) -> Tensor:
    """Eigenvalues of the least-squares solution A of U[:-1] A = U[1:] for the first order[i] columns of U, else 0."""
    poles = torch.zeros(len(order), int(order.max()), dtype=torch.complex128, device=order.device)
    for d in order.unique().tolist():
        if d == 0:
            continue
        rows = (order == d).nonzero()[:, 0]
        G, u = shift[rows, :d, :d], last_row[rows, :d]
        # U[:-1]^T U[:-1] = I - u u^T, so one Sherman-Morrison update solves it. If u has length 1, a state lives in the
        # last row alone and has no successor: leave it at that.
        gap = 1 - (u * u).sum(-1)
        gain = torch.where(gap > 1e-12, 1 / gap.clamp(min=1e-12), 0.0)
        A = G + gain[:, None, None] * u[:, :, None] * (u[:, None] @ G)
        poles[rows, :d] = torch.linalg.eigvals(A)
    return poles


def _spread_small(poles: Tensor, order: Tensor, eps: float) -> Tensor:
    """Move the poles of a (nearly) nilpotent part of size c from around 0 onto a ring.

    A delay by c samples is a Jordan block at 0, which modes cannot represent. c poles on a ring of radius r do, up to
    an echo r^c, with residues of r^(1-c): r = eps^(1 / (2c - 1)) balances the echo with the rounding errors.
    """
    poles = poles.clone()
    for row, d in zip(poles, order.tolist(), strict=True):
        radius = row[:d].abs().sort()[0]
        count = torch.arange(1, d + 1, device=row.device)
        ring = eps ** (1 / (2 * count - 1).double())
        small = (radius < ring).nonzero()
        c = int(small[-1]) + 1 if len(small) else 0
        if c < 2 or (c < d and radius[c] == radius[c - 1]):
            continue
        r = float(ring[c - 1])
        angles = [2 * math.pi * j / c for j in range(1, (c + 1) // 2)]
        values = [complex(r * math.cos(a), s * r * math.sin(a)) for a in angles for s in (1, -1)]
        values += [complex(r)] + ([complex(-r)] if c % 2 == 0 else [])
        kept = row[:d][row[:d].abs() > radius[c - 1]]
        row[:d] = torch.cat([kept, torch.tensor(values, dtype=row.dtype, device=row.device)])
    return poles


def _modes(search: _Search, passthrough: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the poles found as modes, slowest first, with the best residues for them as `ModalFilter` rounds them."""
    poles, order = search.poles, search.order
    # Rounding is elementwise, so that these are the poles of the final filter.
    modal = ModalFilter.from_modes(poles, torch.zeros_like(poles), passthrough, dtype=dtype)
    rounded = modal.poles
    rounded = torch.where(poles.imag == 0, rounded.real + 0j, rounded)
    c = fit_residues(rounded, order, search.g, search.eps)[0]
    partner = torch.nn.functional.pad(c[:, 1:], (0, 1))
    residues = torch.complex(c, torch.where(poles.imag > 0, partner, 0.0))

    used = (torch.arange(poles.shape[1], device=poles.device) < order[:, None]) & (poles.imag >= 0)
    index = torch.where(used, poles.abs(), -1.0).argsort(dim=-1, descending=True, stable=True)
    used = used.gather(-1, index)
    return torch.where(used, poles.gather(-1, index), 0.0), torch.where(used, residues.gather(-1, index), 0.0)


def _report(modal: ModalFilter, k: Tensor, search: _Search, rank: Tensor) -> FitReport:
    poles, residues = modal.poles, modal.residues
    D, L = k.shape
    error, cancellation = k.new_empty(D, L, dtype=torch.float64), k.new_empty(D, dtype=torch.float64)
    for start in range(0, D, block := max(1, BLOCK_ELEMENTS // L)):
        rows = slice(start, start + block)
        h_0 = modal.passthrough[rows].double()
        error[rows] = k[rows].double() - modal_kernel(poles[rows], residues[rows], h_0, L)
        gross = modal_kernel(poles[rows].abs() + 0j, residues[rows].abs() + 0j, h_0.abs(), L)
        cancellation[rows] = torch.linalg.vector_norm(gross, dim=-1)
    sigma, order = search.sigma, search.order
    # Each complex pair of states is one mode.
    modes = order - (
        (search.poles.imag < 0) & (torch.arange(search.poles.shape[1], device=k.device) < order[:, None])
    ).sum(-1)
    beyond = torch.nn.functional.pad(sigma, (0, 1)).gather(-1, search.order[:, None].clamp(max=sigma.shape[1]))[:, 0]
    hankel = hankel_svd(error[:, 1:], 1)[0][:, 0]
    fields = {
        "order": search.order,
        "modes": modes,
        "relative_error": _ratio(torch.linalg.vector_norm(error, dim=-1), search.norm),
        "error_bound": error_bound(sigma, search.order, L - 1, search.norm),
        "hankel_error": _ratio(hankel, sigma[:, 0]),
        "hankel_bound": _ratio((beyond - _rounding(sigma, L)).clamp(min=0), sigma[:, 0]),
        "radius": torch.nn.functional.pad(poles.abs(), (0, 1)).amax(-1),
        "cancellation": _ratio(cancellation, search.norm),
        "numerical_rank": rank,
        "singular_values": sigma,
    }
    return FitReport(length=L, **{name: value.cpu() for name, value in fields.items()})


def error_bound(sigma: Tensor, order: Tensor, taps: int, norm: Tensor) -> Tensor:
    """Lower bound (see `FitReport`) on the relative L2 error of `order` (D,) real states, from sigma (D, n)."""
    lost = torch.arange(sigma.shape[1], device=sigma.device) >= order[:, None]
    tail = (sigma - _rounding(sigma, taps)[:, None]).clamp(min=0) * lost
    columns = max(1, taps - taps // 2)
    return _ratio(torch.linalg.vector_norm(tail, dim=-1), norm * math.sqrt(columns))


def _rounding(sigma: Tensor, taps: int) -> Tensor:
    return 4 * math.sqrt(taps) * torch.finfo(torch.float64).eps * sigma[:, 0]


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1.0), 0.0)


def _check_taps(k: Tensor) -> None:
    if k.dim() != 2 or k.shape[-1] < 1 or not k.is_floating_point():
        raise ValueError(f"k must be a real tensor (D, L) with L >= 1, got {k.dtype} {tuple(k.shape)}")
    if not k.isfinite().all():
        raise ValueError("k must be finite")
