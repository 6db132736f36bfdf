"""The order of every filter, by a budget of states or by what the model's predictions may lose.

Filters count for what they do to the predictions (`sensitivity`), and each gets the states that lower the sum most
(`allocate`). What the student then does to the predictions is measured, not predicted.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from longconv.filters import ModalFilter

from .compare import Agreement, Recorded, compare
from .curves import ErrorCurves, Progress, error_curves
from .knapsack import choose
from .model import named_mixers, replace_filters
from .report import DistillReport, LayerFit
from .sensitivity import sensitivity

#: How errors of filters count: by the squared L2 norm of the error, of the error relative to the filter, or by weights.
Weights = Literal["absolute", "relative"] | Sequence[Tensor]

_CLOSE = 0.02  # the budget is searched for to this fraction of itself
_TRIM = 0.9  # of a layer's states are kept in one step of trimming
_TEACHER_BYTES = 1 << 30  # the teacher's logits are kept up to here, and computed anew above


def allocate(curves: Sequence[ErrorCurves], budget: int, weights: Weights = "absolute") -> list[Tensor]:
    """The states that minimise the sum of weight x squared error over all filters, within a budget.

    See `knapsack.choose`: the optimum where that lies on the lower convex hulls of the curves, and otherwise above it
    by less than the one step that could not be paid. Orders that are not fitted yet count with their estimates.

    Args:
        curves: of the banks.
        budget: real numbers of state in total, those of a filter counted `ErrorCurves.copies` times.
        weights: of the squared L2 error of the taps: "absolute" for 1, "relative" for 1 / ||k||^2, or (D,) of each
            bank (`sensitivity`).

    Returns:
        (D,) int64 for each bank, of the curves' `states`.

    Raises:
        ValueError: a negative budget, or weights that do not fit the banks, are negative or not finite.
    """
    if budget < 0:
        raise ValueError(f"budget must not be negative, got {budget}")
    scales = _scales(curves, weights)
    columns = max(bank.states.shape[1] for bank in curves)

    def widen(x: Tensor) -> Tensor:
        return torch.cat([x, x[:, -1:].expand(-1, columns - x.shape[1])], dim=1)

    states = [bank.states for bank in curves]
    cost = torch.cat([widen(n * bank.copies) for n, bank in zip(states, curves, strict=True)])
    loss = torch.cat([widen(bank.error.square() * w[:, None]) for bank, w in zip(curves, scales, strict=True)])
    choice = choose(cost, loss, budget).split([len(bank) for bank in curves])
    return [n.gather(1, which[:, None])[:, 0] for n, which in zip(states, choice, strict=True)]


def _scales(curves: Sequence[ErrorCurves], weights: Weights) -> list[Tensor]:
    """(D,) for each bank: what the squared relative errors are multiplied by."""
    if isinstance(weights, str):
        if weights not in ("absolute", "relative"):
            raise ValueError(f"weights must be 'absolute', 'relative' or a tensor for each bank, got {weights!r}")
        return [bank.norm.square() if weights == "absolute" else (bank.norm > 0).double() for bank in curves]
    found, expected = [tuple(w.shape) for w in weights], [(len(bank),) for bank in curves]
    if found != expected:
        raise ValueError(f"weights must have the shapes {expected} of the banks, got {found}")
    if not all(bool(w.isfinite().all() and (w >= 0).all()) for w in weights):
        raise ValueError("weights must be finite and not negative")
    return [bank.norm.square() * w.double().cpu() for bank, w in zip(curves, weights, strict=True)]


@dataclass(frozen=True)
class Trial:
    """One student of a search: what it was for, its `state_size`, and how far its predictions are from the teacher's.

    `agreement` is None where there is no text to compare on.
    """

    purpose: str
    state_size: int
    agreement: Agreement | None


@dataclass(frozen=True)
class BudgetSearch:
    """How the orders were found.

    Attributes:
        trials: the students that were measured, in that order.
        chosen: the one that was returned.
        orders: its (D,) orders (a real pole counts 1) of each bank, in the order of layers and stages, as `distill`
            takes them.
        copies: of each bank, how many states of a filter a sequence keeps.
        metric, limit: what was to be reached on the calibration text ("kl" or "logit_error"); None for a budget.
        reached: whether it was; True for a budget.
    """

    trials: list[Trial]
    chosen: Trial
    orders: list[Tensor]
    copies: list[int]
    metric: str | None = None
    limit: float | None = None
    reached: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON."""

        def plain(trial: Trial) -> dict[str, Any]:
            agreement = None if trial.agreement is None else trial.agreement.to_dict()
            return {"purpose": trial.purpose, "state_size": trial.state_size, "agreement": agreement}

        return {
            "metric": self.metric,
            "limit": self.limit,
            "reached": self.reached,
            "chosen": plain(self.chosen),
            "trials": [plain(trial) for trial in self.trials],
            "orders": [order.tolist() for order in self.orders],
            "copies": self.copies,
        }

    def __str__(self) -> str:
        lines = [f"{'states':>9}  {'KL':>9}  {'logits':>9}  {'top-1':>7}  "]
        for trial in self.trials:
            mark = "  <- chosen" if trial is self.chosen else ""
            lines.append(f"{trial.state_size:>9}  {_columns(trial.agreement)}  {trial.purpose}{mark}")
        if not self.reached:
            lines.append(f"{self.metric} <= {self.limit:g} is not reached with as many states as max_order allows")
        return "\n".join(lines)


