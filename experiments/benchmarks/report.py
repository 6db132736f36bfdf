"""Results of benchmarks: the columns, where rows go, the CSV file, the table and the plot."""

import csv
import importlib.metadata
import itertools
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_type_hints

import torch

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
    from rich import box
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise ImportError(f"benchmarks need {error.name}: pip install 'longconv[bench]'") from error

Mode = Literal["forward", "forward+backward"]
MODES: tuple[Mode, ...] = ("forward", "forward+backward")


class Shape(NamedTuple):
    """Sizes of a case: batch, channels, time steps and filter taps."""

    B: int
    D: int
    L: int
    K: int

    def __str__(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self._asdict().items())


@dataclass(frozen=True)
class Timing:
    """Milliseconds over the repeats of one implementation."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Timing":
        """Summarise samples in milliseconds; at least one."""
        return cls(statistics.median(samples), min(samples), max(samples))

    @property
    def spread(self) -> float:
        """Slowest repeat over the median: 1 for a steady implementation."""
        return self.max / self.median


@dataclass(frozen=True)
class Row:
    """One line of a results file; the fields are its columns.

    Attributes:
        date: start of the run, UTC, ISO 8601 to the minute.
        device: model of the processor or GPU.
        cpu_threads: threads that torch may use on the CPU.
        torch: version; `python` and `longconv` likewise.
        implementation: name of the contestant.
        mode: "forward" or "forward+backward".
        B: batch, with D channels, L time steps and K filter taps.
        dtype: of the input; filters are float32, or float64 with a float64 input.
        memory: "reused" if calls could take what earlier ones had freed, "fresh" if it went back to the system before.
        repeats: timed calls behind the three times.
        status: "ok", or "wrong" for one that the gate refused, which then has no numbers.
        ms_median: milliseconds per call; `ms_min` and `ms_max` likewise.
        peak_extra_MB: 10^6 bytes allocated at the peak of a call beyond its inputs, the result included; None where
            it was not measured.
        ratio: median of this implementation over the median of ours in the same run; above 1, ours is faster.
    """

    date: str
    device: str
    cpu_threads: int
    torch: str
    python: str
    longconv: str
    implementation: str
    mode: Mode
    B: int
    D: int
    L: int
    K: int
    dtype: str
    memory: Literal["reused", "fresh"]
    repeats: int
    status: Literal["ok", "wrong"]
    ms_median: float | None
    ms_min: float | None
    ms_max: float | None
    peak_extra_MB: float | None
    ratio: float | None


def make_row(
    context: Mapping[str, Any],
    name: str,
    mode: Mode,
    shape: Shape,
    dtype: str,
    repeats: int,
    timing: Timing | None,
    ours: Timing,
    peak: float | None = None,
) -> Row:
    """Put a row together; `context` is `environment()`, and `timing` None stands for a wrong implementation."""
    return Row(
        **context,
        implementation=name,
        mode=mode,
        **shape._asdict(),
        dtype=dtype,
        repeats=repeats,
        status="wrong" if timing is None else "ok",
        ms_median=None if timing is None else round(timing.median, 4),
        ms_min=None if timing is None else round(timing.min, 4),
        ms_max=None if timing is None else round(timing.max, 4),
        peak_extra_MB=None if peak is None else round(peak, 2),
        ratio=None if timing is None else round(timing.median / ours.median, 3),
    )


def environment(device: torch.device, threads: int, fresh: bool = False) -> dict[str, Any]:
    """The columns of a row that say where, when and how it was measured."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "cpu_threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "longconv": importlib.metadata.version("longconv"),
        "memory": "fresh" if fresh else "reused",
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def default_output(name: str) -> Path:
    """Where the rows of benchmark `name` go: the results folder of a source checkout, else the current folder."""
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file():
        return root / "experiments" / "benchmarks" / "results" / f"{name}.csv"
    return Path(f"longconv-bench-{name}.csv")


def append_rows(path: Path, rows: Sequence[Any]) -> None:
    """Append rows, of one dataclass, to a CSV file; a new one, and folders on the way, are made with a header line.

    Raises:
        ValueError: the file has other columns. It is left as it was.
    """
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not check_columns(path, type(rows[0]))
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(rows[0])])
        if is_new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def check_columns(path: Path, row: type[Any]) -> bool:
    """Whether there is a results file, with something in it.

    Raises:
        ValueError: its columns are not the fields of the dataclass `row`.
    """
    if not path.exists() or path.stat().st_size == 0:
        return False
    columns = [field.name for field in fields(row)]
    with path.open(newline="") as file:
        header = next(csv.reader(file))
    if header != columns:
        raise ValueError(f"{path} has columns {', '.join(header)}; these rows have {', '.join(columns)}")
    return True


T = TypeVar("T")


def read_rows(path: Path, row: type[T]) -> list[T]:
    """Read a results file whose columns are the fields of the dataclass `row`."""
    kinds = get_type_hints(row)
    with path.open(newline="") as file:
        return [
            row(**{name: _value(text, kinds[name]) for name, text in line.items()}) for line in csv.DictReader(file)
        ]


