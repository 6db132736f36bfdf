"""Distillation: from trained long filters to recurrences that generate with constant memory and time per token.

hankel.py fits one bank of filters; exact.py keeps those that are recurrences already; model.py walks a model and swaps
its filters; report.py says how well it went.
"""

from .hankel import FitReport, hankel_realisation, hankel_singular_values
from .model import distill
from .report import DistillReport, LayerFit

__all__ = ["DistillReport", "FitReport", "LayerFit", "distill", "hankel_realisation", "hankel_singular_values"]