def _columns(found: Agreement | None) -> str:
    if found is None:
        return f"{'':>9}  {'':>9}  {'':>7}"
    return f"{found.kl:>9.2e}  {found.logit_error:>9.2e}  {found.top1:>7.2%}"


class _Search:
    """A model, the curves of its filters, and students of it on trial."""

    def __init__(
        self,
        model: Any,
        calibration: Iterable[Mapping[str, Tensor]] | None,
        curves: list[ErrorCurves],
        weights: Weights | None,
        progress: Progress | None,
    ) -> None:
        self.model, self.curves, self.progress = model, curves, progress
        self.batches = None if calibration is None else list(calibration)
        self.teacher: Any = model
        if self.batches is not None:
            logits = sum(batch["input_ids"].numel() for batch in self.batches) * model.config.vocab_size
            if logits * model.dtype.itemsize <= _TEACHER_BYTES:
                self.teacher = Recorded(model, self.batches)
            # One student for all trials: its filters are exchanged in place.
            self.student = replace_filters(model, {})
            self.mixers = {index: mixer for index, (_, mixer) in named_mixers(self.student).items()}
            self.own = {i: mixer.long_filters for i, mixer in self.mixers.items() if len(mixer.long_filters)}
        if weights is None:
            weights = "absolute" if self.batches is None else sensitivity(model, self.batches)
        self.weights = weights
        self.trials: list[tuple[Trial, list[Tensor]]] = []

    @property
    def largest(self) -> int:
        """The states of everything at its highest order."""
        return sum(int(bank.states[:, -1].sum()) * bank.copies for bank in self.curves)

    def within(self, budget: int) -> list[Tensor]:
        """`allocate`, with everything fitted that it comes to."""
        while True:
            states = allocate(self.curves, budget, self.weights)
            # Fits that are worse than estimated may leave others that pay better.
            fitted = [bank.fit(n, self.progress) for bank, n in zip(self.curves, states, strict=True)]
            if not any(fitted):
                return states

    def shrunk(self, states: list[Tensor], bank: int) -> list[Tensor] | None:
        """The same with fewer states in one bank; None if it has none to give."""
        curves, total = self.curves[bank], int(states[bank].sum())
        if total == 0:
            return None
        weights = self.weights if isinstance(self.weights, str) else [self.weights[bank]]
        while True:
            (fewer,) = allocate([curves], min(int(_TRIM * total), total - 1) * curves.copies, weights)
            if not curves.fit(fewer, self.progress):
                return [*states[:bank], fewer, *states[bank + 1 :]]

    def kept(self, states: list[Tensor]) -> set[int]:
        """The layers whose filters are recurrences of no more states: as in `distill`, all of a layer stay or none."""
        other = {
            bank.layer
            for bank, n in zip(self.curves, states, strict=True)
            if bank.kept_states is None or bool((n < bank.kept_states).any())
        }
        return {bank.layer for bank in self.curves} - other

    def filters(self, states: list[Tensor]) -> dict[int, list[ModalFilter]]:
        """The filters of the other layers."""
        kept = self.kept(states)
        filters: dict[int, list[ModalFilter]] = {}
        for bank, n in zip(self.curves, states, strict=True):
            if bank.layer not in kept:
                filters.setdefault(bank.layer, []).append(bank.modal(n))
        return filters

    def size(self, states: list[Tensor]) -> int:
        """Real numbers of state of one sequence."""
        total, kept = 0, self.kept(states)
        for bank, n in zip(self.curves, states, strict=True):
            stored = bank.kept_states if bank.layer in kept and bank.kept_states is not None else n
            total += int(stored.sum()) * bank.copies
        return total

    def fits(self, states: list[Tensor]) -> list[LayerFit]:
        """What is said of all filters."""
        fits, kept = [], self.kept(states)
        for bank, n in zip(self.curves, states, strict=True):
            if bank.layer in kept and bank.kept is not None:
                taps = bank.kernel.cpu()
                fits.append(LayerFit(bank.layer, bank.stage, bank.kept, taps, taps, exact=True))
            else:
                fits.append(bank.report(n))
        return fits

    def measure(self, states: list[Tensor], purpose: str) -> Trial:
        """Put the filters into the student, and compare."""
        found = None
        if self.batches is not None:
            filters = self.filters(states)
            for layer, own in self.own.items():
                self.mixers[layer].long_filters = nn.ModuleList(filters[layer]) if layer in filters else own
            found = compare(self.teacher, self.student, self.batches)
        trial = Trial(purpose, self.size(states), found)
        self.trials.append((trial, states))
        if self.progress is not None:
            self.progress(f"{trial.state_size} states: {_columns(found).strip() or 'not measured'}  ({purpose})")
        return trial

    def states_of(self, trial: Trial) -> list[Tensor]:
        """What it was measured with."""
        return next(states for known, states in self.trials if known is trial)

    def finish(self, chosen: Trial, **fields: Any) -> tuple[Any, DistillReport, BudgetSearch]:
        """The model, the report and the account of the search."""
        states, trials = self.states_of(chosen), [trial for trial, _ in self.trials]
        fits, copies = self.fits(states), [bank.copies for bank in self.curves]
        found = BudgetSearch(trials, chosen, [fit.fit.order for fit in fits], copies, **fields)
        return replace_filters(self.model, self.filters(states)), DistillReport(fits), found


