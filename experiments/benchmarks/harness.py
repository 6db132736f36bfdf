"""What every benchmark of an operator shares: oracle gate, interleaved timing, peak memory.

A benchmark is a module with two functions, which `compare` and the memory subprocess call:

    implementations(device) -> list[Implementation]     # the first one is ours
    make_case(shape, dtype, device) -> Case             # inputs of unit scale

Nothing is timed before its outputs and gradients have been compared with the float64 reference of its case.
"""

import ctypes
import functools
import gc
import importlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from longconv.kernels import scratch

from .report import MODES, Mode, Row, Shape, Timing, environment, make_row

try:
    from rich.console import Console
    from rich.progress import Progress
except ImportError as error:
    raise ImportError(f"benchmarks need {error.name}: pip install 'longconv[bench]'") from error

#: Largest relative L2 error against the float64 reference, by dtype of the input: the numbers of tests/numerics.py.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


class DisagreementError(RuntimeError):
    """An implementation differs from the float64 reference by more than the tolerance of its dtype."""


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
    actual = evaluate(implementation.call, case, mode)
    compare_results(f"{implementation.name}, {mode}, {case.shape}", actual, expected, case.inputs[0].dtype)


def compare_results(where: str, actual: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Compare an output, and after it the gradients if `actual` has any, with those of the reference.

    Args:
        where: begins the message.
        actual: what `evaluate` gave; it may be shorter than `expected`.
        expected: what `expected_results` gave.
        dtype: decides the tolerance.

    Raises:
        DisagreementError: as `check_against_oracle`.
    """
    names = ["output", *(f"gradient of input {i}" for i in range(len(expected) - 1))]
    for name, ours, exact in zip(names, actual, expected, strict=False):
        if ours.shape != exact.shape:
            raise DisagreementError(f"{where}: {name} has shape {tuple(ours.shape)} instead of {tuple(exact.shape)}")
        error = (torch.linalg.vector_norm(ours.double() - exact) / torch.linalg.vector_norm(exact)).item()
        if not error <= TOLERANCE[dtype]:  # so that NaN is refused too
            limit = TOLERANCE[dtype]
            raise DisagreementError(f"{where}: {name} has relative L2 error {error:.1e}, allowed is {limit:.1e}")


# --- Time -------------------------------------------------------------------------------------------------------------


# What a GPU waits before a timed call, about 5 ms: meanwhile the call is launched, so that its time is the GPU's alone.
HEAD_START_CYCLES = 10_000_000


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call: between two events of the current stream on a GPU, by the wall clock on a CPU.

    On a GPU the time to launch its kernels is left out, as far as they could be launched ahead.
    """
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        with torch.cuda.device(device):
            torch.cuda._sleep(HEAD_START_CYCLES)
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
    before: Callable[[], None] = lambda: None,
    tick: Callable[[], None] = lambda: None,
    clock: Callable[[Callable[[], object], torch.device], float] = time_call,
) -> dict[str, Timing]:
    """Time the calls in turns, so that a busy spell of the machine meets all of them.

    Args:
        calls: by name. The one that starts a round changes from round to round.
        repeats: timed rounds; at least 1.
        device: where the calls run.
        warmup: rounds before these.
        before: called before every call, and not timed.
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
                before()
                wake_threads(device)
                elapsed = clock(calls[name], device)
                if round_ >= 0:
                    samples[name].append(elapsed)
            tick()
    finally:
        if collects:
            gc.enable()
    return {name: Timing.of(samples[name]) for name in names}


def wake_threads(device: torch.device) -> None:
    """Have all of torch's threads busy for some milliseconds on a CPU.

    After a contestant that runs on one thread the others sleep. When the next one wakes them, the system may start two
    on the same core, and it takes some 10 ms until they are apart: several times what a call may take.
    """
    if device.type == "cpu" and torch.get_num_threads() > 1:
        x = torch.ones(512, 512)
        for _ in range(3):
            torch.mm(x, x)


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[int]:
    """Let torch use that many CPU threads inside the context (None: as many as it does anyway); yields the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def return_free_memory() -> None:
    """Give what earlier calls freed back to the system, where the C library can (glibc)."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


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
        scratch.forget()  # what fft_conv keeps from one shape counts at the next one as well
        peaks.append(peak_of(functools.partial(evaluate, implementation.call, case, mode), torch.device(device)))
        del case
    print(json.dumps(peaks))


def peak_of(call: Callable[[], object], device: torch.device) -> float | None:
    """10^6 bytes at the peak of a call beyond what is there before it; None where a CPU's cannot be measured."""
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
    return_free_memory()
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
    fresh: bool,
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
        fresh: give freed memory back to the system before every timed call.
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
        context = environment(where, used, fresh)
        bar = progress.add_task("", total=len(shapes) * len(MODES) * (repeats + 2))
        for shape in shapes:
            progress.update(bar, description=str(shape))
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
                timings[shape, mode] |= interleave(
                    trusted,
                    repeats,
                    where,
                    before=return_free_memory if fresh else lambda: None,
                    tick=lambda: progress.advance(bar),
                )
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
