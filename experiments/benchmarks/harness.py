"""What every benchmark of an operator shares: oracle gate, interleaved timing, peak memory, CSV rows, table, plot.

A benchmark is a module with two functions, which `compare` and the memory subprocess call:

    implementations(device) -> list[Implementation]     # the first one is ours
    make_case(shape, dtype, device) -> Case             # inputs of unit scale

Nothing is timed before its outputs and gradients have been compared with the float64 reference of its case.
"""

import csv
import ctypes
import functools
import gc
import importlib
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
    from rich import box
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table
except ImportError as error:
    raise ImportError(f"benchmarks need {error.name}: pip install 'longconv[bench]'") from error

#: Largest relative L2 error against the float64 reference, by dtype of the input: the numbers of tests/numerics.py.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}

Mode = Literal["forward", "forward+backward"]
MODES: tuple[Mode, ...] = ("forward", "forward+backward")


class DisagreementError(RuntimeError):
    """An implementation differs from the float64 reference by more than the tolerance of its dtype."""


class Shape(NamedTuple):
    """Sizes of a case: batch, channels, time steps and filter taps."""

    B: int
    D: int
    L: int
    K: int


@dataclass(frozen=True)
class Implementation:
    """One contestant.

    Attributes:
        name: as it appears in the table, the CSV file and the plot.
        call: takes the inputs of a case, returns the output (B, D, L).
        differentiable: whether autograd goes through `call`; if not, only the forward pass is measured.
    """

    name: str
    call: Callable[..., Tensor]
    differentiable: bool = True

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What can be measured of it."""
        return MODES if self.differentiable else MODES[:1]


@dataclass(frozen=True)
class Case:
    """Inputs of one measurement.

    Attributes:
        shape: the sizes.
        inputs: what every implementation is called with, and gets gradients for; floating point.
        gradient: (B, D, L) incoming gradient of the output.
        reference: the same function as the implementations', differentiable, for inputs converted to float64.
    """

    shape: Shape
    inputs: tuple[Tensor, ...]
    gradient: Tensor
    reference: Callable[..., Tensor]


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
    repeats: int
    status: Literal["ok", "wrong"]
    ms_median: float | None
    ms_min: float | None
    ms_max: float | None
    peak_extra_MB: float | None
    ratio: float | None


# --- Gate -------------------------------------------------------------------------------------------------------------


def evaluate(call: Callable[..., Tensor], case: Case, mode: Mode) -> tuple[Tensor, ...]:
    """Call once: the output, followed with "forward+backward" by the gradient for every input."""
    if mode == "forward":
        with torch.no_grad():
            return (call(*case.inputs),)
    leaves = [x.detach().requires_grad_() for x in case.inputs]
    y = call(*leaves)
    return (y.detach(), *torch.autograd.grad(y, leaves, case.gradient))


def expected_results(case: Case) -> tuple[Tensor, ...]:
    """Output and input gradients of the case's reference, in float64."""
    wide = Case(case.shape, tuple(x.double() for x in case.inputs), case.gradient.double(), case.reference)
    return evaluate(wide.reference, wide, "forward+backward")


def check_against_oracle(implementation: Implementation, case: Case, mode: Mode, expected: Sequence[Tensor]) -> None:
    """Evaluate `implementation` once and compare.

    Args:
        implementation: the contestant.
        case: its inputs; the dtype of the first one decides the tolerance.
        mode: whether gradients are compared as well.
        expected: what `expected_results(case)` gave.

    Raises:
        DisagreementError: a wrong shape, something not finite, or a relative L2 error beyond `TOLERANCE`.
    """
    dtype = case.inputs[0].dtype
    actual = evaluate(implementation.call, case, mode)
    names = ["output", *(f"gradient of input {i}" for i in range(len(case.inputs)))]
    for name, ours, exact in zip(names, actual, expected, strict=False):  # without gradients `actual` is shorter
        where = f"{implementation.name}, {mode}, {_describe(case.shape)}: {name}"
        if ours.shape != exact.shape:
            raise DisagreementError(f"{where} has shape {tuple(ours.shape)} instead of {tuple(exact.shape)}")
        error = (torch.linalg.vector_norm(ours.double() - exact) / torch.linalg.vector_norm(exact)).item()
        if not error <= TOLERANCE[dtype]:  # so that NaN is refused too
            raise DisagreementError(f"{where} has relative L2 error {error:.1e}, allowed is {TOLERANCE[dtype]:.1e}")


