"""What a distillation did, as a table, as JSON, and as plots."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .fit_report import FitReport


@dataclass(frozen=True)
class LayerFit:
    """One bank of filters of one layer: `kernel` and `fitted` are (D, L), before and after.

    `exact`: they were recurrences already, of few enough states, and are the same as before.
    """

    layer: int
    stage: int
    fit: FitReport
    kernel: Tensor
    fitted: Tensor
    exact: bool = False

    @property
    def relative_error(self) -> float:
        """||K - K_hat||_F / ||K||_F over all channels of the layer."""
        return (torch.linalg.matrix_norm(self.kernel - self.fitted) / torch.linalg.matrix_norm(self.kernel)).item()

    @property
    def state_size(self) -> int:
        """Real numbers of state per sequence: the sum of the orders of the channels (padding not counted)."""
        return int(self.fit.order.sum())

    def summary(self) -> dict[str, Any]:
        """The numbers of one table row."""
        fit = self.fit
        return {
            "layer": self.layer,
            "stage": self.stage,
            "channels": len(fit.order),
            "taps": fit.length,
            "order_median": fit.order.double().quantile(0.5).item() if len(fit.order) else 0.0,
            "order_max": int(fit.order.max()) if len(fit.order) else 0,
            "state_size": self.state_size,
            "relative_error": self.relative_error,
            "worst_filter_error": fit.relative_error.max().item(),
            "error_bound": fit.error_bound.max().item(),
            "radius": fit.radius.max().item(),
            "exact": self.exact,
        }


@dataclass(frozen=True)
class DistillReport:
    """Every bank of filters that was distilled, in the order of the layers."""

    layers: list[LayerFit]

    def to_dict(self) -> dict[str, Any]:
        """Summary and details of each layer (errors, orders, radii and Hankel singular values per filter)."""
        return {"layers": [{**fit.summary(), "filters": fit.fit.to_dict()} for fit in self.layers]}

    def __str__(self) -> str:
        lines = [
            "layer  filters   taps   states per filter   relative L2 error      largest",
            "                        median     max      layer      worst     |lambda|",
        ]
        for fit in self.layers:
            s = fit.summary()
            errors = f"{s['relative_error']:>9.1e}  {s['worst_filter_error']:>9.1e}"
            if fit.exact:
                errors = f"{'exact':>9}  {'exact':>9}"
            lines.append(
                f"{s['layer']:>5}  {s['channels']:>7}  {s['taps']:>5}  {s['order_median']:>7.0f}  {s['order_max']:>6}"
                f"  {errors}  {s['radius']:>11.7f}"
            )
        return "\n".join(lines)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write report.json, and hankel.png and filters.png if matplotlib is there; return the paths written."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "report.json"
        path.write_text(json.dumps(self.to_dict(), indent=1))
        try:
            from .plot import plot_filters, plot_hankel
        except ImportError:
            return [path]
        return [path, plot_hankel(self, folder / "hankel.png"), plot_filters(self, folder / "filters.png")]
