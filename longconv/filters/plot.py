"""A picture of a filter: its taps over the lag, and what it does to each frequency."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .base import Filter

# Finer than the taps resolve, so that the curve between is seen; frequencies of a plot, whatever the length.
_LEAST_POINTS = 4096
_FLOOR_DB = -120.0


@torch.no_grad()
def plot_filter(
    filter: Filter,
    L: int,
    *,
    channels: Sequence[int] | None = None,
    ax: Sequence[Any] | None = None,
    path: str | Path | None = None,
) -> Any:
    """Draw the first `L` taps of some channels, and the magnitude of their frequency response in decibels.

    Args:
        filter: D channels.
        L: number of taps.
        channels: which rows of the kernel; default up to four of them, evenly spaced.
        ax: two matplotlib axes to draw in, for the taps and for the response; default a new figure.
        path: file to save the figure in, in the format of its suffix.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: a channel that there is not, or not two axes.
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_filter needs matplotlib: pip install 'longconv[train]'") from error
    taps = filter(L).detach().double().cpu()
    D = len(taps)
    rows = torch.linspace(0, D - 1, min(D, 4)).long().tolist() if channels is None else list(channels)
    if wrong := [d for d in rows if not 0 <= d < D]:
        raise ValueError(f"channels must be in 0..{D - 1}, got {wrong[0]}")
    if ax is None:
        in_time, in_frequency = Figure(figsize=(10, 3.6), layout="constrained").subplots(1, 2)
    elif len(ax) == 2:
        in_time, in_frequency = ax
    else:
        raise ValueError(f"ax must be two axes, got {len(ax)}")

    magnitude = torch.fft.rfft(taps, max(L, _LEAST_POINTS)).abs()
    decibels = (20 * magnitude.clamp(min=torch.finfo(taps.dtype).tiny).log10()).clamp(min=_FLOOR_DB)
    frequency = torch.linspace(0, 0.5, decibels.shape[-1])
    for d in rows:
        in_time.plot(taps[d], linewidth=1, label=f"channel {d}")
        in_frequency.plot(frequency, decibels[d], linewidth=1)
    in_time.set(xlabel="lag (samples)", ylabel="tap", title=type(filter).__name__)
    in_frequency.set(xlabel="frequency (cycles per sample)", ylabel="magnitude (dB)", title="frequency response")
    if rows:
        in_time.legend(fontsize="small")
    for axes in (in_time, in_frequency):
        axes.grid(alpha=0.3)
    figure = in_time.get_figure()
    if path is not None:
        figure.savefig(path, dpi=130)
    return figure
