"""What each filter's error would be with so many states: the curves that orders are chosen from.

Shapes: D filters of one bank, L taps, R orders that are tried.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from longconv.filters import ModalFilter, Modes

from .exact import keep
from .fitting.bank import map_parallel, pieces_of
from .fitting.fit import check_method, distill_filter
from .fitting.hankel import check_taps
from .fitting.hankel_svd import hankel_sections
from .fitting.report import FitReport, numerical_rank, ratio
from .model import long_filter_layers
from .report import LayerFit

Progress = Callable[[str], None]

_LADDER = (0, 1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_ROUNDING = 1e-12  # of a sum of squares


def ladder(max_order: int) -> list[int]:
    """The orders to try: 0, 1, 2, 4, 6, 8, 12, 16, 24, 32, ... below max_order, and max_order itself."""
    rungs = list(_LADDER)
    while rungs[-1] < max_order:
        rungs.append(2 * rungs[-2])
    return [order for order in rungs if order < max_order] + [max_order]


class ErrorCurves:
    """The error of each filter of a bank with n real states, for n on a ladder, and what those cost.

    The cost is what a stream stores: two real numbers for each mode, for a real pole too, which is one state.

    An order is fitted when it is asked for (`fit`, `complete`). Until then its error is estimated. The Hankel singular
    values beyond that order bound it from below (`FitReport.error_bound`), by a factor that differs between filters but
    hardly between the orders of one, and that the next lower order that has been fitted tells (no states at all, if
    nothing else). So `allocate` needs fits of few orders but those that it comes to.

    Orders above a filter's numerical rank are not tried. A filter that is a recurrence of modes already, of at most
    `max_order` states, is its own fit of that many.

    Args:
        kernel: (D, L) the taps.
        method: as `distill_filter` takes it.
        max_order: the most states of a filter.
        copies: how many states of each filter a sequence keeps (`Mixer.state_copies`).
        original: the filter that the taps are of, which may be a recurrence.
        layer, stage: where the bank is in the model.

    Attributes:
        kernel, copies, layer, stage, max_order: see above.
        norm: (D,) float64, ||k||_2.
        kept: the report on `original` where that is a recurrence of at most `max_order` states, else None.
        kept_states: (D,) what that stores.

    Raises:
        ValueError: an unknown method, max_order or copies < 1, or taps that are not finite and real (D, L).
    """

    def __init__(
        self,
        kernel: Tensor,
        *,
        method: str = "best",
        max_order: int = 64,
        copies: int = 1,
        original: nn.Module | None = None,
        layer: int = 0,
        stage: int = 0,
    ) -> None:
        if max_order < 1 or copies < 1:
            raise ValueError(f"max_order and copies must be at least 1, got {max_order} and {copies}")
        check_taps(kernel)
        check_method(method, {})
        # In one pass: good enough for estimates.
        sections = map_parallel(lambda rows: hankel_sections(rows, max_order + 1, thorough=False), pieces_of(kernel))
        self.sigma = torch.cat([section.sigma for section in sections])
        self.kernel, self.method, self.max_order, self.copies = kernel, method, max_order, copies
        self.layer, self.stage = layer, stage
        D = len(kernel)
        norm, rank = torch.linalg.vector_norm(kernel.double(), dim=-1), numerical_rank(kernel, self.sigma)
        self.norm, self.rank, self._rungs = norm.cpu(), rank.cpu(), torch.tensor(ladder(max_order))
        # A column for each rung, and the last for filters that are recurrences themselves.
        columns = len(self._rungs) + 1
        # At least a mode for every two states; with real poles it will be more.
        states = 2 * ((torch.minimum(self._rungs, self.rank[:, None]) + 1) // 2)
        self._states = nn.functional.pad(states, (0, 1))
        # Of the rungs above the rank one is enough.
        useful = self.rank[:, None] > nn.functional.pad(self._rungs[:-1], (1, 0), value=-1)
        self._tails = nn.functional.pad(_tails(kernel, self.sigma, self._rungs), (0, 1))
        self._error = torch.full((D, columns), torch.inf, dtype=torch.float64)
        self._fitted = nn.functional.pad(~useful, (0, 1), value=True)
        self._fits: list[tuple[ModalFilter, Tensor]] = []
        self._place = torch.zeros(D, columns, 2, dtype=torch.long)  # which of the fits, and which row of it
        every, none = torch.arange(D), torch.zeros(D, 0, dtype=torch.complex128, device=kernel.device)
        nothing = ModalFilter.from_modes(none, none, kernel[:, 0], dtype=self._dtype)
        lost = ratio(torch.linalg.vector_norm(kernel[:, 1:].double(), dim=-1), norm)
        self._enter(every, 0, nothing, torch.zeros(D, 2, dtype=torch.long), lost)

        self.kept: FitReport | None = None if original is None else keep(original, kernel, max_order)
        self.kept_states = None
        if self.kept is not None:
            system: Any = original.prepare_step()  # type: ignore[union-attr, operator]
            modes = isinstance(system, Modes)
            self.kept_states = 2 * self.kept.modes if modes else self.kept.order
            if modes:
                itself = ModalFilter.from_modes(*(x.detach() for x in system), dtype=self._dtype)
                counts = torch.stack([self.kept.order, self.kept.modes], dim=1)
                # No error where the whole layer keeps its filters; where not, `report` tells that of rounding.
                self._enter(every, columns - 1, itself, counts, torch.zeros_like(norm))

    def __len__(self) -> int:
        return len(self.kernel)

    @property
    def states(self) -> Tensor:
        """(D, R) int64, real numbers that one copy stores: ascending, with repetitions."""
        return self._states.gather(1, self._best())

    @property
    def error(self) -> Tensor:
        """(D, R) float64, relative L2 error of the taps with so many `states`: descending."""
        return self._errors().gather(1, self._best())

    def fit(self, states: Tensor, progress: Progress | None = None) -> bool:
        """Fit each filter with these (D,) of its `states` where there are only estimates; tell whether any were."""
        columns = self._columns(states)
        rows = (~self._fitted.gather(1, columns[:, None])[:, 0]).nonzero()[:, 0]
        return self._fit(rows, columns[rows], progress)

    def complete(self, progress: Progress | None = None) -> "ErrorCurves":
        """Fit every order, with one call for each rung, and return itself."""
        for column in range(len(self._rungs)):
            rows = (~self._fitted[:, column]).nonzero()[:, 0]
            self._fit(rows, torch.full_like(rows, column), progress)
        return self

    @torch.no_grad()
    def modal(self, states: Tensor) -> ModalFilter:
        """The fits with these (D,) of the `states`, as one filter on the kernel's device.

        Raises:
            ValueError: a number that is not among a filter's `states`, or is not fitted.
        """
        fit, row = self._places(states)
        where = self.kernel.device
        widest = max(modal.order for modal, _ in self._fits)
        poles = torch.zeros(len(self), widest, dtype=torch.complex128, device=where)
        residues = torch.zeros_like(poles)
        for index in fit.unique().tolist():
            modal, here = self._fits[index][0], (fit == index).nonzero()[:, 0]
            there = row[here].to(where)
            poles[here, : modal.order], residues[here, : modal.order] = modal.poles[there], modal.residues[there]
        # Padding comes last, except in filters that were recurrences.
        width = int(((residues != 0) * torch.arange(1, widest + 1, device=where)).max()) if residues.numel() else 0
        # Rounding the modes once more changes nothing.
        return ModalFilter.from_modes(poles[:, :width], residues[:, :width], self.kernel[:, 0], dtype=self._dtype)

    @torch.no_grad()
    def report(self, states: Tensor) -> LayerFit:
        """What is said of `modal(states)`."""
        modal, (fit, row) = self.modal(states), self._places(states)
        counts = torch.zeros(len(self), 2, dtype=torch.long)
        for index in fit.unique().tolist():
            here = (fit == index).nonzero()[:, 0]
            counts[here] = self._fits[index][1][row[here]]
        order, modes = counts.to(self.kernel.device).unbind(1)
        report = FitReport.of(modal, order, modes, self.kernel, self.sigma, self.rank.to(order.device))
        taps = self.kernel.cpu()
        return LayerFit(self.layer, self.stage, report, taps, modal(taps.shape[1]).cpu())

    def _places(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(D,) which of the fits, and which row of it."""
        columns = self._columns(states)[:, None]
        if not bool(self._fitted.gather(1, columns).all()):
            raise ValueError("states: not all of these are fitted yet")
        fit, row = self._place.gather(1, columns[..., None].expand(-1, -1, 2))[:, 0].unbind(-1)
        return fit, row

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float64 if self.kernel.dtype == torch.float64 else torch.float32

    def _errors(self) -> Tensor:
        """(D, R) what the table holds, and estimates where there is no fit."""
        errors, factor = self._error.clone(), torch.ones(len(self), dtype=torch.float64)
        for column in range(len(self._rungs)):
            fitted, tail = self._fitted[:, column], self._tails[:, column]
            errors[:, column] = torch.where(fitted, errors[:, column], factor * tail)
            known = fitted & errors[:, column].isfinite() & (tail > 0)
            factor = torch.where(known, errors[:, column] / torch.where(known, tail, 1.0), factor)
        return errors

    def _best(self) -> Tensor:
        """(D, R) the columns in the order of their states, each replaced by the one of least error up to it."""
        errors = self._errors()
        order = errors.sort(dim=1, stable=True).indices
        order = order.gather(1, self._states.gather(1, order).sort(dim=1, stable=True).indices)
        error = errors.gather(1, order)
        best = torch.zeros_like(order)
        for column in range(1, order.shape[1]):
            before = best[:, column - 1]
            better = error[:, column] < error.gather(1, before[:, None])[:, 0]
            best[:, column] = torch.where(better, column, before)
        return order.gather(1, best)

    def _columns(self, states: Tensor) -> Tensor:
        """(D,) where these are in the tables."""
        best = self._best()
        there = self._states.gather(1, best) == states[:, None]
        if not bool(there.any(1).all()):
            raise ValueError("states: each must be one of those that the filter can have")
        return best.gather(1, there.long().argmax(1, keepdim=True))[:, 0]

    def _fit(self, rows: Tensor, columns: Tensor, progress: Progress | None) -> bool:
        # One call for each rung: the singular vectors cost as much as the highest order of a call needs.
        for column in columns.unique().tolist():
            here, order = rows[columns == column], int(self._rungs[column])
            if progress is not None:
                progress(f"layer {self.layer}: {len(here)} filters with {order} states")
            kernel = self.kernel[here.to(self.kernel.device)]
            modal, report = distill_filter(kernel, self.method, order=order)
            self._enter(here, column, modal, torch.stack([report.order, report.modes], dim=1), report.relative_error)
        return len(rows) > 0

    def _enter(self, rows: Tensor, column: int, modal: ModalFilter, counts: Tensor, error: Tensor) -> None:
        """Put a fit of some rows into the tables; counts (len(rows), 2) are its orders and its modes."""
        self._states[rows, column], self._error[rows, column] = 2 * counts[:, 1], error.cpu()
        self._fitted[rows, column] = True
        self._place[rows, column, 0], self._place[rows, column, 1] = len(self._fits), torch.arange(len(rows))
        self._fits.append((modal, counts))