@torch.no_grad()
def distill_to_budget(
    model: Any,
    *,
    state_size: int,
    calibration: Iterable[Mapping[str, Tensor]] | None = None,
    weights: Weights | None = None,
    method: str = "best",
    max_order: int = 64,
    length: int | None = None,
    progress: Progress | None = None,
) -> tuple[Any, DistillReport, BudgetSearch]:
    """Distil a model into one whose long filters have at most so many states in total, with the least error.

    Args:
        model: see `distill`; left as it is.
        state_size: real numbers of state that the long filters of all layers keep of one sequence: two for each mode
            of each filter (up to 10% more where a stream keeps modes of padding), for each copy
            (`Mixer.state_copies`). Those of short convolutions and of attention are not among them.
        calibration: batches of text as `compare` takes them, on the model's device: filters count by what they do to
            the predictions there, and the student is measured on it.
        weights: see `allocate`; default `sensitivity` on the calibration text, or "absolute" without.
        method, max_order, length: see `error_curves`.
        progress: called with a line for each fit and each measurement.

    Returns:
        The student, the report on its filters, and how it was found.

    Raises:
        ValueError: a negative state_size, no text in the calibration; and see `allocate` and `distill`.
    """
    if state_size < 0:
        raise ValueError(f"state_size must not be negative, got {state_size}")
    curves = error_curves(model, method=method, max_order=max_order, length=length)
    search = _Search(model, calibration, curves, weights, progress)
    return search.finish(search.measure(search.within(state_size), "within the budget"))


