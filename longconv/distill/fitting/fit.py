"""`distill_filter`: a bank of long filters as modal recurrences, by one of several methods."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longconv.filters.modal import ModalFilter

from .balanced import balanced
from .bank import Bank, map_parallel, pieces_of
from .best import best
from .gradient import gradient
from .hankel import check_taps, hankel
from .rational import rational
from .report import FitReport, error_bound

#: Offers poles to a bank: `method(bank, rows, order (len(rows),), tol=None, **options)`.
Method = Callable[..., None]
METHODS: dict[str, Method] = {
    "balanced": balanced, "best": best, "gradient": gradient, "hankel": hankel, "rational": rational
}  # fmt: skip
# Those whose poles are no better than the singular vectors they are made of.
_THOROUGH = ("hankel",)


def distill_filter(
    k: Tensor,
    method: str = "best",
    *,
    order: int | Tensor | None = None,
    tol: float | None = None,
    max_order: int = 64,
    dtype: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> tuple[ModalFilter, FitReport]:
    """Fit each filter of a bank by a stable modal recurrence, and say how well.

    Every method chooses poles; then residues are the least-squares fit to all taps, with a Tikhonov term of the size of
    the rounding errors of `dtype`, for the poles as parameters of `dtype` give them. The pass-through is k[:, 0]. Poles
    that come out unstable are moved radially onto the circle of `ModalFilter`, |lambda| <= exp(-eps). No order exceeds
    the numerical rank of the taps.

    Args:
        k: (D, L) real taps, L >= 1. float32 taps carry rounding noise, and are fitted no further than that.
        method: one of `METHODS`:
            "best": the better of "hankel" and a pursuit, polished by variable projection (best.py);
            "hankel": singular vectors of the Hankel matrix, ERA (hankel.py);
            "balanced": truncation of a fit with more states (balanced.py);
            "rational": AAA on the frequency response (rational.py);
            "gradient": the published descent from random poles (gradient.py).
        order: real states of every filter, or (D,) integers (an upper limit: see `FitReport.order` for those used).
            Or else
        tol: relative L2 error to reach; each filter then gets the smallest order found to reach it, up to
        max_order: the limit with `tol`.
        dtype: float32 or float64, of the filter's parameters; default float64 for float64 taps, else float32.
        progress: called with the number of filters that are done, as they are.
        options: of the method.

    Returns:
        The filter, on k's device, with as many modes as the largest of its D realisations needs (others are padded
        with zero poles and residues; slowest poles first), and the report on exactly that filter.

    Raises:
        ValueError: k is not a finite real (D, L) tensor with L >= 1; an unknown method or option; not exactly one of
            order and tol is given, or it is negative or of the wrong shape; max_order < 1; dtype is neither float32 nor
            float64.
    """
    check_taps(k)
    check_method(method, options)
    orders = check_order(order, tol, max_order, len(k))
    dtype = dtype or (torch.float64 if k.dtype == torch.float64 else torch.float32)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype}")

    widest, done = int(orders.max()) if len(orders) else 0, []

    def fit(rows: Tensor) -> tuple[Tensor, Tensor, FitReport]:
        limit = orders[rows].to(k.device)
        bank = Bank(k[rows], widest, dtype, thorough=method in _THOROUGH)
        bank.limit = torch.minimum(limit, bank.rank)
        if tol is None:
            METHODS[method](bank, bank.every, bank.limit, **options)
        else:
            _fit_to(bank, method, tol, options)
        result = bank.finish()
        if progress is not None:
            done.extend(rows.tolist())
            progress(len(done))
        return result

    pieces = pieces_of(torch.arange(len(k)))
    poles, residues, reports = zip(*map_parallel(fit, pieces), strict=True)
    report = FitReport.cat(list(reports))
    N = max(1, int(report.modes.max()) if len(k) else 1)

    def pack(parts: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([torch.nn.functional.pad(part, (0, N - part.shape[1])) for part in parts])

    return ModalFilter.from_modes(pack(poles), pack(residues), k[:, 0], dtype=dtype), report


def _fit_to(bank: Bank, method: str, tol: float, options: dict[str, Any]) -> None:
    """Find for each filter the smallest order that reaches `tol`, or the best that the limit allows."""
    limit = bank.limit
    if not len(limit):
        return
    # Orders that the bound excludes need no trial.
    low, taps = torch.zeros_like(limit), bank.g.shape[1]
    for d in range(int(limit.max())):
        low += error_bound(bank.section.sigma, torch.full_like(low, d), taps, bank.norm) > tol
    low = torch.minimum(low, limit)
    rows = (bank.error > tol).nonzero()[:, 0]
    rung = torch.maximum(low, torch.ones_like(low))
    while len(rows):  # up by doubling, so that easy filters never see a high order
        tried = torch.minimum(rung[rows], limit[rows])
        METHODS[method](bank, rows, tried, tol=tol, **options)
        missed = bank.error[rows] > tol
        low[rows] = torch.where(missed, torch.maximum(low[rows], tried + 1), low[rows])
        rung[rows] = 2 * tried
        rows = rows[missed & (tried < limit[rows])]
    high = bank.order
    met = bank.error <= tol
    while len(rows := (met & (low < high)).nonzero()[:, 0]):
        middle = (low + high)[rows] // 2
        METHODS[method](bank, rows, middle, tol=tol, **options)
        reached = bank.order[rows] <= middle
        high[rows] = torch.where(reached, bank.order[rows], high[rows])
        low[rows] = torch.where(reached, low[rows], middle + 1)


def check_method(method: str, options: dict[str, Any]) -> None:
    """Raise ValueError for an unknown method or option."""
    if method not in METHODS:
        raise ValueError(f"unknown distillation method {method!r}; known: {', '.join(sorted(METHODS))}")
    accepted = list(inspect.signature(METHODS[method]).parameters)[4:]
    if unknown := sorted(options.keys() - set(accepted)):
        has = ", ".join(accepted) or "none"
        raise ValueError(f"method {method!r} has no option {', '.join(unknown)}; it has: {has}")


def check_order(order: int | Tensor | None, tol: float | None, max_order: int, D: int) -> Tensor:
    """The limit on the states of each of D filters (D,) int64, or ValueError."""
    if (order is None) == (tol is None):
        raise ValueError("give exactly one of order and tol")
    if tol is not None and not tol >= 0:
        raise ValueError(f"order and tol must not be negative, got order={order}, tol={tol}")
    if max_order < 1:
        raise ValueError(f"max_order must be at least 1, got {max_order}")
    orders = torch.as_tensor(max_order if order is None else order)
    if orders.is_floating_point() or orders.dim() > 1 or (orders.dim() == 1 and len(orders) != D):
        raise ValueError(f"order must be an integer or {D} of them, one for each filter, got {order}")
    if bool((orders < 0).any()):
        raise ValueError(f"order and tol must not be negative, got order={order}, tol={tol}")
    return orders.long().cpu().expand(D)
