"""Distillation: from trained long filters to recurrences that generate with constant memory and time per token.

fitting/ fits one bank of filters, by several methods; exact.py keeps those that are recurrences already; model.py walks
a model and swaps its filters; budget.py chooses their orders; report.py says how well it went, compare.py what it does
to the predictions.
"""

from .budget import BudgetSearch, allocate, distill_to_budget, distill_to_tolerance
from .compare import Agreement, Recorded, compare
from .curves import ErrorCurves, error_curves
from .fitting.fit import METHODS, distill_filter
from .fitting.hankel import hankel_singular_values
from .fitting.report import FitReport
from .model import distill
from .report import DistillReport, LayerFit

__all__ = [
    "METHODS",
    "Agreement",
    "BudgetSearch",
    "DistillReport",
    "ErrorCurves",
    "FitReport",
    "LayerFit",
    "Recorded",
    "allocate",
    "compare",
    "distill",
    "distill_filter",
    "distill_to_budget",
    "distill_to_tolerance",
    "error_curves",
    "hankel_singular_values",
]
