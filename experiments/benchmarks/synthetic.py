"""What mixers reach on synthetic tasks at growing lengths: `longconv bench synthetic`.

Each point is a run of the recipe `synthetic.TASK.MIXER` at that length. Points whose row is in the file are not run
again, so a sweep that is ended is gone on with by the next one.
"""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longconv.experiments.recipes import synthetic
from longconv.experiments.results import recipe_hash
from longconv.training import SyntheticConfig, train
from longconv.training.synthetic import ANSWERS

from .report import append_rows, check_columns, default_output, length_label, read_rows, styles

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
    from rich import box
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise ImportError(f"this benchmark needs {error.name}: pip install 'longconv[bench]'") from error


@dataclass(frozen=True)
class SyntheticRow:
    """One run; the fields are the columns.

    Attributes:
        date: when it ended, UTC.
        longconv: version; `torch` likewise.
        device: where it was trained.
        task: name of the task.
        mixer: of the recipe `synthetic.TASK.MIXER`.
        length: of the sequences.
        vocab_size: ids.
        seed: of the weights and of the order of the data.
        recipe_hash: of the options that decide what is learnt, but the seed; see `longconv.experiments.results`.
        parameters: trained numbers of the model.
        steps: updates that were made, and `best_step` those of the weights with the best validation accuracy.
        seconds: of training.
        chance: accuracy of a guess.
        validation: accuracy, of the best weights; `test` likewise.
        rows_right: share of the test rows without a wrong answer.
        by_distance: JSON, [low, high, answers, accuracy] of the test answers at distances low … high.
    """

    date: str
    longconv: str
    torch: str
    device: str
    task: str
    mixer: str
    length: int
    vocab_size: int
    seed: int
    recipe_hash: str
    parameters: int
    steps: int
    best_step: int
    seconds: float
    chance: float
    validation: float
    test: float
    rows_right: float
    by_distance: str


def run(
    task: str = "recall",
    mixers: tuple[str, ...] = ("attention", "hyena", "sgconv", "hyena-attention"),
    lengths: tuple[int, ...] = (64, 128, 256, 512),
    seeds: tuple[int, ...] = (0,),
    steps: int | None = None,
    minutes: float | None = None,
    runs: Path = Path("runs/bench-synthetic"),
    output: Path | None = None,
) -> list[SyntheticRow]:
    """Train mixers on a synthetic task at several lengths; print a table, append rows to a CSV file, draw a plot.

    Runs whose rows the file has, of the same options, are not made again. The plot, accuracy against length, is drawn
    beside the file, from all its rows of the task.

    Args:
        task: recall, mqar, induction, copying, selective_copying or noisy_recall.
        mixers: attention, hyena, multi_hyena, sgconv, multires, tcnca, mega or hyena-attention.
        lengths: of the sequences.
        seeds: of the weights and of the order of the data.
        steps: updates; default the recipe's.
        minutes: end a run after so many.
        runs: folder for the runs.
        output: the CSV file. By default experiments/benchmarks/results/synthetic.csv of a source checkout,
            elsewhere longconv-bench-synthetic.csv in the current folder.

    Returns:
        The rows that were asked for, old and new.

    Raises:
        ValueError: there is no such task or mixer, or the file has other columns.
    """
    output = default_output("synthetic") if output is None else output
    known = read_rows(output, SyntheticRow) if check_columns(output, SyntheticRow) else []
    console = Console()
    wanted = []
    for length in lengths:
        for mixer in mixers:
            for seed in seeds:
                config = synthetic.configuration(task, mixer, length)
                asked: dict[str, Any] = {"seed": seed, "steps": steps, "minutes": minutes, "quiet": True}
                changes = {name: value for name, value in asked.items() if value is not None}
                folder = runs / f"{task}-{mixer}-{length}-{seed}"
                wanted.append((mixer, dataclasses.replace(config, output=folder, **changes)))
                wanted[-1][1].check()
    rows = []
    for mixer, config in wanted:
        row = next((row for row in known if _same(row, mixer, config)), None)
        if row is None:
            with console.status(f"{config.task}, {mixer}, length {config.length}, seed {config.seed}"):
                row = measure(mixer, config)
            append_rows(output, [row])
        rows.append(row)
    print_table(rows, console)
    every = [row for row in read_rows(output, SyntheticRow) if row.task == f"synthetic/{task}"]
    plot(every, output.with_name(f"{output.stem}-{task}.png"))
    console.print(f"rows: {output}\nplot: {output.with_name(f'{output.stem}-{task}.png')}", soft_wrap=True)
    return rows