# --- Time -------------------------------------------------------------------------------------------------------------


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call: between two events of the current stream on a GPU, by the wall clock on a CPU."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        with torch.cuda.device(device):
            start.record()
            call()
            end.record()
        end.synchronize()
        return start.elapsed_time(end)
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def interleave(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    *,
    warmup: int = 2,
    tick: Callable[[], None] = lambda: None,
    clock: Callable[[Callable[[], object], torch.device], float] = time_call,
) -> dict[str, Timing]:
    """Time the calls in turns, so that a busy spell of the machine meets all of them.

    Args:
        calls: by name. The one that starts a round changes from round to round.
        repeats: timed rounds; at least 1.
        device: where the calls run.
        warmup: rounds before these.
        tick: called after every round.
        clock: measures one call, in milliseconds.

    Returns:
        The times of every call, by name, in the order of `calls`.
    """
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        for round_ in range(-warmup, repeats):
            first = round_ % len(names) if names else 0
            for name in names[first:] + names[:first]:
                elapsed = clock(calls[name], device)
                if round_ >= 0:
                    samples[name].append(elapsed)
            tick()
    finally:
        if collects:
            gc.enable()
    return {name: Timing.of(samples[name]) for name in names}


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[int]:
    """Let torch use that many CPU threads inside the context (None: as many as it does anyway); yields the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


# --- Memory -----------------------------------------------------------------------------------------------------------

# Large blocks go back to the system the moment they are freed, so that the resident set is what is really in use.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MKL_DISABLE_FAST_MM": "1"}


def peak_extra_MB(
    module: str, implementation: str, mode: Mode, shapes: Sequence[Shape], dtype: str, device: str, threads: int
) -> list[float | None]:
    """Peak memory of one call beyond what its inputs take, measured in a fresh process.

    On a GPU it is what torch allocates; on a CPU the growth of the resident set, after a call at a tiny shape has
    loaded the libraries. Results and constants that an implementation keeps are part of it.

    Args:
        module: full name of the benchmark module, see the top of this file.
        implementation: name of one of its contestants.
        mode: what is called.
        shapes: measured one after the other in that process.
        dtype: of the input, such as "float32".
        device: "cpu" or "cuda".
        threads: CPU threads.

    Returns:
        10^6 bytes for every shape; None where the system has no `/proc/self/clear_refs`, or (with a warning that
        quotes the error) if the process failed.
    """
    request = json.dumps([module, implementation, mode, shapes, dtype, device, threads])
    # -P: the folder we are in may hold modules, such as the source tree's `kernels`, that shadow installed ones
    code = "import sys; from longconv.experiments.benchmarks.harness import _serve_memory; _serve_memory(sys.argv[1])"
    command = [sys.executable, "-P", "-c", code, request]
    process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **_MALLOC}, check=False)
    if process.returncode != 0:
        warnings.warn(
            f"no peak memory of {implementation}, {mode}: exit status {process.returncode}\n{process.stderr[-2000:]}",
            stacklevel=2,
        )
        return [None] * len(shapes)
    return json.loads(process.stdout.splitlines()[-1])


def _serve_memory(request: str) -> None:
    module, name, mode, shapes, dtype, device, threads = json.loads(request)
    torch.set_num_threads(threads)
    benchmark = importlib.import_module(module)
    (implementation,) = (i for i in benchmark.implementations(device) if i.name == name)
    evaluate(implementation.call, benchmark.make_case(Shape(1, 2, 64, 64), getattr(torch, dtype), device), mode)
    peaks = []
    for shape in shapes:
        case = benchmark.make_case(Shape(*shape), getattr(torch, dtype), device)
        peaks.append(_peak_of(functools.partial(evaluate, implementation.call, case, mode), torch.device(device)))
        del case
    print(json.dumps(peaks))


def _peak_of(call: Callable[[], object], device: torch.device) -> float | None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    reset = Path("/proc/self/clear_refs")
    if not os.access(reset, os.W_OK):
        return None
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc: what earlier calls freed goes back to the system
        libc.malloc_trim(0)
    reset.write_text("5")  # the high-water mark starts anew at the present size
    before = _status_bytes("VmRSS")
    call()
    return (_status_bytes("VmHWM") - before) / 1e6


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


# --- A whole comparison -----------------------------------------------------------------------------------------------


def compare(
    module: str,
    shapes: Sequence[Shape],
    *,
    dtype: str,
    device: str,
    repeats: int,
    threads: int | None,
    memory: bool,
    console: Console,
) -> list[Row]:
    """Gate, time and measure the implementations of a benchmark module at every shape, with a progress bar.

    Args:
        module: full name of the benchmark module, see the top of this file.
        shapes: what to measure at.
        dtype: of the input, such as "float32".
        device: "cpu" or "cuda".
        repeats: timed calls of each implementation.
        threads: CPU threads; None for torch's own choice.
        memory: measure the peaks as well.
        console: where progress, and refusals of the gate, are printed.

    Returns:
        A row for every shape, mode and implementation, in that order.

    Raises:
        DisagreementError: if ours, the first implementation, is wrong. Another one that is wrong is reported on the
            console and gets a row without numbers.
    """
    benchmark = importlib.import_module(module)
    contestants: list[Implementation] = benchmark.implementations(device)
    where = torch.device(device)
    timings: dict[tuple[Shape, Mode], dict[str, Timing | None]] = {}
    with cpu_threads(threads) as used, Progress(console=console) as progress:
        context = environment(where, used)
        bar = progress.add_task("", total=len(shapes) * len(MODES) * (repeats + 2))
        for shape in shapes:
            progress.update(bar, description=_describe(shape))
            case = benchmark.make_case(shape, getattr(torch, dtype), device)
            expected = expected_results(case)
            for mode in MODES:
                trusted: dict[str, Callable[[], object]] = {}
                timings[shape, mode] = {}
                for contestant in contestants:
                    if mode not in contestant.modes:
                        continue
                    timings[shape, mode][contestant.name] = None
                    try:
                        check_against_oracle(contestant, case, mode, expected)
                    except DisagreementError as error:
                        if contestant is contestants[0]:
                            raise
                        console.print(f"wrong, so not timed: {error}", style="bold red", markup=False)
                        continue
                    trusted[contestant.name] = functools.partial(evaluate, contestant.call, case, mode)
                timings[shape, mode] |= interleave(trusted, repeats, where, tick=lambda: progress.advance(bar))
        peaks: dict[tuple[Shape, Mode, str], float | None] = {}
        if memory:
            jobs = [(contestant.name, mode) for contestant in contestants for mode in contestant.modes]
            bar = progress.add_task("peak memory", total=len(jobs))
            for name, mode in jobs:
                right = [shape for shape in shapes if timings[shape, mode][name] is not None]
                measured = peak_extra_MB(module, name, mode, right, dtype, device, used)
                peaks |= {(shape, mode, name): peak for shape, peak in zip(right, measured, strict=True)}
                progress.advance(bar)
    rows = []
    for (shape, mode), by_name in timings.items():
        ours = by_name[contestants[0].name]
        assert ours is not None
        for name, timing in by_name.items():
            peak = peaks.get((shape, mode, name))
            rows.append(make_row(context, name, mode, shape, dtype, repeats, timing, ours, peak))
    return rows


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


def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """The columns of a row that say where and when it was measured."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "cpu_threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "longconv": importlib.metadata.version("longconv"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _describe(shape: Shape) -> str:
    return ", ".join(f"{name}={size}" for name, size in shape._asdict().items())


# --- Results ----------------------------------------------------------------------------------------------------------


def default_output(name: str) -> Path:
    """Where the rows of benchmark `name` go: the results folder of a source checkout, else the current folder."""
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file():
        return root / "experiments" / "benchmarks" / "results" / f"{name}.csv"
    return Path(f"longconv-bench-{name}.csv")


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Append rows to a CSV file; a new one, and folders on the way, are made with a header line.

    Raises:
        ValueError: the file has other columns. It is left as it was.
    """
    columns = [field.name for field in fields(Row)]
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists() or path.stat().st_size == 0
    if not is_new:
        with path.open(newline="") as file:
            header = next(csv.reader(file))
        if header != columns:
            raise ValueError(f"{path} has columns {', '.join(header)}; these rows have {', '.join(columns)}")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if is_new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def print_table(rows: Sequence[Row], console: Console) -> None:
    """Print rows of one run, a block for every shape and mode."""
    if not rows:
        return
    first = rows[0]
    where = f"{first.device}, {first.cpu_threads} CPU threads, {first.dtype}"
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


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw median milliseconds against L on logarithmic axes into a PNG file, a panel for every mode.

    The band around a line goes from the fastest to the slowest repeat. Rows without times are left out.
    """
    rows = [row for row in rows if row.ms_median is not None]
    if not rows:
        return
    names = list(dict.fromkeys(row.implementation for row in rows))
    lengths = sorted({row.L for row in rows})
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, len(MODES), sharey=True)
    for panel, mode in zip(panels, MODES, strict=True):
        for i, name in enumerate(names):
            line = sorted((r for r in rows if (r.implementation, r.mode) == (name, mode)), key=lambda r: r.L)
            color, marker = _STYLES[i % len(_STYLES)]
            x = [row.L for row in line]
            panel.fill_between(x, [r.ms_min for r in line], [r.ms_max for r in line], color=color, alpha=0.10, lw=0)
            width = 2.6 if i == 0 else 1.4
            medians = [row.ms_median for row in line]
            panel.plot(x, medians, color=color, marker=marker, markersize=5, lw=width, label=name, zorder=9 - i)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.xaxis.set_major_locator(FixedLocator(lengths))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.set_title(mode, loc="left")
        panel.set_xlabel("L, time steps")
        panel.grid(axis="y", which="major", color="0.85")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("ms per call (median; band: min to max)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), frameon=False)
    first = rows[0]
    figure.suptitle(f"{first.device}, {first.cpu_threads} CPU threads, {first.dtype}, torch {first.torch}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
