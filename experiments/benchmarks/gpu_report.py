"""Results of the benchmark of `fft_conv` on a GPU: the columns, the table of targets, the plot."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from rich import box
from rich.console import Console
from rich.table import Table

from longconv import __version__

from . import report
from .gpu_contestants import FFT, OURS, RFFT
from .gpu_points import FLASHFFTCONV_MS, FULL_ROWS, PYTORCH_MS, Point, targets
from .report import MODES, Mode, Timing, length_label, styles
from .roofline import Rates, Work

Status = Literal["ok", "wrong", "failed", "out of memory"]


@dataclass(frozen=True)
class GpuRow:
    """One line of a results file; the fields are its columns.

    Attributes:
        date: when the point was measured, UTC, ISO 8601 to the minute.
        device: model of the GPU.
        torch: version; `triton`, `python` and `longconv` likewise.
        implementation: name of the contestant.
        form: "circular" (L = FFT size) or "causal" (L = half of it).
        mode: "forward" or "forward+backward".
        gated: whether there are two gates.
        dtype: of input, gates and output.
        fft_size: N.
        B: batch, with D channels and L time steps; there are as many taps.
        repeats: timed calls.
        status: "ok"; "wrong" for one that differs from the float64 reference, "failed" for one that raised, or
            "out of memory": these have no times.
        ms_median: milliseconds of the GPU per call; `ms_min` and `ms_max` likewise.
        ms_wall: milliseconds of the clock on the wall per call, in a row of calls: more than `ms_median` where
            launching the kernels takes longer than running them.
        ms_scaled: `ms_wall` scaled to B = 64, D = 768, as published times are.
        ratio: `ms_median` over that of ours; above 1, ours is faster.
        inputs_GB: 10^9 bytes of u, k and gates.
        peak_extra_GB: 10^9 bytes allocated beyond the inputs at the peak of a call, the result included. Forward that
            is a call that will be differentiated.
        floor_ms: the roofline floor.
        floor_share: `floor_ms` over `ms_median`.
        copy_TBps: 10^12 bytes per second of a large copy, read and written ones counted, in this run.
        matmul_TFLOPs: 10^12 operations per second of a large matrix product in `dtype`, in this run.
    """

    date: str
    device: str
    torch: str
    triton: str
    python: str
    longconv: str
    implementation: str
    form: str
    mode: Mode
    gated: bool
    dtype: str
    fft_size: int
    B: int
    D: int
    L: int
    repeats: int
    status: Status
    ms_median: float | None
    ms_min: float | None
    ms_max: float | None
    ms_wall: float | None
    ms_scaled: float | None
    ratio: float | None
    inputs_GB: float
    peak_extra_GB: float | None
    floor_ms: float
    floor_share: float | None
    copy_TBps: float
    matmul_TFLOPs: float

    @property
    def total_GB(self) -> float | None:
        """Memory at the peak of a call, inputs included."""
        return None if self.peak_extra_GB is None else self.inputs_GB + self.peak_extra_GB


class Result(NamedTuple):
    """What was measured of one contestant; without times unless `status` is "ok"."""

    status: Status
    timing: Timing | None = None
    wall: float | None = None
    peak_GB: float | None = None


def gpu_environment(device: torch.device) -> dict[str, Any]:
    """The columns of a row that say where, when and with what it was measured."""
    import triton

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "longconv": __version__,
    }


def make_rows(
    context: dict[str, Any],
    point: Point,
    mode: Mode,
    results: dict[str, Result],
    repeats: int,
    inputs_GB: float,
    work: Work,
    rates: Rates,
) -> list[GpuRow]:
    """Put the rows of one point and mode together; `results` by contestant, ours first."""
    floor = work.floor_ms(rates)
    ours = results[OURS].timing
    rows = []
    for name, (status, timing, wall, peak) in results.items():
        rows.append(
            GpuRow(
                **context,
                implementation=name,
                form=point.form,
                mode=mode,
                gated=point.gated,
                dtype=point.dtype,
                fft_size=point.fft_size,
                B=point.B,
                D=point.D,
                L=point.L,
                repeats=repeats if timing else 0,
                status=status,
                ms_median=_digits(timing.median if timing else None),
                ms_min=_digits(timing.min if timing else None),
                ms_max=_digits(timing.max if timing else None),
                ms_wall=_digits(wall),
                ms_scaled=_digits(None if wall is None else wall * FULL_ROWS / (point.B * point.D)),
                ratio=_digits(timing.median / ours.median if timing and ours else None),
                inputs_GB=float(f"{inputs_GB:.5g}"),
                peak_extra_GB=_digits(peak),
                floor_ms=float(f"{floor:.5g}"),
                floor_share=_digits(floor / timing.median if timing else None),
                copy_TBps=float(f"{rates.copy / 1e12:.4g}"),
                matmul_TFLOPs=float(f"{rates.matmul / 1e12:.4g}"),
            )
        )
    return rows


def _digits(x: float | None) -> float | None:
    return None if x is None else float(f"{x:.5g}")


def read_rows(path: Path) -> list[GpuRow]:
    """Read a results file."""
    return report.read_rows(path, GpuRow)


def latest(rows: Sequence[GpuRow], like: GpuRow) -> list[GpuRow]:
    """Of rows measured on the same device with the same versions as `like`, the last one of each kind.

    So runs that share out the points make one table.
    """
    place = ("device", "torch", "triton", "longconv")
    found: dict[tuple[Any, ...], GpuRow] = {}
    for row in rows:
        if all(getattr(row, name) == getattr(like, name) for name in place):
            found[row.form, row.gated, row.dtype, row.fft_size, row.mode, row.implementation] = row
    return list(found.values())


# --- The table of targets ---------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """A number that was reached, and what it should be at least; None where there is none."""

    reached: float | None
    target: float | None

    def __str__(self) -> str:
        if self.reached is None:
            return "" if self.target is None else f"?/{self.target:g}"
        if self.target is None:
            return f"{self.reached:.2f}"
        mark = "[green]✓[/]" if self.reached >= self.target else "[bold red]✗[/]"
        return f"{self.reached:.2f}/{self.target:g} {mark}"


class Summary(NamedTuple):
    """A line of the table of targets: the circular gated convolution in bfloat16 at one FFT size."""

    fft_size: int
    B: int
    D: int
    ms: float | None
    fft_ms: float | None
    flash: Verdict
    fft: Verdict
    rfft: Verdict
    backward: Verdict
    memory: Verdict
    floor: Verdict


def summarise(rows: Sequence[GpuRow]) -> list[Summary]:
    """Compare what was reached with the targets, for every FFT size of the headline case."""
    headline = [row for row in rows if row.form == "circular" and row.gated and row.dtype == "bfloat16"]
    return [_summary(n, [r for r in headline if r.fft_size == n]) for n in sorted({row.fft_size for row in headline})]


def _summary(n: int, rows: Sequence[GpuRow]) -> Summary:
    by_key = {(row.mode, row.implementation): row for row in rows}
    aim = targets(n)

    def get(name: str, field: str, mode: Mode = "forward") -> float | None:
        row = by_key.get((mode, name))
        return None if row is None else getattr(row, field)

    def backward(name: str) -> float | None:
        both, forward = get(name, "ms_median", "forward+backward"), get(name, "ms_median")
        return None if both is None or forward is None else both - forward

    return Summary(
        n,
        rows[0].B,
        rows[0].D,
        get(OURS, "ms_scaled"),
        get(FFT, "ms_scaled"),
        Verdict(_over(FLASHFFTCONV_MS.get(n), get(OURS, "ms_scaled")), 1.0 if n in FLASHFFTCONV_MS else None),
        Verdict(get(FFT, "ratio"), aim.fft),
        Verdict(get(RFFT, "ratio"), aim.rfft),
        Verdict(_over(backward(FFT), backward(OURS)), aim.backward),
        Verdict(_over(get(FFT, "total_GB"), get(OURS, "total_GB")), aim.memory),
        Verdict(get(OURS, "floor_share"), aim.floor),
    )


def _over(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None or b <= 0 else a / b


def print_targets(rows: Sequence[GpuRow], console: Console) -> None:
    """Print the targets beside what was reached, and the times that FlashFFTConv published."""
    lines = summarise(rows)
    if not lines:
        return
    first = rows[0]
    title = f"{first.device}, torch {first.torch}, triton {first.triton}, longconv {first.longconv}, {first.date}"
    caption = (
        "Gated, circular (L = FFT size), bfloat16. ms of a forward call by the wall clock, scaled to B=64, D=768 (the "
        "sizes measured are smaller from 16K on); published on an H100-SXM. Then: how many times faster than "
        "FlashFFTConv's published time, than torch's complex FFT and real FFT here (GPU time), backward alone; how "
        "many times less memory than the complex FFT (forward, inputs included); share of the roofline floor. "
        "Reached/target."
    )
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in (
        "FFT", "BxD", "ours\nms", "Flash-\nFFTConv\npublished", "torch\nfft\nms", "torch\npublished",
        "x Flash-\nFFTConv", "x fft", "x rfft", "backward\nx fft", "memory\nx fft", "of the\nfloor",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    for s in lines:
        times = (s.ms, FLASHFFTCONV_MS.get(s.fft_size), s.fft_ms, PYTORCH_MS.get(s.fft_size))
        verdicts = (s.flash, s.fft, s.rfft, s.backward, s.memory, s.floor)
        label = length_label(s.fft_size)
        table.add_row(label, f"{s.B}x{s.D}", *("" if t is None else f"{t:.4g}" for t in times), *map(str, verdicts))
    Console(file=console.file, width=500).print(table)  # as wide as it is, also where there is no terminal


# --- Plot -------------------------------------------------------------------------------------------------------------


def plot_gpu(rows: Sequence[GpuRow], path: Path) -> None:
    """Draw times of the GPU, in multiples of the roofline floor, against the FFT size into a PNG file.

    A row of panels for every form, gating and dtype; rows without times are left out.
    """
    rows = [row for row in rows if row.ms_median is not None]
    if not rows:
        return
    names = sorted(dict.fromkeys(row.implementation for row in rows), key=lambda name: name != OURS)
    kinds = sorted({(row.dtype, not row.gated, row.form) for row in rows}, key=_importance)
    sizes = sorted({row.fft_size for row in rows})
    figure = Figure(figsize=(12, 1.4 + 3.4 * len(kinds)), layout="constrained")
    grid = figure.subplots(len(kinds), len(MODES), squeeze=False, sharex=True, sharey=True)
    for (dtype, plain, form), panels in zip(kinds, grid, strict=True):
        for mode, panel in zip(MODES, panels, strict=True):
            here = [r for r in rows if (r.dtype, not r.gated, r.form, r.mode) == (dtype, plain, form, mode)]
            _draw(panel, here, names)
            if mode == "forward" and form == "circular" and not plain and dtype != "float32":
                floors = {r.fft_size: r.floor_ms * FULL_ROWS / (r.B * r.D) for r in here}
                published = [(n, ms / floors[n]) for n, ms in FLASHFFTCONV_MS.items() if n in floors]
                label = "FlashFFTConv, published (H100), over the floor here"
                panel.plot([n for n, _ in published], [times for _, times in published], "xk", label=label)
            panel.xaxis.set_major_locator(FixedLocator(sizes))
            panel.tick_params(axis="both", labelbottom=True, labelleft=True, labelsize=8)
            panel.set_title(f"{mode}, {form}, {'plain' if plain else 'gated'}, {dtype}", loc="left", fontsize=10)
        panels[0].set_ylabel("GPU time / roofline floor")
    for panel in grid[-1]:
        panel.set_xlabel("FFT size")
    found: dict[str, Any] = {}
    for panel in grid.flat:
        found |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=4, frameon=False)
    first = rows[0]
    where = f"{first.device}, torch {first.torch}, triton {first.triton}, longconv {first.longconv}"
    figure.suptitle(where, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _importance(kind: tuple[str, bool, str]) -> tuple[bool, bool, bool, str]:
    dtype, plain, form = kind
    return dtype != "bfloat16", plain, form != "circular", dtype


def _draw(panel: Any, rows: Sequence[GpuRow], names: Sequence[str]) -> None:
    """A line for every name."""
    for i, name in enumerate(names):
        line = sorted((row for row in rows if row.implementation == name), key=lambda row: row.fft_size)
        color, marker, dash = styles(i)
        panel.plot(
            [row.fft_size for row in line], [row.ms_median / row.floor_ms for row in line if row.ms_median],
            color=color, marker=marker, linestyle=dash, markersize=5, lw=2.6 if i == 0 else 1.3, label=name,
            zorder=9 if i == 0 else 5,
        )  # fmt: skip
    panel.axhline(1, color="0.4", lw=1, ls=":")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: length_label(value)))
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.grid(axis="y", which="major", color="0.85")
    panel.spines[["top", "right"]].set_visible(False)