def _tails(kernel: Tensor, sigma: Tensor, orders: Tensor) -> Tensor:
    """`error_bound` for each of the orders (D, len(orders)), with the singular values that sigma does not have."""
    g = kernel[:, 1:].double()
    M = g.shape[1]
    # ||H||_F^2 counts each tap once per place on its antidiagonal.
    rising = torch.arange(1, M + 1, device=g.device)
    places = torch.minimum(rising, rising.flip(0)).clamp(max=max(1, M - M // 2))
    whole = (g.square() * places).sum(-1, keepdim=True)
    squares = sigma.square()
    beyond = (whole * (1 - _ROUNDING) - squares.sum(-1, keepdim=True)).clamp(min=0)
    tails = nn.functional.pad(squares.flip(-1).cumsum(-1).flip(-1), (0, 1)) + beyond
    norm = torch.linalg.vector_norm(kernel.double(), dim=-1, keepdim=True)
    return ratio(tails[:, orders.to(g.device)].sqrt(), norm * max(1, M - M // 2) ** 0.5).cpu()


@torch.no_grad()
def error_curves(
    model: Any, *, method: str = "best", max_order: int = 64, length: int | None = None
) -> list[ErrorCurves]:
    """The curves of every bank of long filters, in the order of layers and stages, with nothing fitted yet.

    Args:
        model: a `longconv.models` model with at least one long filter.
        method, max_order: see `ErrorCurves`.
        length: taps to fit; default each layer's `max_length`.

    Raises:
        ValueError: see `ErrorCurves`; no long filter, or a length that is not in 1..max_length.
    """
    curves = []
    for layer, mixer, taps in long_filter_layers(model, length):
        for stage, filter in enumerate(mixer.long_filters):
            place = {"layer": layer, "stage": stage, "copies": mixer.state_copies, "original": filter}
            curves.append(ErrorCurves(filter(taps), method=method, max_order=max_order, **place))
    return curves
