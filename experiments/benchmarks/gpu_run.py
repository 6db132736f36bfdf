"""The benchmark of `fft_conv` on a GPU: `longconv bench fftconv --device cuda`.

At every point everyone is compared with the float64 reference first, then they are timed in turns, by events of the
GPU, on inputs that rotate through more memory than the L2 cache holds. Rows are written as they come, so that a run
that is cut short keeps what it has.
"""

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from torch import Tensor

from longconv.kernels.fftconv import fft_conv_reference
from longconv.kernels.gpu import shared_memory_limit

from .gpu_contestants import OURS, Call, Contestant, contestants
from .gpu_points import Point, select
from .gpu_report import GpuRow, Result, Status, gpu_environment, latest, make_rows, plot_gpu, print_targets, read_rows
from .harness import (
    Case,
    DisagreementError,
    compare_results,
    evaluate,
    expected_results,
    interleave,
    peak_of,
    return_free_memory,
    time_call,
)
from .report import MODES, Mode, append_rows, default_output
from .roofline import Rates, measure_rates, work

T = TypeVar("T")

# Timed rounds take about so many seconds for a point and mode, and are as many as this.
SECONDS, LEAST_ROUNDS, MOST_ROUNDS = 1.0, 3, 40
# What `time_call` waits before a call, in ms: part of the time that a round takes.
HEAD_START_MS = 5.0
# Calls in a row, by the clock on the wall: about so many ms of them, and so many times.
WALL_MS, WALL_MOST, WALL_ROUNDS = 5.0, 50, 3
# Inputs rotate through so many times the L2 cache.
CACHES = 4
# Samples that are compared with the reference, in whole channels.
COMPARED_SAMPLES, COMPARED_CHANNELS = 2**25, 4


def run(
    points: tuple[str, ...] = (), quick: bool = False, minutes: float = 9.0, output: Path | None = None
) -> list[GpuRow]:
    """Measure on the current GPU; `fftconv.run` explains the arguments and what is raised."""
    device = torch.device("cuda", torch.cuda.current_device())
    output = default_output("fftconv-cuda") if output is None else output
    return measure(select(points, quick), contestants(), device, minutes, output, Console())


def measure(
    points: Sequence[Point],
    everyone: Sequence[Contestant],
    device: torch.device,
    minutes: float,
    output: Path,
    console: Console,
    rates_of: Callable[[torch.dtype, torch.device], Rates] = measure_rates,
) -> list[GpuRow]:
    """Measure points in order until the time is up, append their rows, print the table of targets and draw the plot.

    Args:
        points: what to measure, the most important first.
        everyone: who takes part, ours first.
        device: where.
        minutes: no point is begun after that.
        output: the CSV file.
        console: where to print.
        rates_of: measures the rates of the device.

    Raises:
        DisagreementError: ours was wrong at some point, or failed: raised at the end.
        ValueError: the file has other columns.
    """
    begin = time.monotonic()
    rates: dict[torch.dtype, Rates] = {}
    rows: list[GpuRow] = []
    for done, point in enumerate(points):
        if time.monotonic() - begin > 60 * minutes:
            left = ", ".join(p.name for p in points[done:])
            console.print(f"{minutes:g} minutes are over; left out: {left}", style="yellow", soft_wrap=True)
            break
        if point.torch_dtype not in rates:
            rates[point.torch_dtype] = found = rates_of(point.torch_dtype, device)
            console.print(
                f"{point.dtype}: copy {found.copy / 1e12:.2f} TB/s, matrix product {found.matmul / 1e12:.0f} TFLOP/s"
            )
        for new in measure_point(point, everyone, device, rates[point.torch_dtype], console):
            append_rows(output, new)
            rows += new
            console.print(_line(point, new), soft_wrap=True, markup=False, highlight=False)
    if rows:
        together = latest(read_rows(output), rows[-1])
        print_targets(together, console)
        plot_gpu(together, output.with_suffix(".png"))
        console.print(f"{len(rows)} rows appended to {output}; drawn in {output.with_suffix('.png')}", soft_wrap=True)
    bad = [row for row in rows if row.implementation == OURS and row.status != "ok"]
    if bad:
        what = ", ".join(f"{r.form} {r.dtype} {r.fft_size} gated={r.gated} {r.mode}: {r.status}" for r in bad)
        raise DisagreementError(f"{OURS} at {what}")
    return rows


