"""Streaming an audio effect in real time, by block size: `longconv bench stream`."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from . import stream_contestants
from .harness import TOLERANCE, DisagreementError, cpu_threads, interleave
from .report import Timing, append_rows, check_columns, default_output, environment, length_label, styles
from .stream_contestants import OURS, Contestant

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
    from rich import box
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table
except ImportError as error:
    raise ImportError(f"benchmarks need {error.name}: pip install 'longconv[bench]'") from error

SAMPLE_RATE = 44100
# Shorter blocks are timed several at once, so many samples together.
AT_ONCE = 4096
# What the operators of PyTorch that ours calls are for.
_PARTS = {
    "convolution": (
        "aten::mkldnn_convolution",
        "aten::_slow_conv2d_forward",
        "aten::slow_conv_dilated2d",
        "aten::addmm",
    ),
    "PReLU": ("aten::_prelu_kernel",),
    "residual": ("aten::addcmul",),
    "copies": ("aten::copy_",),
}


@dataclass(frozen=True)
class StreamRow:
    """One contestant at one block size; the fields are the columns.

    Attributes:
        date: start of the run, UTC, ISO 8601 to the minute.
        device: model of the processor; `cpu_threads`, `torch`, `python`, `longconv` as in `report.Row`.
        model: the published one that all but the LSTM are.
        implementation: name of the contestant.
        parameters: of its model.
        block: samples at a time, at 44.1 kHz.
        repeats: timed rounds.
        status: "ok", or "wrong" for one whose stream differs from the model in float64, which has no numbers.
        ms_median: milliseconds per block; `ms_min` and `ms_max` likewise.
        real_time_factor: seconds of audio per second, by the median.
        ratio: median of this implementation over the median of ours; above 1, ours is faster.
    """

    date: str
    device: str
    cpu_threads: int
    torch: str
    python: str
    longconv: str
    model: str
    implementation: str
    parameters: int
    block: int
    repeats: int
    status: Literal["ok", "wrong"]
    ms_median: float | None
    ms_min: float | None
    ms_max: float | None
    real_time_factor: float | None
    ratio: float | None


def run(
    model: Literal["TCN-100-C", "TCN-300-C", "TCN-1000-C"] = "TCN-300-C",
    blocks: tuple[int, ...] = (64, 256, 1024, 2048, 4096, 16384, 65536),
    repeats: int = 15,
    threads: int | None = None,
    output: Path | None = None,
) -> list[StreamRow]:
    """Time a causal micro-TCN over a stream at 44.1 kHz on a CPU, by the number of samples in a block.

    Contestants: `StreamingModel`; the same model's `forward` over each block as a recording of its own ("offline"), and
    with a state handed on; the pytorch-tcn package in streaming mode; the published way, which computes the whole
    receptive field anew for each block; and the published LSTM baseline, another model. They run interleaved in one
    process after a warm-up. One whose stream differs from the model in float64 by more than 1e-5 (relative L2, without
    the mean) is not timed. Prints a table, and where ours spends its time; appends rows to a CSV file and draws a PNG.

    Args:
        model: the published model.
        blocks: samples in a block.
        repeats: timed rounds; blocks below 4,096 samples are timed as many at once as make 4,096.
        threads: CPU threads; by default what torch chooses.
        output: the CSV file. By default experiments/benchmarks/results/stream.csv of a source checkout, elsewhere
            longconv-bench-stream.csv in the current folder.

    Returns:
        A row for every block size and contestant.

    Raises:
        ValueError: a number below 1, or an existing CSV file with other columns.
        DisagreementError: ours is wrong.
    """
    for name, least in (("blocks", min(blocks, default=1)), ("repeats", repeats), ("threads", threads or 1)):
        if least < 1:
            raise ValueError(f"{name} must be at least 1, got {least}")
    output = default_output("stream") if output is None else output
    check_columns(output, StreamRow)
    console, rows = Console(), []
    with cpu_threads(threads) as used, Progress(console=console) as progress:
        context = {k: v for k, v in environment(torch.device("cpu"), used).items() if k != "memory"}
        entrants = stream_contestants.contestants(model)
        bar = progress.add_task("stream", total=len(set(blocks)) * (repeats + 2))
        for block in sorted(set(blocks)):
            progress.update(bar, description=f"blocks of {block:,}")
            timings = _contest(entrants, block, repeats, console, functools.partial(progress.advance, bar))
            rows += [_row(context, model, entrant, block, repeats, timings) for entrant in entrants]
        shares = {block: parts(entrants[0], block) for block in sorted(set(blocks))}
    print_table(rows, console)
    print_parts(shares, console)
    append_rows(output, rows)
    plot(rows, output.with_suffix(".png"))
    console.print(f"{len(rows)} rows appended to {output}; drawn in {output.with_suffix('.png')}", soft_wrap=True)
    return rows


def check(entrant: Contestant, block: int) -> None:
    """Compare three blocks of a stream with the model over them at once in float64 (offline: the first block).

    Raises:
        DisagreementError: they differ.
    """
    torch.manual_seed(block)
    x = 0.3 * torch.randn(1, 1, 3 * block)
    if isinstance(entrant, stream_contestants.Offline):
        x = x[..., :block]
    entrant.reset()
    y = torch.cat([entrant.process(piece) for piece in x.split(block, dim=2)], dim=2)
    expected = entrant.definition(x)
    mean = expected.mean()
    error = ((y - expected).norm() / (expected - mean).norm()).item()
    if y.shape != expected.shape or not error <= TOLERANCE[torch.float32]:
        raise DisagreementError(f"{entrant.name}, blocks of {block:,}: relative L2 error {error:.1e}")


def _contest(
    entrants: Sequence[Contestant], block: int, repeats: int, console: Console, tick: Callable[[], None]
) -> dict[str, Timing]:
    """Gate all, and time them in turns: milliseconds per block."""
    count = max(1, AT_ONCE // block)
    x = [0.3 * torch.randn(1, 1, block) for _ in range(count)]
    trusted: dict[str, Callable[[], object]] = {}
    for entrant in entrants:
        try:
            check(entrant, block)
        except DisagreementError as error:
            if entrant.name == OURS:
                raise
            console.print(f"wrong, so not timed: {error}", style="bold red", markup=False)
            continue
        trusted[entrant.name] = functools.partial(_process, entrant, x)
    timings = interleave(trusted, repeats, torch.device("cpu"), tick=tick)
    return {name: Timing(t.median / count, t.min / count, t.max / count) for name, t in timings.items()}


def _process(entrant: Contestant, blocks: list[Tensor]) -> None:
    for x in blocks:
        entrant.process(x)


def _row(
    context: dict[str, Any], model: str, entrant: Contestant, block: int, repeats: int, timings: dict[str, Timing]
) -> StreamRow:
    timing, ours = timings.get(entrant.name), timings[OURS]
    return StreamRow(
        **context,
        model=model,
        implementation=entrant.name,
        parameters=entrant.parameters,
        block=block,
        repeats=repeats,
        status="wrong" if timing is None else "ok",
        ms_median=None if timing is None else round(timing.median, 4),
        ms_min=None if timing is None else round(timing.min, 4),
        ms_max=None if timing is None else round(timing.max, 4),
        real_time_factor=None if timing is None else round(1e3 * block / SAMPLE_RATE / timing.median, 3),
        ratio=None if timing is None else round(timing.median / ours.median, 3),
    )


def parts(entrant: Contestant, block: int, calls: int = 5) -> dict[str, float]:
    """Fractions of a contestant's time by what it goes to, as PyTorch's profiler sees it; "rest" is calls, mostly."""
    x = [0.3 * torch.randn(1, 1, block)] * max(calls, AT_ONCE // block)
    _process(entrant, x)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        _process(entrant, x)
    events = found.events()
    total = sum(event.self_cpu_time_total for event in events)
    own = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    shares = {part: sum(own.get(name, 0.0) for name in names) / total for part, names in _PARTS.items()}
    return {**shares, "rest": 1 - sum(shares.values())}


def print_table(rows: Sequence[StreamRow], console: Console) -> None:
    """Print rows of one run, a block of the table for every block size."""
    first = rows[0]
    title = f"{first.model} at {SAMPLE_RATE:,} Hz on {first.device}, {first.cpu_threads} CPU threads\n"
    title += f"torch {first.torch}, python {first.python}, longconv {first.longconv}, {first.date}"
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        caption="speed: of real time; ratio: median over that of ours; then ms per block",
    )
    for heading, side in (("block", "right"), ("implementation", "left"), ("speed", "right"), ("ratio", "right"),
                          ("median", "right"), ("min", "right"), ("max", "right")):  # fmt: skip
        table.add_column(heading, justify=side, no_wrap=True)  # type: ignore[arg-type]
    before = None

    def shown(ms: float | None) -> str:
        return "" if ms is None else f"{ms:.2f}" if ms < 100 else f"{ms:.0f}"

    for row in rows:
        if row.block != before:
            table.add_section()
        start = f"{row.block:,}" if row.block != before else ""
        before = row.block
        if row.ms_median is None:
            table.add_row(start, row.implementation, "[bold red]wrong[/]")
            continue
        numbers = [shown(ms) for ms in (row.ms_median, row.ms_min, row.ms_max)]
        table.add_row(start, row.implementation, f"{row.real_time_factor:.1f}x", f"{row.ratio:.2f}", *numbers)
    console.print(table)


def print_parts(shares: dict[int, dict[str, float]], console: Console) -> None:
    """Print what ours spends its time on, by block size."""
    table = Table(title="where ours spends its time, by PyTorch's profiler", box=box.SIMPLE_HEAD)
    table.add_column("block", justify="right")
    for part in next(iter(shares.values())):
        table.add_column(part, justify="right")
    for block, share in shares.items():
        table.add_row(f"{block:,}", *(f"{100 * part:.0f}%" for part in share.values()))
    console.print(table)


def plot(rows: Sequence[StreamRow], path: Path) -> None:
    """Draw the real-time factor against the block size, both on logarithmic axes, into a PNG file."""
    rows = [row for row in rows if row.real_time_factor is not None]
    names = list(dict.fromkeys(row.implementation for row in rows))
    figure = Figure(figsize=(8.5, 5.4), layout="constrained")
    panel = figure.subplots()
    for i, name in enumerate(names):
        line = sorted((row for row in rows if row.implementation == name), key=lambda row: row.block)
        color, marker, dash = styles(i)
        factors: list[Any] = [row.real_time_factor for row in line]
        width = 2.6 if i == 0 else 1.4
        x = [row.block for row in line]
        panel.plot(x, factors, color=color, marker=marker, ls=dash, markersize=5, lw=width, label=name, zorder=9 - i)
    panel.axhline(1, color="0.4", lw=1, ls=":")
    panel.annotate("real time", (1, 1), (-4, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                   ha="right", color="0.4")  # fmt: skip
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.xaxis.set_major_locator(FixedLocator(sorted({row.block for row in rows})))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: length_label(value)))
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    panel.set_xlabel("block, samples at 44.1 kHz")
    panel.set_ylabel("seconds of audio per second")
    panel.grid(axis="y", color="0.85")
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    first = rows[0]
    figure.suptitle(f"{first.model}, {first.device}, {first.cpu_threads} CPU threads, torch {first.torch}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
