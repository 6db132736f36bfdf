"""What was reached when: validation accuracy against the time of training, from the logs of runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

# Colours that stay apart for colour-blind readers; after the sixth, lines are dashed.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run.

    Attributes:
        run: name of its folder.
        task: name of the task.
        layer: the pattern of mixers.
        minutes: of training, at each evaluation.
        accuracy: on the validation split, in percent.
    """

    run: str
    task: str
    layer: str
    minutes: tuple[float, ...]
    accuracy: tuple[float, ...]


def curves(folder: Path) -> list[Curve]:
    """The curves of all runs on these tasks in a folder and those inside it, smoke runs apart; by task and layer.

    Raises:
        ValueError: there is none.
    """
    found = []
    for log in sorted(folder.rglob("log.jsonl")):
        options = log.with_name("train.json")
        if "smoke" in log.parts or not options.exists():
            continue
        config = json.loads(options.read_text())
        if not config.get("task", "").startswith("lra/"):
            continue
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        seen = [line for line in lines if line.get("split") == "validation" and "accuracy" in line]
        if seen:
            minutes = tuple(line["seconds"] / 60 for line in seen)
            accuracy = tuple(100 * line["accuracy"] for line in seen)
            found.append(Curve(log.parent.name, config["task"], config["mixers"], minutes, accuracy))
    if not found:
        raise ValueError(f"no logs of classifiers are in {folder}: give the folder of the runs as --logs")
    return sorted(found, key=lambda curve: (curve.task, curve.layer, curve.run))


def draw(found: Sequence[Curve], path: Path) -> None:
    """Draw curves into a PNG file: a panel for each task, a colour for each layer."""
    tasks = list(dict.fromkeys(curve.task for curve in found))
    layers = sorted({curve.layer for curve in found})
    columns = min(2, len(tasks))
    lines = -(-len(tasks) // columns)
    figure = Figure(figsize=(5.5 * columns + 1, 3.6 * lines + 0.8), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flat
    for panel, task in zip(grid, tasks, strict=False):
        for curve in (curve for curve in found if curve.task == task):
            i = layers.index(curve.layer)
            panel.plot(
                curve.minutes,
                curve.accuracy,
                color=_COLORS[i % len(_COLORS)],
                ls="-" if i < len(_COLORS) else "--",
                marker="o",
                markersize=3,
                lw=1.6,
                label=curve.layer,
            )
        panel.set_title(task, loc="left")
        panel.set_xlabel("minutes of training")
        panel.grid(axis="y", color="0.85")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in grid[len(tasks) :]:
        panel.set_visible(False)
    for panel in grid[: len(tasks) : columns]:
        panel.set_ylabel("validation accuracy, %")
    handles = {
        label: handle for panel in grid for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    named = {layer: handles[layer] for layer in layers}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=min(8, len(layers)), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