@torch.no_grad()
def distill_to_tolerance(
    model: Any,
    calibration: Iterable[Mapping[str, Tensor]],
    *,
    kl: float | None = None,
    logit_error: float | None = None,
    strict: bool = False,
    weights: Weights | None = None,
    method: str = "best",
    max_order: int = 64,
    length: int | None = None,
    progress: Progress | None = None,
) -> tuple[Any, DistillReport, BudgetSearch]:
    """Distil a model into the smallest recurrence whose predictions stay within a tolerance on calibration text.

    The budget of `distill_to_budget` is doubled until the student is within it, then bisected (to 2 %). After that
    each bank of filters, the largest first, gives up a fifth of its states for as long as the student stays within.
    Every step is measured with a student of those orders.

    Args:
        model, weights, method, max_order, length, progress: see `distill_to_budget`.
        calibration: batches of text as `compare` takes them, on the model's device; the tolerance is met on this text.
        kl: the most KL(teacher || student) in nats per token. Or else
        logit_error: the most relative L2 error of the logits.
        strict: raise if the tolerance cannot be reached with `max_order` states a filter, rather than return the
            student that comes closest, with `BudgetSearch.reached` false.

    Returns:
        The student, the report on its filters, and how it was found.

    Raises:
        ValueError: not exactly one of kl and logit_error is given, or it is not positive; no text in the calibration;
            a tolerance out of reach, if strict; and see `distill`.
    """
    if (kl is None) == (logit_error is None):
        raise ValueError("give exactly one of kl and logit_error")
    metric, limit = ("kl", kl) if kl is not None else ("logit_error", logit_error)
    assert limit is not None
    if not limit > 0:
        raise ValueError(f"{metric} must be positive, got {limit}")
    curves = error_curves(model, method=method, max_order=max_order, length=length)
    search = _Search(model, calibration, curves, weights, progress)

    def within(trial: Trial) -> bool:
        return _value(trial, metric) <= limit

    best = _smallest_budget(search, within)
    reached = best is not None
    if best is None:
        trials = [trial for trial, _ in search.trials]
        best = min(trials, key=lambda trial: _value(trial, metric))
        if strict:
            raise ValueError(
                f"{metric}: {limit:g} is out of reach with max_order = {max_order}, which comes to "
                f"{_value(best, metric):.2e} with {best.state_size} states"
            )
    else:
        best = _trim(search, best, within)
    return search.finish(best, metric=metric, limit=limit, reached=reached)


def _value(trial: Trial, metric: str) -> float:
    """Rounding errors may leave a KL below 0, and a student of huge errors may give NaN."""
    value: float = getattr(trial.agreement, metric)
    return math.inf if math.isnan(value) else value


def _smallest_budget(search: _Search, within: Any) -> Trial | None:
    low, high = 0, 2 * sum(len(bank) * bank.copies for bank in search.curves)
    while True:
        high = min(high, search.largest)
        best = search.measure(search.within(high), "doubling")
        if within(best):
            break
        if high >= search.largest:
            return None
        low, high = high, 2 * high
    while best.state_size - low > max(1, _CLOSE * best.state_size):
        middle = (low + best.state_size) // 2 if low == 0 else math.isqrt(low * best.state_size)
        trial = search.measure(search.within(max(middle, low + 1)), "bisection")
        low, best = (low, trial) if within(trial) else (max(middle, low + 1), best)
    return best


def _trim(search: _Search, best: Trial, within: Any) -> Trial:
    states = search.states_of(best)
    sizes = [int(n.sum()) * bank.copies for bank, n in zip(search.curves, states, strict=True)]
    for bank in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        layer, stage = search.curves[bank].layer, search.curves[bank].stage
        while (fewer := search.shrunk(states, bank)) is not None:
            trial = search.measure(fewer, f"fewer in layer {layer}" + (f", stage {stage}" if stage else ""))
            if not within(trial):
                break
            best, states = trial, fewer
    return best
