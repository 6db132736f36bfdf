"""Pictures of evaluations: bits per byte by context, and needles found by context and depth."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from longconv.tasks.extras import require
from longconv.tasks.lm.evaluation import Scores
from longconv.tasks.lm.needle import NeedleResult


def plot_contexts(scores: Mapping[int, Scores], path: Path, trained: int | None = None) -> Path:
    """Bits per byte for each context, and by the number of tokens that a prediction saw.

    trained: the context up to which the model was trained, drawn as a line.
    """
    figure = require("matplotlib.figure").Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    contexts = sorted(scores)
    left.plot(contexts, [scores[context].metrics()["bits_per_byte"] for context in contexts], "o-", color="C0")
    left.set(xlabel="context (tokens)", ylabel="bits per byte", title="Length extrapolation")
    left.set_xticks(contexts, [f"{context:,}" for context in contexts])
    for n, context in enumerate(contexts):
        rows = scores[context].curve()
        middle = [np.sqrt(row["from"] * row["to"]) for row in rows]
        right.plot(middle, [row["bits_per_byte"] for row in rows], ".-", color=f"C{n % 10}", label=f"{context:,}")
    right.set(xlabel="tokens seen by the prediction", ylabel="bits per byte", title="By position, for each context")
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
        if trained is not None:
            axes.axvline(trained, color="0.3", linestyle=":", linewidth=1)
    left.set_xticks(contexts, [f"{context:,}" for context in contexts])
    figure.savefig(path, dpi=130)
    return path


def plot_needle(result: NeedleResult, path: Path) -> Path:
    """Two heat maps, depth by context: exact answers, and the mean rank of the right one."""
    width = 3 + 1.1 * len(result.contexts)
    figure = require("matplotlib.figure").Figure(
        figsize=(2 * width, 1.6 + 0.5 * len(result.depths)), layout="constrained"
    )
    panels = [
        ("exact answers", result.exact.T, (0, 1), "viridis", "{:.0%}"),
        (f"mean rank among {result.candidates}", result.rank.T, (1, result.candidates), "viridis_r", "{:.1f}"),
    ]
    for axes, (title, values, (low, high), colours, form) in zip(figure.subplots(1, 2), panels, strict=True):
        image = axes.imshow(values, aspect="auto", vmin=low, vmax=high, cmap=colours)
        axes.set(xlabel="context (tokens)", ylabel="depth of the needle", title=title)
        axes.set_xticks(range(len(result.contexts)), [f"{context:,}" for context in result.contexts])
        axes.set_yticks(range(len(result.depths)), [f"{depth:g}%" for depth in result.depths])
        for (row, column), value in np.ndenumerate(values):
            bright = sum(image.to_rgba(value)[:3]) > 1.5
            colour = "black" if bright else "white"
            axes.text(column, row, form.format(value), ha="center", va="center", color=colour, fontsize="small")
        figure.colorbar(image, ax=axes)
    figure.savefig(path, dpi=130)
    return path
