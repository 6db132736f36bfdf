"""Pictures of models of an audio effect: errors by setting, spectrograms with the gain, gain curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.signal import ShortTimeFFT

from longconv.experiments.benchmarks.report import styles

if TYPE_CHECKING:
    from .effects import GainCurves, Scores

# Of a spectrogram, in samples, and of a level, in seconds.
_FRAME, _HOP, _LEVEL = 1024, 256, 0.01
# dB below the loudest that is drawn; and below full scale where a gain is not: noise would be divided by noise.
_FLOOR, _QUIET = -90.0, -60.0
_DEVICE = {"color": "black", "lw": 2.2}


def draw_errors(scores: Sequence[Scores], path: Path) -> None:
    """Draw the error-to-signal ratio against the settings into a PNG file, on a logarithmic axis."""
    names = list(dict.fromkeys(score.model for score in scores))
    settings = list(dict.fromkeys((tuple(score.settings.items()), score.trained) for score in scores))
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panel = figure.subplots()
    for i, name in enumerate(names):
        color, marker, _ = styles(i)
        values = [100 * score.errors["esr"] for score in scores if score.model == name]
        panel.semilogy(range(len(values)), values, color=color, marker=marker, lw=0.8, label=name)
    labels = [" / ".join(f"{value:g}" for _, value in setting) + ("" if known else "*") for setting, known in settings]
    panel.set_xticks(range(len(labels)), labels, rotation=60, ha="right", rotation_mode="anchor")
    panel.set(xlabel=" / ".join(scores[0].settings) + "   (* not trained on)", ylabel="error-to-signal ratio, %")
    _finish(panel)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
    figure.savefig(path, dpi=130)


def draw_recording(sounds: Mapping[str, NDArray[Any]], rate: int, title: str, path: Path) -> None:
    """Draw spectrograms of signals (frames, channels) and, below, the gain of each over "before", into a PNG file.

    Channels are averaged. Spectrograms are in dB below the loudest point of "before" or "target".
    """
    mono = {name: samples.mean(1).astype(np.float64) for name, samples in sounds.items()}
    figure = Figure(figsize=(9, 1.5 * len(mono) + 2.6), layout="constrained")
    panels = figure.subplots(len(mono) + 1, 1, sharex=True, height_ratios=[1] * len(mono) + [1.5])
    window = ShortTimeFFT(np.hanning(_FRAME), _HOP, rate)
    pictures = {name: np.square(np.abs(window.stft(samples))) for name, samples in mono.items()}
    loudest = max(pictures["before"].max(), pictures["target"].max())
    extent = (0, len(mono["before"]) / rate, 0, rate / 2000)
    for panel, (name, power) in zip(panels, pictures.items(), strict=False):
        decibels = 10 * np.log10(np.maximum(power / loudest, 1e-12))
        image = panel.imshow(decibels, origin="lower", aspect="auto", extent=extent, vmin=_FLOOR, vmax=0, cmap="magma")
        panel.set(ylabel="kHz")
        panel.set_title(name, loc="left", fontsize=9)
    figure.colorbar(image, ax=list(panels[:-1]), label="dB", aspect=40)
    levels = {name: _level(samples, rate) for name, samples in mono.items()}
    heard = levels["before"] > _QUIET
    times = _LEVEL * (np.arange(len(heard)) + 0.5)
    panel = panels[-1]
    for i, name in enumerate(name for name in mono if name != "before"):
        style = _DEVICE if name == "target" else {"color": styles(i)[0], "lw": 1.0}
        panel.plot(times, np.where(heard, levels[name] - levels["before"], np.nan), label=name, **style)
    panel.set(xlabel="s", ylabel="gain, dB")
    panel.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=4, fontsize=8, frameon=False)
    _finish(panel)
    figure.suptitle(title, x=0.01, ha="left")
    figure.savefig(path, dpi=130)


def draw_gain_curves(found: GainCurves, path: Path) -> None:
    """Draw levels that come out against those that go in into a PNG file, a panel for each setting."""
    count = len(found.curves)
    figure = Figure(figsize=(3.2 * count + 0.6, 3.9), layout="constrained")
    panels = figure.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0]
    for panel, setting, curves in zip(panels, found.settings, found.curves, strict=True):
        panel.plot(found.levels, found.levels, color="0.75", lw=0.8)
        for i, (name, curve) in enumerate(curves.items()):
            color, marker, _ = styles(i)
            style = _DEVICE if name == "target" else {"color": color, "marker": marker, "markersize": 4, "lw": 1.0}
            panel.plot(found.levels, curve, label=name, **style)
        panel.set(xlabel="in, dB", aspect="equal")
        panel.set_title(setting, loc="left", fontsize=9)
        _finish(panel)
    panels[0].set(ylabel="out, dB", ylim=(-65, 5), xlim=(-62, 2))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=5, frameon=False)
    figure.savefig(path, dpi=130)


def _level(samples: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    """Root mean squares of pieces of 10 ms, in dB of full scale."""
    size = round(_LEVEL * rate)
    pieces = samples[: len(samples) // size * size].reshape(-1, size)
    return 10 * np.log10(np.maximum(np.square(pieces).mean(1), 1e-12))


def _finish(panel: Any) -> None:
    panel.grid(color="0.9")
    panel.spines[["top", "right"]].set_visible(False)
