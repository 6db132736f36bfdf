"""The rows of `longconv bench lra`, their tables and their plot."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .lra_models import BASELINE
from .report import length_label, styles

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
    from rich import box
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise ImportError(f"benchmarks need {error.name}: pip install 'longconv[bench]'") from error

Status = Literal["ok", "wrong", "out of memory"]


@dataclass(frozen=True)
class StepRow:
    """Training steps of one layer at one length; the fields are the columns.

    Attributes:
        date: start of the run, UTC, ISO 8601 to the minute.
        device: model of the processor or GPU; `cpu_threads`, `torch`, `python`, `longconv` as in `report.Row`.
        precision: "bfloat16" under autocast, or "float32".
        compiled: whether the model went through torch.compile.
        layer: the mixer.
        options: of the mixer, as JSON.
        direction: "two-sided" or "causal".
        blocks: of the model, with `width` channels.
        mlp: channels of the MLPs, so that models have about the same number of parameters; 0 for none.
        parameters: how many numbers the model learns.
        L: length of the sequences, of which there are `batch` in a step.
        status: "ok"; "wrong" for a model that differs from itself in float64, and "out of memory", have no numbers.
        repeats: timed rounds.
        ms_median: milliseconds of a step; `ms_min` and `ms_max` likewise.
        steps_per_s: by the median; `tokens_per_s` likewise.
        peak_MB: 10^6 bytes that a step takes at its peak beside weights and optimiser states.
        speedup: ms_median of attention in the same run over this; None without attention.
    """

    date: str
    device: str
    cpu_threads: int
    torch: str
    python: str
    longconv: str
    precision: str
    compiled: bool
    layer: str
    options: str
    direction: str
    blocks: int
    width: int
    mlp: int
    parameters: int
    L: int
    batch: int
    status: Status
    repeats: int
    ms_median: float | None
    ms_min: float | None
    ms_max: float | None
    steps_per_s: float | None
    tokens_per_s: float | None
    peak_MB: float | None
    speedup: float | None


@dataclass(frozen=True)
class LoadRow:
    """A task's input pipeline beside one model; the fields are the columns.

    Attributes:
        date: and the others up to `longconv` as in `StepRow`.
        task: its name.
        source: "generated", "local folder", or "stand-in" for small generated data in the published format.
        rows: of the train split.
        workers: processes that load; with 0 the model waits while a batch is made.
        batch: sequences in a step.
        mean_length: steps of a padded sequence, on average.
        loader_rows_per_s: what the loader alone gives.
        layer: the mixer of the model, which has `blocks` of `width` channels.
        steps: of training that were timed.
        model_rows_per_s: what the model takes when its batches are there.
        rows_per_s: of training.
        waiting: share of the training time in which the model waits for a batch, 0 ... 1.
    """

    date: str
    device: str
    cpu_threads: int
    torch: str
    python: str
    longconv: str
    precision: str
    compiled: bool
    task: str
    source: str
    rows: int
    workers: int
    batch: int
    mean_length: float
    loader_rows_per_s: float
    layer: str
    blocks: int
    width: int
    steps: int
    model_rows_per_s: float
    rows_per_s: float
    waiting: float


def print_steps(rows: Sequence[StepRow], console: Console) -> None:
    """Print the rows of one run, a block for every length."""
    first = rows[0]
    compiled = ", compiled" if first.compiled else ""
    table = Table(
        title=f"training steps, {first.date}\n{_where(first)}, {first.precision}{compiled}\n"
        f"{first.blocks} blocks of {first.width} channels",
        caption="ms: forward, backward and AdamW; peak: MB beside weights and optimiser;\n"
        f"last column: times as fast as {BASELINE}; > causal, <> two-sided",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("layer", no_wrap=True)
    for heading in ("", "parameters", "ms", "max/\nmedian", "steps/s", "tokens/s", "peak\nMB", f"/ {BASELINE}"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (L, batch), block in itertools.groupby(rows, key=lambda row: (row.L, row.batch)):
        table.add_section()
        table.add_row(f"[bold]L={L} B={batch}[/]")
        for row in block:
            head = (f"  {row.layer}", "<>" if row.direction == "two-sided" else ">", f"{row.parameters:,}")
            if row.ms_median is None or row.ms_max is None or row.steps_per_s is None or row.tokens_per_s is None:
                table.add_row(*head, f"[bold red]{row.status}[/]")
                continue
            table.add_row(
                *head,
                f"{row.ms_median:.1f}",
                f"{row.ms_max / row.ms_median:.2f}",
                f"{row.steps_per_s:.3g}",
                f"{row.tokens_per_s:,.0f}",
                "" if row.peak_MB is None else f"{row.peak_MB:,.0f}",
                "" if row.speedup is None else f"{row.speedup:.2f}",
            )
    console.print(table)


def print_loads(rows: Sequence[LoadRow], console: Console) -> None:
    """Print the rows of one run, a block for every task."""
    first = rows[0]
    table = Table(
        title=f"input pipeline, {first.date}\n{_where(first)}, {first.precision}\n"
        f"{first.blocks} blocks of {first.width} channels, {first.workers} loading processes",
        caption="rows/s: of the model with its batches at hand, and of training; waiting: share of the training time",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("", no_wrap=True)
    for heading in ("model\nrows/s", "training\nrows/s", "waiting,\n%"):
        table.add_column(heading, justify="right", no_wrap=True)
    for task, block in itertools.groupby(rows, key=lambda row: row.task):
        mine = list(block)
        one = mine[0]
        table.add_section()
        table.add_row(f"[bold]{task}[/] ({one.source})")
        table.add_row(
            f"loader alone: {one.loader_rows_per_s:,.0f} rows/s\n{one.batch} rows of {one.mean_length:,.0f} steps"
        )
        for row in mine:
            table.add_row(
                f"  {row.layer}",
                f"{row.model_rows_per_s:,.1f}",
                f"{row.rows_per_s:,.1f}",
                f"{100 * row.waiting:.2f}",
            )
    console.print(table)


def _where(row: StepRow | LoadRow) -> str:
    return f"{row.device}, {row.cpu_threads} CPU threads, torch {row.torch}, longconv {row.longconv}"


def plot(rows: Sequence[StepRow], path: Path) -> None:
    """Draw tokens per second and peak memory against L on logarithmic axes into a PNG file.

    Thin bars go from the slowest to the fastest step. Rows without times are left out.
    """
    rows = [row for row in rows if row.tokens_per_s is not None]
    if not rows:
        return
    names = list(dict.fromkeys(row.layer for row in rows))
    lengths = sorted({row.L for row in rows})
    figure = Figure(figsize=(11.5, 5.2), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    for i, name in enumerate(names):
        line = sorted((row for row in rows if row.layer == name), key=lambda row: row.L)
        color, marker, dash = ("black", "o", "-") if name == BASELINE else styles(i)
        look: dict[str, Any] = {
            "color": color, "marker": marker, "ls": dash, "markersize": 5, "lw": 2.6 if name == BASELINE else 1.4,
            "label": name if line[0].direction == "two-sided" else f"{name} (causal)",
        }  # fmt: skip
        x = [row.L * 2 ** (0.05 * (i - (len(names) - 1) / 2)) for row in line]  # side by side, so that bars show
        ends = [[1e3 * row.L * row.batch / ms for row in line if (ms := getattr(row, e))] for e in ("ms_max", "ms_min")]
        speed.vlines(x, *ends, color=color, lw=0.9, alpha=0.7)
        speed.plot(x, [row.tokens_per_s for row in line], **look)
        known = [(at, row.peak_MB) for at, row in zip(x, line, strict=True) if row.peak_MB]
        if known:
            memory.plot(*zip(*known, strict=True), **look)
    speed.set_title("Training", loc="left")
    speed.set_ylabel("tokens per second: median, slowest to fastest step")
    memory.set_title("Memory of a step, beside weights and optimiser", loc="left")
    memory.set_ylabel("MB at the peak")
    for panel in (speed, memory):
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.xaxis.set_major_locator(FixedLocator(lengths))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: length_label(value)))
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        panel.set_xlabel("L, steps of a sequence")
        panel.grid(axis="y", which="major", color="0.85")
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = speed.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(8, len(names)), frameon=False)
    first = rows[0]
    compiled = ", compiled" if first.compiled else ""
    tokens = sorted({row.L * row.batch for row in rows})
    each = f"{tokens[-1]:,}" if len(tokens) == 1 else f"{tokens[0]:,} to {tokens[-1]:,}"
    figure.suptitle(
        f"{first.device}, {first.cpu_threads} CPU threads, {first.precision}{compiled}, torch {first.torch}: "
        f"{first.blocks} blocks of {first.width} channels, {each} tokens in a step",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
