"""Pictures of a distillation: the Hankel spectra, and filters before and after."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from .report import DistillReport


def plot_hankel(report: DistillReport, path: Path) -> Path:
    """Hankel singular values relative to the largest: median over the filters of a layer, and 10-90 % of them."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for n, fit in enumerate(report.layers):
        sigma = fit.fit.singular_values
        relative = (sigma / sigma[:, :1].clamp(min=torch.finfo(sigma.dtype).tiny)).clamp(min=1e-12)
        order = torch.arange(sigma.shape[1])
        label = f"layer {fit.layer}" + (f", stage {fit.stage}" if fit.stage else "")
        axes.semilogy(order, relative.median(0).values, color=f"C{n % 10}", label=label)
        low, high = relative.quantile(0.1, dim=0), relative.quantile(0.9, dim=0)
        axes.fill_between(order, low, high, color=f"C{n % 10}", alpha=0.15, linewidth=0)
        axes.axvline(fit.fit.order.double().mean().item(), color=f"C{n % 10}", linestyle=":", linewidth=1)
    axes.set(
        xlabel="index d (real states)",
        ylabel=r"$\sigma_{d+1} / \sigma_1$",
        title="Hankel singular values of the filters: median and 10-90 % range\n(dotted: mean order used)",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)
    return path


def plot_bounds(report: DistillReport, path: Path) -> Path:
    """Hankel-norm error of every filter against what no recurrence of its order could beat."""
    figure = Figure(figsize=(5.4, 5), layout="constrained")
    axes = figure.subplots()
    floor, lowest = 1e-12, 1.0
    for n, fit in enumerate(fit for fit in report.layers if not fit.exact):
        label = f"layer {fit.layer}" + (f", stage {fit.stage}" if fit.stage else "")
        bound, reached = fit.fit.hankel_bound.clamp(min=floor), fit.fit.hankel_error.clamp(min=floor)
        axes.loglog(bound, reached, ".", color=f"C{n % 10}", alpha=0.6, markersize=5, label=label)
        lowest = min([lowest, *bound.tolist(), *reached.tolist()])
    limits = (lowest / 2, 2)
    axes.plot(limits, limits, color="0.3", linewidth=1, label="as good as can be")
    axes.set(
        xlabel=r"AAK bound $\sigma_{d+1} / \sigma_1$",
        ylabel=r"reached: $\|H(k - \hat{k})\| / \|H(k)\|$",
        title="Hankel-norm error of each filter",
        xlim=limits,
        ylim=limits,
        aspect="equal",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)
    return path


def plot_filters(report: DistillReport, path: Path, filters_per_layer: int = 3) -> Path:
    """Some filters of each layer, the worst fitted among them: original taps, and the fit drawn over them."""
    layers = report.layers
    figure = Figure(figsize=(3.6 * filters_per_layer, 2.1 * len(layers) + 0.6), layout="constrained")
    grid = figure.subplots(len(layers), filters_per_layer, squeeze=False)
    for row, fit in zip(grid, layers, strict=True):
        by_error = fit.fit.relative_error.argsort()
        picks = by_error[torch.linspace(0, len(by_error) - 1, filters_per_layer).long()].tolist()
        for axes, d in zip(row, picks, strict=True):
            axes.plot(fit.kernel[d], color="0.65", linewidth=2.5, label="trained filter")
            axes.plot(fit.fitted[d], color="C3", linewidth=0.9, label="recurrence")
            error, order = fit.fit.relative_error[d].item(), int(fit.fit.order[d])
            axes.set_title(
                f"layer {fit.layer}, channel {d}: {order} state{'s' * (order != 1)}, error {error:.1e}", fontsize=8
            )
            axes.tick_params(labelsize=7)
            axes.set_xscale("symlog", linthresh=16)
    grid[0][0].legend(fontsize=7)
    for axes in grid[-1]:
        axes.set_xlabel("lag (samples)", fontsize=8)
    figure.savefig(path, dpi=130)
    return path
