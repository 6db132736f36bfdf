"""What linear classifiers reach on a task of the Long Range Arena: `longconv bench lra-baselines`.

The classifiers are in `longconv.experiments.lra_baselines`; here are the options, the table and the rows of the file.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from longconv.experiments.lra_baselines import baselines
from longconv.tasks import get
from longconv.tasks.extras import require
from longconv.training.config import JsonOptions

from .lra_data import check_tasks
from .report import append_rows, check_columns, default_output

try:
    from rich import box
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise ImportError(f"this benchmark needs {error.name}: pip install 'longconv[bench]'") from error


@dataclass(frozen=True)
class BaselineRow:
    """One line of the results: a classifier on a task; the fields are the columns.

    Attributes:
        longconv: version; `sklearn` likewise.
        task: its name.
        options: of the task, as JSON; folders are left out.
        classes: how many there are.
        features: and the others as in `longconv.experiments.lra_baselines.Baseline`.
    """

    longconv: str
    sklearn: str
    task: str
    options: str
    classes: int
    features: str
    dimensions: int
    strength: float | None
    train_rows: int
    validation_rows: int
    test_rows: int
    train: float
    validation: float
    test: float
    test_low: float
    test_high: float
    seconds: float


def run(
    task: str = "lra/listops",
    sizes: tuple[int, int, int] | None = None,
    seed: int | None = None,
    difficulty: Literal["easy", "intermediate", "hard"] | None = None,
    options: JsonOptions | None = None,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    output: Path | None = None,
) -> list[BaselineRow]:
    """Fit logistic regressions on features of a task that take no reading of a sequence as a whole.

    Counts of tokens and of bigrams, ListOps' root operator; pixels, their statistics, the distance of Pathfinder's
    discs; and the most frequent class. Prints a table and appends its rows to a CSV file. Accuracies of models are to
    be read against these.

    Args:
        task: its name, such as lra/listops, lra/pathfinder32 or lra/digits.
        sizes: rows of the train, validation and test split, of a task that generates them; default as published.
        seed: of the data.
        difficulty: of Pathfinder.
        options: other options of the task, as JSON: '{"config": {"max_length": 128, "min_length": 30}}' are the
            expressions of `lra-small.listops.sgconv`.
        data_dir: folder of a task that reads files.
        cache_dir: where its rows are kept; default longconv's cache.
        output: the CSV file. By default experiments/benchmarks/results/lra-baselines.csv of a source checkout,
            elsewhere longconv-bench-lra-baselines.csv in the current folder.

    Returns:
        A row for each classifier.

    Raises:
        ImportError: without scikit-learn.
        ValueError: no such task, or an existing CSV file with other columns.
        TypeError: an option that the task does not have.
    """
    check_tasks((task,))
    require("sklearn", "lra")
    output = default_output("lra-baselines") if output is None else output
    check_columns(output, BaselineRow)
    settings: dict[str, Any] = {"sizes": sizes, "seed": seed, "difficulty": difficulty}
    settings = {name: value for name, value in settings.items() if value is not None} | (options or {})
    folders = {name: folder for name, folder in (("data_dir", data_dir), ("cache_dir", cache_dir)) if folder}
    opened = get(task, **settings, **folders)
    console = Console()
    console.width = max(console.width, 100)
    with console.status(task) as status:
        found = baselines(opened, lambda line: status.update(f"{task}: {line}"))
    rows = [
        BaselineRow(
            longconv=version("longconv"),
            sklearn=version("scikit-learn"),
            task=task,
            options=json.dumps(settings, sort_keys=True),
            classes=opened.n_classes,
            **asdict(baseline),
        )
        for baseline in found
    ]
    append_rows(output, rows)
    print_table(rows, console)
    console.print(f"{len(rows)} rows appended to {output}", soft_wrap=True)
    return rows


def print_table(rows: Sequence[BaselineRow], console: Console) -> None:
    """Print the rows of one task, accuracies in percent."""
    first = rows[0]
    table = Table(
        title=f"{first.task} {first.options}\n{first.train_rows:,} rows to train on, {first.test_rows:,} to test, "
        f"{first.classes} classes",
        caption="accuracy in %, with Wilson's 95% interval for the test rows; penalty chosen by validation",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("logistic regression on", no_wrap=True)
    for heading in ("numbers", "1 /\npenalty", "train", "valid.", "test", "95%", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.features if row.dimensions else f"({row.features})",
            f"{row.dimensions:,}" if row.dimensions else "",
            "" if row.strength is None else f"{row.strength:g}",
            *(f"{100 * share:.1f}" for share in (row.train, row.validation, row.test)),
            f"{100 * row.test_low:.1f}–{100 * row.test_high:.1f}",
            f"{row.seconds:.1f}",
        )
    console.print(table)