def measure_point(
    point: Point, everyone: Sequence[Contestant], device: torch.device, rates: Rates, console: Console
) -> Iterator[list[GpuRow]]:
    """Yield the rows of each mode."""
    sets = make_sets(point, device)
    channels = compared_channels(point, device)
    expected = expected_results(part_of(sets[0], channels))
    calls: dict[str, Call] = {}
    broken: dict[str, Result] = {}
    for contestant in everyone:
        result = attempt(functools.partial(contestant.prepare, point, device), contestant.name, console)
        if isinstance(result, Result):
            broken[contestant.name] = result
        elif result is not None:
            calls[contestant.name] = result
    inputs_GB = sum(x.nbytes for x in sets[0].inputs) / 1e9
    need = {mode: work(point, mode, shared_memory_limit(device)) for mode in MODES}
    for mode in MODES:
        results, repeats = measure_mode(calls, broken, sets, channels, expected, mode, device, console)
        ordered = {c.name: results[c.name] for c in everyone if c.name in results}
        yield make_rows(gpu_environment(device), point, mode, ordered, repeats, inputs_GB, need[mode], rates)
    torch._dynamo.reset()  # compiled functions of one point are of no use at the next
    return_free_memory()


def measure_mode(
    calls: Mapping[str, Call],
    broken: Mapping[str, Result],
    sets: Sequence[Case],
    channels: Tensor,
    expected: Sequence[Tensor],
    mode: Mode,
    device: torch.device,
    console: Console,
) -> tuple[dict[str, Result], int]:
    """Check everyone, then time those that are right; returns results by name, and the number of rounds."""
    results = dict(broken)
    peaks: dict[str, float | None] = {}
    single: dict[str, float] = {}
    for name, call in calls.items():
        admit = functools.partial(_admit, name, call, sets[0], channels, expected, mode, device)
        seen = attempt(admit, f"{name}, {mode}", console)
        if isinstance(seen, Result):
            results[name] = seen
        else:
            peaks[name], single[name] = seen
    if not single:
        return results, 0
    turn = itertools.cycle(sets)
    rotating: dict[str, Callable[[], object]] = {
        name: functools.partial(_evaluate_next, calls[name], turn, mode) for name in single
    }
    round_ms = sum(ms + (HEAD_START_MS if device.type == "cuda" else 0) for ms in single.values())
    repeats = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(1e3 * SECONDS / round_ms)))
    timings = interleave(rotating, repeats, device, warmup=1)
    for name, timing in timings.items():
        wall = wall_ms(rotating[name], timing.median, device)
        peak = peaks[name]
        results[name] = Result("ok", timing, wall, None if peak is None else peak / 1e3)
    return results, repeats


def attempt(action: Callable[[], T], what: str, console: Console) -> T | Result:
    """Do it; return what it returns, or a `Result` that says what went wrong, which is printed."""
    status: Status
    try:
        return action()
    except DisagreementError as error:
        status, message = "wrong", str(error)
    except torch.OutOfMemoryError as error:
        status, message = "out of memory", str(error).splitlines()[0]
    except Exception as error:  # others' packages raise whatever they like; the comparison goes on without them
        status, message = "failed", f"{type(error).__name__}: {error}"
    console.print(f"{status}, so not timed: {what}: {message[:400]}", style="red", markup=False, soft_wrap=True)
    return Result(status)


def _admit(
    name: str,
    call: Call,
    case: Case,
    channels: Tensor,
    expected: Sequence[Tensor],
    mode: Mode,
    device: torch.device,
) -> tuple[float | None, float]:
    """Compare with the reference; then 10^6 bytes at the peak of a call, and the milliseconds of one."""
    actual = [_pick(x, channels) for x in evaluate(call, case, mode)]
    compare_results(f"{name}, {mode}, {case.shape}", actual, expected, case.inputs[0].dtype)
    del actual
    once = functools.partial(evaluate, call, case, mode)
    for_peak = functools.partial(_recorded, call, case) if mode == "forward" else once
    for_peak()  # a compiled one is compiled now
    return peak_of(for_peak, device), time_call(once, device)


