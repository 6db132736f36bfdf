"""`longconv report lra`: our accuracies on the Long Range Arena beside the published ones, from the table of runs."""

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from longconv.experiments import recipes, results
from longconv.experiments.recipes.lra.published import MORE_TASKS, PUBLISHED, TASKS
from longconv.experiments.recipes.recipe import planned_steps

from . import lra_plot

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
NAMES = TASKS | MORE_TASKS
# Options that say how long to train and on which copy of the data, how often to look, and how to compute the same
# faster or in less memory.
_SAME_RECIPE = {
    *("steps", "epochs", "minutes", "data_dir", "evaluate_every", "evaluate_batches"),
    *("compile", "gradient_checkpointing", "pad_multiple"),
}
LEGEND = """Test accuracy in percent, of the weights with the best validation accuracy; of several seeds the mean, and
the best. *: trained on a part of the sequences that the recipe asks for, the share follows. †: with options that are
not the recipe's. –: not reported; ✗: no better than chance. Published results are on the released files; ours on
ListOps and Pathfinder are on data generated here, unless data_dir is among a run's changes."""


@dataclass(frozen=True)
class Score:
    """What a layer reached on a task: runs that differ in their seeds alone.

    Attributes:
        rows: the runs, one or more, each with a test accuracy.
        share: of the sequences that the recipe asks for, how many the shortest of them was trained on; at most 1.
        changed: see `is_changed`.
    """

    rows: tuple[results.Row, ...]
    share: float
    changed: bool

    @property
    def accuracies(self) -> list[float]:
        """Test accuracies, in percent."""
        return [row.test_accuracy for row in self.rows if row.test_accuracy is not None]

    @property
    def validation(self) -> float:
        """Mean validation accuracy, in percent, by which runs are chosen."""
        return statistics.fmean(row.validation_accuracy or 0.0 for row in self.rows)

    @property
    def whole(self) -> bool:
        """Whether the recipe was carried out (a last batch that is not full may be left out)."""
        return self.share > 0.995

    def __str__(self) -> str:
        text = f"{statistics.fmean(self.accuracies):.2f}{'' if self.whole else '*'}{'†' if self.changed else ''}"
        if not self.whole:
            text += f" ({_percent(self.share)})"
        if len(self.rows) > 1:
            text += f" best {max(self.accuracies):.2f} of {len(self.rows)}"
        return text


def run(
    *,
    results_files: tuple[Path, ...] = (),
    markdown: Path | None = None,
    plot: Path | None = None,
    logs: Path = Path("runs"),
) -> None:
    """Print what was reached on the Long Range Arena, beside what is published.

    Args:
        results_files: tables of runs; default the one that came with longconv, and yours.
        markdown: put the tables into this file, between its markers, or make it.
        plot: draw validation accuracy against the time of training into this PNG file.
        logs: folder of runs, whose logs are drawn.
    """
    files = results_files or tuple(dict.fromkeys((results.SHIPPED, results.default_path())))
    rows = [row for file in files for row in results.read(file) if not row.smoke]
    console = Console()
    print_tables(rows, console)
    if markdown is not None:
        write_markdown(rows, markdown)
        console.print(f"tables: {markdown}")
    if plot is not None:
        lra_plot.draw(lra_plot.curves(logs), plot)
        console.print(f"plot: {plot}")


def scores(rows: Iterable[results.Row]) -> dict[tuple[str, str, str], Score]:
    """The score for each family of recipes ("" for runs without), task and layer.

    Runs of equal options are put together. Where there are several kinds, those who did all that the recipe asks for go
    before others, then those with its options, then the best on the validation split.
    """
    found: dict[tuple[str, str, str], Score] = {}
    done = [row for row in rows if row.test_accuracy is not None]

    def kind(row: results.Row) -> tuple[str, str, str, str]:
        return row.recipe.partition(".")[0], row.task, row.layer, row.recipe_hash

    for (family, task, layer, _), group in itertools.groupby(sorted(done, key=kind), kind):
        same = tuple(group)
        score = Score(same, min(share(row) for row in same), any(is_changed(row) for row in same))
        best = found.get((family, task, layer))
        if best is None or _rank(score) > _rank(best):
            found[family, task, layer] = score
    return found


def _rank(score: Score) -> tuple[bool, bool, float]:
    return score.whole, not score.changed, score.validation


def share(row: results.Row) -> float:
    """How much of what its recipe asks for, in sequences or minutes, a run was trained on, at most 1.

    Of its own plan, for one without a recipe.
    """
    if row.recipe in recipes.RECIPES:
        config = recipes.get(row.recipe)
        asked = planned_steps(config) * config.batch_size * config.accumulate
        if not asked:
            assert config.minutes is not None
            return min(1.0, row.seconds / 60 / config.minutes)
        # Of the last batch of an epoch some sequences may be missing.
        return min(1.0, row.sequences / asked)
    return min(1.0, row.steps / row.planned_steps) if row.planned_steps else float(row.complete)


def is_changed(row: results.Row) -> bool:
    """Whether a run of a recipe had options of its own, those apart that leave it the same recipe."""
    return bool(row.recipe) and bool(row.changed_options - _SAME_RECIPE)