def measure(mixer: str, config: SyntheticConfig) -> SyntheticRow:
    """Train as `config` says; `mixer` is what the row calls it."""
    result = train(config)
    answers = json.loads((Path(config.output) / ANSWERS).read_text())
    cells = [[cell["low"], cell["high"], cell["count"], cell["accuracy"]] for cell in answers["by_distance"]]
    return SyntheticRow(
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        longconv=result.versions["longconv"],
        torch=result.versions["torch"],
        device=result.device,
        task=config.task,
        mixer=mixer,
        length=result.task.length,
        vocab_size=result.task.vocab_size,
        seed=config.seed,
        recipe_hash=recipe_hash(config),
        parameters=result.parameters,
        steps=result.steps,
        best_step=result.best_step,
        seconds=round(result.seconds, 1),
        chance=result.task.chance,
        validation=result.metrics["accuracy"],
        test=result.metrics["test_accuracy"],
        rows_right=answers["row_accuracy"],
        by_distance=json.dumps(cells),
    )


def _same(row: SyntheticRow, mixer: str, config: SyntheticConfig) -> bool:
    asked = (config.task, mixer, config.length, config.seed, recipe_hash(config))
    return (row.task, row.mixer, row.length, row.seed, row.recipe_hash) == asked


def print_table(rows: Sequence[SyntheticRow], console: Console) -> None:
    """Print test accuracies in percent, a line for each mixer and a column for each length; of seeds the mean."""
    lengths = sorted({row.length for row in rows})
    table = Table(title=f"{rows[0].task}: test accuracy, %", caption=f"chance {rows[0].chance:.1%}")
    table.box = box.SIMPLE_HEAD
    table.add_column("mixer", no_wrap=True)
    for length in lengths:
        table.add_column(length_label(length), justify="right")
    for mixer in dict.fromkeys(row.mixer for row in rows):
        cells = []
        for length in lengths:
            found = [100 * row.test for row in rows if (row.mixer, row.length) == (mixer, length)]
            cells.append(f"{statistics.fmean(found):.1f}" if found else "")
        table.add_row(mixer, *cells)
    console.print(table)


def plot(rows: Sequence[SyntheticRow], path: Path) -> None:
    """Draw test accuracy against length into a PNG file: a line through the means of each mixer, a point for each run.

    Rows are of one task; of rows with several hashes those of the last one for each mixer and length are drawn.
    """
    last = {(row.mixer, row.length): row.recipe_hash for row in rows}
    rows = [row for row in rows if last[row.mixer, row.length] == row.recipe_hash]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    panel = figure.subplots()
    for i, mixer in enumerate(dict.fromkeys(row.mixer for row in rows)):
        color, marker, dash = styles(i)
        points = sorted((row.length, 100 * row.test) for row in rows if row.mixer == mixer)
        lengths = sorted({length for length, _ in points})
        means = [statistics.fmean(y for at, y in points if at == length) for length in lengths]
        panel.plot(lengths, means, color=color, ls=dash, lw=1.6)
        panel.plot(*zip(*points, strict=True), color=color, marker=marker, ls="none", markersize=5)
        panel.plot([], [], color=color, ls=dash, lw=1.6, marker=marker, markersize=5, label=mixer)
    panel.axhline(100 * rows[-1].chance, color="0.5", ls=":", lw=1, label="chance")
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator(sorted({row.length for row in rows})))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: length_label(value)))
    panel.set(xlabel="L, tokens", ylabel="test accuracy, %", ylim=(-3, 103))
    panel.set_title(f"{rows[-1].task}, {rows[-1].vocab_size:,} ids", loc="left")
    panel.grid(axis="y", color="0.85")
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
