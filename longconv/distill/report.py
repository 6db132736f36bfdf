"""What a distillation did, as a table, as JSON, and as plots."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .fitting.report import FitReport

#: Relative Hankel-norm errors for which the report says how many states they take at least.
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)


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
        """Real numbers of state that a stream stores of all filters: two for each mode, for a real pole too."""
        return 2 * int(self.fit.modes.sum())

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
            "hankel_error": fit.hankel_error.quantile(0.5).item() if len(fit.order) else 0.0,
            "hankel_bound": fit.hankel_bound.quantile(0.5).item() if len(fit.order) else 0.0,
            "order_for": {f"{tol:g}": float(fit.order_for(tol).quantile(0.5)) for tol in TOLERANCES if len(fit.order)},
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

    @property
    def state_size(self) -> int:
        """`LayerFit.state_size` of all layers."""
        return sum(fit.state_size for fit in self.layers)

    def __str__(self) -> str:
        asked = "".join(f"{f'{tol:.0e}'.replace('e-0', 'e-'):>7}" for tol in TOLERANCES)
        lines = [
            "                  order        state   relative L2 error    Hankel norm, median   least order for a"
            "    largest",
            f"layer  filters  median  max   size      layer      worst    reached  AAK bound{asked[1:]}   |lambda|",
        ]
        for fit in self.layers:
            s = fit.summary()
            errors = f"{s['relative_error']:>9.1e}  {s['worst_filter_error']:>9.1e}"
            hankel = f"{s['hankel_error']:>9.1e}  {s['hankel_bound']:>9.1e}"
            if fit.exact:
                errors, hankel = f"{'exact':>9}  {'exact':>9}", 20 * " "
            most = fit.fit.singular_values.shape[1]
            wanted = [s["order_for"].get(f"{tol:g}", 0.0) for tol in TOLERANCES]
            orders = "".join(f"{f'>{most - 1}' if n >= most else f'{n:.0f}':>7}" for n in wanted)
            lines.append(
                f"{s['layer']:>5}  {s['channels']:>7}  {s['order_median']:>6.0f} {s['order_max']:>4}"
                f" {s['state_size']:>6}  {errors}  {hankel}{orders[1:]}  {s['radius']:>9.6f}"
            )
        return "\n".join(lines)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write report.json, and if matplotlib is there hankel.png, bounds.png and filters.png; return the paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "report.json"
        path.write_text(json.dumps(self.to_dict(), indent=1))
        try:
            from .plot import plot_bounds, plot_filters, plot_hankel
        except ImportError:
            return [path]
        pictures = {"hankel.png": plot_hankel, "bounds.png": plot_bounds, "filters.png": plot_filters}
        return [path, *(plot(self, folder / name) for name, plot in pictures.items())]