def tables(rows: Sequence[results.Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and cells of each table, for the terminal and for markdown alike."""
    found = scores(rows)
    made = [
        ("Long Range Arena", ["", *TASKS.values(), "average"], _beside(found, tuple(TASKS), average=True)),
        ("Other sequences", ["", *MORE_TASKS.values()], _beside(found, tuple(MORE_TASKS), average=False)),
    ]
    for family in sorted({family for family, _, _ in found} - {"lra"}):
        tasks = sorted({task for of, task, _ in found if of == family}, key=list(NAMES).index)
        layers = sorted({layer for of, _, layer in found if of == family})
        cells = [[layer, *(str(found.get((family, task, layer), "–")) for task in tasks)] for layer in layers]
        title = f"Recipes {family}, of other sizes than published" if family else "Runs without a recipe"
        made.append((title, ["", *(NAMES[task] for task in tasks)], cells))
    if rows:
        made.append(("Runs", list(_RUN_COLUMNS), [_run_cells(row) for row in sorted(rows, key=lambda row: row.date)]))
    return made


def _beside(found: dict[tuple[str, str, str], Score], tasks: tuple[str, ...], average: bool) -> list[list[str]]:
    """Published models that were tried on one of the tasks, each with our rows of the same layer right below."""
    cells, left = [], dict.fromkeys(layer for family, task, layer in sorted(found) if family == "lra" and task in tasks)
    last = {published.layer: published.model for published in PUBLISHED if set(tasks) & published.accuracy.keys()}
    for published in PUBLISHED:
        if not set(tasks) & published.accuracy.keys():
            continue
        numbers = [_number(published.accuracy.get(task), task in published.accuracy) for task in tasks]
        mean = [_number(published.average, True) if published.average else "–"] if average else []
        cells.append([published.model, *numbers, *mean])
        if published.layer in left and last[published.layer] == published.model:
            cells.append(_ours(found, published.layer, tasks, average))
            left.pop(published.layer)
    return cells + [_ours(found, layer, tasks, average) for layer in left]


def _ours(found: dict[tuple[str, str, str], Score], layer: str, tasks: tuple[str, ...], average: bool) -> list[str]:
    mine = [found.get(("lra", task, layer)) for task in tasks]
    cells = [f"**ours: {layer}**", *("–" if score is None else str(score) for score in mine)]
    if not average:
        return cells
    means = [statistics.fmean(score.accuracies) for score in mine if score is not None]
    partial = any(score is not None and not score.whole for score in mine)
    return [*cells, f"{statistics.fmean(means):.2f}{'*' if partial else ''}" if len(means) == len(tasks) else "–"]


def _number(accuracy: float | None, reported: bool) -> str:
    return "–" if not reported else "✗" if accuracy is None else f"{accuracy:.2f}"


_RUN_COLUMNS = (
    *("date", "recipe", "seed", "steps", "share", "val.", "test", "params", "min.", "changes"),
    "device",
)


def _run_cells(row: results.Row) -> list[str]:
    planned = "" if row.planned_steps in (None, row.steps) else f" of {row.planned_steps:,}"
    return [
        row.date[:10],
        row.recipe or f"{row.task}, {row.layer}",
        str(row.seed),
        f"{row.steps:,}{planned}{', interrupted' if row.test_accuracy is None else ''}",
        _percent(share(row)),
        _number(row.validation_accuracy, row.validation_accuracy is not None),
        _number(row.test_accuracy, row.test_accuracy is not None),
        f"{row.parameters:,}",
        f"{row.seconds / 60:.1f}",
        ", ".join(sorted(row.changed_options)) if row.recipe else "",
        row.device,
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:.2g}%"


def print_tables(rows: Sequence[results.Row], console: Console) -> None:
    """Print the tables; our rows stand out."""
    for title, columns, cells in tables(rows):
        console.print(title, style="bold")
        if title == "Runs" and console.width < 140:
            kept = [i for i, column in enumerate(columns) if column not in ("date", "val.", "params", "device")]
            columns, cells = [columns[i] for i in kept], [[line[i] for i in kept] for line in cells]
        table = Table(box=box.SIMPLE_HEAD, collapse_padding=True)
        for i, column in enumerate(columns):
            table.add_column(
                column,
                justify="left" if i == 0 or title == "Runs" else "right",
                no_wrap=i == 0 or (title == "Runs" and column not in ("changes", "device")),
            )
        for line in cells:
            ours = line[0].startswith("**")
            table.add_row(line[0].strip("*"), *line[1:], style="bold green" if ours else None)
        console.print(table)
    console.print(LEGEND.replace("\n", " "), style="dim")
    if not any(row.recipe for row in rows):
        console.print("no run of a recipe is in the table yet: longconv train lra lists recipes", style="dim")


def markdown_text(rows: Sequence[results.Row]) -> str:
    """The tables in markdown, and the sources of what is published."""
    parts = [f"Filled by `longconv report lra --markdown`. {_escape(LEGEND)}\n"]
    for title, columns, cells in tables(rows):
        lines = [columns, ["---"] * len(columns), *([line[0], *map(_escape, line[1:])] for line in cells)]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"**{title}**\n\n{body}\n")
    sources = "; ".join(f"{published.model}: {published.source}" for published in PUBLISHED)
    parts.append(f"Published numbers are from: {sources}.\n")
    return "\n".join(parts)


def _escape(text: str) -> str:
    """Text with its asterisks, for markdown."""
    return text.replace("*", "\\*")


def write_markdown(rows: Sequence[results.Row], path: Path) -> None:
    """Put the tables between the markers in a file, or make it.

    Raises:
        ValueError: there is such a file, without markers.
    """
    text = path.read_text() if path.exists() else f"{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no {BEGIN} and {END} to put the tables between")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{begin}\n{markdown_text(rows)}{end}{after}")
