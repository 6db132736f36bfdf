"""The methods of `distill_filter` against each other, at equal order: `longconv bench distill`.

Error: a few filters of every family, as they are initialised, and as they were trained where `longconv bench quality`
has left models. Time: a whole layer of filters.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longconv.distill import METHODS, distill_filter
from longconv.filters import build_filter
from longconv.models import load_model

from .harness import cpu_threads
from .quality_models import OSCILLATORY, SMOOTH
from .report import append_rows, default_output, environment, styles

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
    from rich import box
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise ImportError(f"this benchmark needs {error.name}: pip install 'longconv[bench]'") from error

#: Filters as they are initialised.
FAMILIES: dict[str, dict[str, Any]] = {
    "hyena-smooth": SMOOTH,
    "hyena-oscillatory": OSCILLATORY,
    "sgconv": {"name": "sgconv"},
    "freeform": {"name": "freeform"},
    "freeform-decaying": {"name": "freeform", "modulate": True},
    "smpconv": {"name": "smpconv"},
    "s4d": {"name": "s4d"},
}

#: Seconds that a layer may take.
TARGET = 2.0


@dataclass(frozen=True)
class DistillRow:
    """One line of the results: a method at an order, on a family. The fields are the columns.

    Attributes:
        date: start of the run, UTC, ISO 8601 to the minute.
        device: model of the processor; `cpu_threads`, `torch`, `python`, `longconv` as in `report.Row`.
        family: of filters; `trained` whether they are of a trained model.
        taps: of each filter.
        method: of `distill_filter`, with so many `steps` if it is "gradient".
        order: real states of every filter, at most.
        filters: how many the errors are of.
        error_mean: relative L2 error, the mean over the filters; `error_median`, `error_max` likewise.
        bound_mean: what no recurrence of that order could beat, the mean.
        layer_filters: how many the time is of.
        layer_seconds: how long they took: the median of `repeats`, which ranged from `layer_seconds_min` to
            `layer_seconds_max`. That of "gradient" is that of a few steps, times `steps`.
    """

    date: str
    device: str
    cpu_threads: int
    torch: str
    python: str
    longconv: str
    family: str
    trained: bool
    taps: int
    method: str
    steps: int
    order: int
    filters: int
    error_mean: float
    error_median: float
    error_max: float
    bound_mean: float
    layer_filters: int
    repeats: int
    layer_seconds: float | None
    layer_seconds_min: float | None
    layer_seconds_max: float | None


def run(
    families: tuple[str, ...] = tuple(FAMILIES),
    methods: tuple[str, ...] = ("best", "hankel", "balanced", "rational", "gradient"),
    orders: tuple[int, ...] = (8, 16, 32),
    taps: int = 2048,
    filters: int = 8,
    layer_filters: int = 864,
    repeats: int = 3,
    gradient_steps: int = 30_000,
    folder: Path = Path("runs/quality"),
    seed: int = 0,
    threads: int | None = None,
    output: Path | None = None,
) -> list[DistillRow]:
    """Fit filters of several families by every method, at equal orders, and time a layer of them.

    Prints a table, appends its rows to a CSV file and draws a PNG beside it.

    Args:
        families: names of `FAMILIES`; trained filters of `folder` come after them.
        methods: of `distill_filter`. The first one is compared with the others.
        orders: real states of every filter.
        taps: of each filter, as initialised.
        filters: how many of a family the errors are of.
        layer_filters: how many a layer has, for the times; 0 for no times.
        repeats: timings of a layer, of which the median counts; methods take turns.
        gradient_steps: of the published method, which takes 30,000.
        folder: of `longconv bench quality`: the filters of the models there, if there are any.
        seed: of the filters.
        threads: CPU threads; by default what torch chooses.
        output: the CSV file. By default experiments/benchmarks/results/distill.csv of a source checkout, elsewhere
            longconv-bench-distill.csv in the current folder.

    Returns:
        The rows.
    """
    for name, value in (("taps", taps), ("filters", filters), ("repeats", repeats), ("gradient_steps", gradient_steps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if unknown := [name for name in methods if name not in METHODS]:
        raise ValueError(f"methods: unknown {', '.join(unknown)}; known: {', '.join(METHODS)}")
    if unknown := [name for name in families if name not in FAMILIES]:
        raise ValueError(f"families: unknown {', '.join(unknown)}; known: {', '.join(FAMILIES)}")
    output = output or default_output("distill")
    console = Console()
    rows: list[DistillRow] = []
    with cpu_threads(threads):
        context = environment(torch.device("cpu"), torch.get_num_threads())
        context.pop("memory")
        for family, trained, some, layer in _banks(families, taps, filters, layer_filters, folder, seed):
            for order in orders:
                new = []
                seconds = _time_layer(layer, methods, order, repeats, gradient_steps)
                for method in methods:
                    steps = gradient_steps if method == "gradient" else 0
                    with console.status(f"{family}, order {order}, {method}"):
                        options: dict[str, Any] = {"steps": steps} if steps else {}
                        report = distill_filter(some, method, order=order, **options)[1]
                    times = sorted(seconds.get(method, []))
                    new.append(
                        DistillRow(
                            **context,
                            family=family,
                            trained=trained,
                            taps=some.shape[1],
                            method=method,
                            steps=steps,
                            order=order,
                            filters=len(some),
                            error_mean=report.relative_error.mean().item(),
                            error_median=report.relative_error.median().item(),
                            error_max=report.relative_error.max().item(),
                            bound_mean=report.error_bound.mean().item(),
                            layer_filters=0 if layer is None else len(layer),
                            repeats=len(times),
                            layer_seconds=round(times[len(times) // 2], 3) if times else None,
                            layer_seconds_min=round(times[0], 3) if times else None,
                            layer_seconds_max=round(times[-1], 3) if times else None,
                        )
                    )
                append_rows(output, new)
                rows += new
    print_table(rows, console)
    plot(rows, output.with_suffix(".png"))
    console.print(f"{output}  {output.with_suffix('.png')}", highlight=False, soft_wrap=True)
    return rows


def _banks(
    families: Sequence[str], taps: int, filters: int, layer_filters: int, folder: Path, seed: int
) -> Iterator[tuple[str, bool, Tensor, Tensor | None]]:
    """Name, whether trained, some filters (D, L), and a layer of them to time or None."""
    for name in families:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layer = build_filter(FAMILIES[name], max(filters, layer_filters), taps)(taps).detach()
        # Spread over the channels, whose decays differ.
        some = layer[torch.linspace(0, len(layer) - 1, filters).long()]
        yield name, False, some, layer[:layer_filters] if layer_filters else None
    for path in sorted(folder.glob("*/model/config.json")):
        model = load_model(path.parent)
        limit = model.config.max_position_embeddings
        stages = [filter for block in model.base_model.layers for filter in block.mixer.long_filters]
        kernels = torch.cat([stage(limit).detach() for stage in stages])
        generator = torch.Generator().manual_seed(seed)
        yield path.parent.parent.name, True, kernels[torch.randperm(len(kernels), generator=generator)[:filters]], None


def _time_layer(
    layer: Tensor | None, methods: Sequence[str], order: int, repeats: int, gradient_steps: int
) -> dict[str, list[float]]:
    """Seconds for a layer by each method, in turns."""
    seconds: dict[str, list[float]] = {}
    if layer is None:
        return seconds
    few = min(5, gradient_steps)
    for _ in range(repeats):
        for method in methods:
            options: dict[str, Any] = {"steps": few} if method == "gradient" else {}
            started = time.perf_counter()
            distill_filter(layer, method, order=order, **options)
            took = time.perf_counter() - started
            seconds.setdefault(method, []).append(took * gradient_steps / few if options else took)
    return seconds


def print_table(rows: Sequence[DistillRow], console: Console) -> None:
    """Mean errors of the methods beside each other, the least in bold, and the seconds of a layer."""
    first = rows[0]
    methods = list(dict.fromkeys(row.method for row in rows))
    orders = list(dict.fromkeys(row.order for row in rows))
    where = f"{first.device}, {first.cpu_threads} CPU threads, torch {first.torch}, longconv {first.longconv}"

    def table(title: str, caption: str = "") -> Table:
        table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD)
        table.add_column("", no_wrap=True)
        for method in methods:
            table.add_column(method, justify="right", no_wrap=True)
        return table

    errors = table(f"mean relative L2 error at equal order, {first.date}\n{where}")
    for family, trained in dict.fromkeys((row.family, row.trained) for row in rows):
        mine = [row for row in rows if (row.family, row.trained) == (family, trained)]
        errors.add_section()
        errors.add_row(f"[bold]{family}[/]" + (", trained" if trained else ""))
        for order in orders:
            here = {row.method: row.error_mean for row in mine if row.order == order}
            cells = [f"{here[method]:.4g}" for method in methods]
            least = min(here.values())
            cells = [f"[bold]{c}[/]" if here[m] <= least else c for m, c in zip(methods, cells, strict=True)]
            errors.add_row(f"  order {order}", *cells)
    console.print(errors)
    timed = [row for row in rows if row.layer_seconds is not None]
    if not timed:
        return
    caption = "median (and largest) over the families; gradient: of a few steps, times the number of steps"
    times = table(f"seconds for {timed[0].layer_filters} filters of {timed[0].taps:,} taps", caption)
    for order in orders:
        cells = []
        for method in methods:
            took = sorted(r.layer_seconds for r in timed if (r.method, r.order) == (method, order) and r.layer_seconds)
            cells.append(f"{took[len(took) // 2]:.3g} ({took[-1]:.3g})")
        times.add_row(f"order {order}", *cells)
    console.print(times)


def plot(rows: Sequence[DistillRow], path: Path) -> None:
    """Draw the mean error against the order, a panel for every family, into a PNG file."""
    kinds = list(dict.fromkeys((row.family, row.trained) for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    orders = sorted({row.order for row in rows})
    columns = min(4, len(kinds))
    height = -(-len(kinds) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.7 * height + 0.8), layout="constrained")
    panels = figure.subplots(height, columns, squeeze=False).flat
    for panel in panels:
        panel.set_visible(False)
    for panel, (family, trained) in zip(figure.axes, kinds, strict=False):
        panel.set_visible(True)
        for i, method in enumerate(methods):
            color, marker, dash = styles(i)
            line = sorted(
                (r for r in rows if (r.family, r.trained, r.method) == (family, trained, method)), key=lambda r: r.order
            )
            x, y = [row.order for row in line], [max(row.error_mean, 1e-9) for row in line]
            panel.plot(x, y, color=color, marker=marker, ls=dash, lw=1.6, markersize=5, label=method)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.xaxis.set_major_locator(FixedLocator(orders))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        low, high = panel.get_ylim()
        if high < 10 * low:  # else the powers of ten are labels enough
            panel.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
        else:
            panel.yaxis.set_minor_formatter(NullFormatter())
        panel.tick_params(labelsize=7, which="both")
        panel.set_title(f"{family}, {'trained' if trained else 'as initialised'}", loc="left", fontsize=9)
        panel.grid(axis="y", color="0.85")
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("order: real states per filter", fontsize=9)
    figure.supylabel("mean relative L2 error", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