def _recorded(call: Call, case: Case) -> Tensor:
    """A forward pass that autograd records, as one in training; it is alive until the result is dropped."""
    return call(*(x.detach().requires_grad_() for x in case.inputs))


def _evaluate_next(call: Call, turn: Iterator[Case], mode: Mode) -> None:
    evaluate(call, next(turn), mode)


def wall_ms(call: Callable[[], object], about_ms: float, device: torch.device) -> float:
    """Milliseconds per call, by the clock on the wall, of calls in a row: the median of a few such rows."""
    count = max(1, min(WALL_MOST, int(WALL_MS / max(about_ms, 1e-3))))
    samples = []
    for _ in range(WALL_ROUNDS):
        _synchronize(device)
        begin = time.perf_counter()
        for _ in range(count):
            call()
        _synchronize(device)
        samples.append((time.perf_counter() - begin) * 1e3 / count)
    return statistics.median(samples)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- Inputs -----------------------------------------------------------------------------------------------------------


def make_sets(point: Point, device: torch.device) -> list[Case]:
    """Inputs of unit scale, as many sets as the L2 cache cannot hold; filters so that outputs have unit scale too."""
    B, D, L, K = point.shape
    generator = torch.Generator(device).manual_seed(0)

    def rows() -> Tensor:
        return torch.randn(B, D, L, generator=generator, device=device, dtype=point.torch_dtype)

    def case() -> Case:
        k = torch.randn(D, K, generator=generator, device=device) / K**0.5
        gates = (rows(), rows()) if point.gated else ()
        return Case(point.shape, (rows(), k, *gates), rows(), functools.partial(_reference, point.circular))

    first = case()
    size = sum(x.nbytes for x in (*first.inputs, first.gradient))
    cache = CACHES * l2_bytes(device)
    return [first, *(case() for _ in range(max(0, -(-cache // size) - 1)))]


def _reference(circular: bool, u: Tensor, k: Tensor, pre: Tensor | None = None, post: Tensor | None = None) -> Tensor:
    return fft_conv_reference(u, k, circular=circular, pre_gate=pre, post_gate=post)


def l2_bytes(device: torch.device) -> int:
    """Size of the L2 cache; 0 for a CPU."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def compared_channels(point: Point, device: torch.device) -> Tensor:
    """Some channels from the first to the last: few enough that their convolutions in float64 are no burden."""
    count = max(1, min(point.D, COMPARED_CHANNELS, COMPARED_SAMPLES // (point.B * point.L)))
    return torch.linspace(0, point.D - 1, count, device=device).round().long().unique()


def part_of(case: Case, channels: Tensor) -> Case:
    """The same case with these channels alone."""
    inputs = tuple(_pick(x, channels) for x in case.inputs)
    shape = case.shape._replace(D=len(channels))
    return Case(shape, inputs, _pick(case.gradient, channels), case.reference)


def _pick(x: Tensor, channels: Tensor) -> Tensor:
    """Channels of (B, D, L) or (D, K)."""
    return x[:, channels] if x.dim() == 3 else x[channels]


def _line(point: Point, rows: Sequence[GpuRow]) -> str:
    """One point and mode in one line."""
    parts = []
    for row in rows:
        if row.ms_median is None:
            parts.append(f"{row.implementation} {row.status}")
        elif row.implementation == OURS:
            parts.append(f"ours {row.ms_median:.4g} ms (wall {row.ms_wall:.4g}, floor {row.floor_share:.0%})")
        else:
            ratio = f"{row.ms_median:.4g} ms" if row.ratio is None else f"x{row.ratio:.2f}"
            parts.append(f"{row.implementation} {ratio}")
    return f"{point.name} B={point.B} D={point.D} {rows[0].mode}: {', '.join(parts)}"