def _value(text: str, kind: Any) -> Any:
    if type(None) in get_args(kind):
        return float(text) if text else None
    if kind is bool:
        return text == "True"
    return kind(text) if kind in (int, float) else text


def print_table(rows: Sequence[Row], console: Console) -> None:
    """Print rows of one run, a block for every shape and mode."""
    if not rows:
        return
    first = rows[0]
    where = f"{first.device}, {first.cpu_threads} CPU threads, {first.dtype}, {first.memory} memory"
    versions = f"torch {first.torch}, python {first.python}, longconv {first.longconv}, {first.date}"
    caption = "times in ms; ratio: median over that of the first; peak extra memory in MB, result included"
    table = Table(title=f"{where}\n{versions}", caption=caption, box=box.SIMPLE_HEAD)
    table.add_column("implementation", no_wrap=True)
    for heading in ("median", "min", "max", "max/\nmedian", "ratio", "peak\nMB"):
        table.add_column(heading, justify="right", no_wrap=True)
    blocks = itertools.groupby(rows, key=lambda row: (Shape(row.B, row.D, row.L, row.K), row.mode))
    for (shape, mode), block in blocks:
        table.add_section()
        table.add_row(f"[bold]L={shape.L} B={shape.B} D={shape.D}[/]" + (f" K={shape.K}" if shape.K != shape.L else ""))
        table.add_row(f"[bold]{mode}[/]")
        for row in block:
            peak = "" if row.peak_extra_MB is None else f"{row.peak_extra_MB:.1f}"
            if row.ms_median is None or row.ms_min is None or row.ms_max is None or row.ratio is None:
                table.add_row(f"  {row.implementation}", "[bold red]wrong[/]")
                continue
            timing = Timing(row.ms_median, row.ms_min, row.ms_max)
            times = [f"{ms:.3f}" if ms < 10 else f"{ms:.1f}" for ms in (timing.median, timing.min, timing.max)]
            table.add_row(f"  {row.implementation}", *times, f"{timing.spread:.2f}", f"{row.ratio:.2f}", peak)
    console.print(table)


# Ours first; colours that stay apart for colour-blind readers, and a marker each.
_STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#E69F00", "^"), ("#009E73", "D"), ("#CC79A7", "v"), ("#666666", "P")]


def styles(i: int) -> tuple[str, str, str]:
    """Colour, marker and line style of the i-th line of a plot; after the sixth they are dashed, and none like ours."""
    color, marker = _STYLES[i if i < len(_STYLES) else 1 + (i - len(_STYLES)) % (len(_STYLES) - 1)]
    return color, marker, "-" if i < len(_STYLES) else "--"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw median milliseconds against L on logarithmic axes into a PNG file, a panel for every mode and filter length.

    Thin bars go from the fastest to the slowest repeat. Rows without times are left out.
    """
    rows = [row for row in rows if row.ms_median is not None]
    if not rows:
        return
    names = list(dict.fromkeys(row.implementation for row in rows))
    lengths = sorted({row.L for row in rows})
    # A row of panels for filters as long as the sequence, and one for each fixed number of taps.
    taps = sorted({0 if row.K == row.L else row.K for row in rows}, key=lambda K: -K if K else -(10**12))
    figure = Figure(figsize=(11, 1.0 + 3.8 * len(taps)), layout="constrained")
    grid = figure.subplots(len(taps), len(MODES), sharey=True, squeeze=False)
    for (K, mode), panel in zip(itertools.product(taps, MODES), grid.flat, strict=True):
        here = [row for row in rows if row.mode == mode and (row.K == K if K else row.K == row.L)]
        for i, name in enumerate(names):
            line = sorted((row for row in here if row.implementation == name), key=lambda row: row.L)
            color, marker, dash = styles(i)
            x = [row.L * 2 ** (0.06 * (i - (len(names) - 1) / 2)) for row in line]  # side by side, so that bars show
            medians = [row.ms_median for row in line]
            panel.vlines(x, [row.ms_min for row in line], [row.ms_max for row in line], color=color, lw=0.9, alpha=0.7)
            width = 2.6 if i == 0 else 1.4
            panel.plot(
                x, medians, color=color, marker=marker, ls=dash, markersize=5, lw=width, label=name, zorder=9 - i
            )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.xaxis.set_major_locator(FixedLocator(lengths))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: length_label(value)))
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.set_title(f"{mode}, " + (f"K = {K:,} taps" if K else "K = L taps"), loc="left")
        panel.set_xlabel("L, time steps")
        panel.grid(axis="y", which="major", color="0.85")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in grid[:, 0]:
        panel.set_ylabel("ms per call: median, min to max")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    lines = -(-sum(len(label) + 8 for label in labels) // 130)  # of so many characters, or what is on the edge is cut
    figure.legend(handles, labels, loc="outside lower center", ncols=-(-len(names) // lines), frameon=False)
    first = rows[0]
    where = (
        f"{first.device}, {first.cpu_threads} CPU threads, {first.dtype}, {first.memory} memory, torch {first.torch}"
    )
    figure.suptitle(where, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def length_label(length: float) -> str:
    """A length as 4k or 2M if it is a multiple of such."""
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if length >= size and length % size == 0:
            return f"{length / size:g}{unit}"
    return f"{length:g}"
