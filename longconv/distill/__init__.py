"""Distillation: from trained long filters to recurrences that generate with constant memory and time per token.

hankel.py fits one bank of filters; exact.py keeps those that are recurrences already; model.py walks a model and swaps
its filters; report.py says how well it went; compare.py what it does to the predictions.
"""

from .compare import Agreement, Recorded, compare
from .hankel import FitReport, hankel_realisation, hankel_singular_values
from .model import distill
from .report import DistillReport, LayerFit

__all__ = [
    "Agreement",
    "DistillReport",
    "FitReport",
    "LayerFit",
    "Recorded",
    "compare",
    "distill",
    "hankel_realisation",
    "hankel_singular_values",
]
