"""Where the time of a long convolution goes on a CPU, and what share of it has to be: `longconv bench stages`.

The floor of a convolution by FFT is its transforms: one of every row there and one back, with the product in between,
and one of every filter. They are measured on a row that stays in cache, by all threads at once. The rest is reading
rows and writing results, in cache and from and to memory, memory that is new, and the call from Python.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from longconv.functional import fft_conv
from longconv.kernels.fftconv import native

from .fftconv import choose_shape
from .harness import cpu_threads
from .report import Shape

try:
    from rich import box
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise ImportError(f"this benchmark needs {error.name}: pip install 'longconv[bench]'") from error

#: What no convolution by FFT can do without.
FLOOR = ("filter", "transform")


@dataclass(frozen=True)
class Profile:
    """Milliseconds of one forward call.

    Attributes:
        shape: its sizes.
        points: complex points of a transform.
        stages: by name, measured alone on a row in cache, times the number of rows (of filters), over the threads.
        floor: sum of those in `FLOOR`.
        gflops: billions of operations a second and thread in the transforms of the floor, 5 n log2 n of them for one.
        call: the whole call, median.
    """

    shape: Shape
    points: int
    stages: dict[str, float]
    floor: float
    gflops: float
    call: float

    @property
    def share(self) -> float:
        """The part of the call that is the floor."""
        return self.floor / self.call


def run(
    lengths: tuple[int, ...] = (256, 1024, 4096, 16384, 65536, 262144, 1048576),
    elements: int = 2**21,
    repeats: int = 20,
    threads: int | None = None,
) -> list[Profile]:
    """Take the causal convolution of u (B, D, L) with k (D, L), float32, on the CPU, apart into its stages.

    Args:
        lengths: sequence lengths L.
        elements: about B * D * L.
        repeats: timed calls; medians count.
        threads: CPU threads; by default what torch chooses.

    Returns:
        A profile for every length.

    Raises:
        ValueError: a number below 1.
        RuntimeError: convolutions are not computed in C here.
    """
    shortest = min(lengths, default=0)
    for name, value in (("elements", elements), ("repeats", repeats), ("threads", threads), ("lengths", shortest)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if native.NATIVE.library() is None:
        raise RuntimeError("bench stages takes the C code apart, which cannot be built here (kernels/fftconv/native)")
    console = Console()
    with cpu_threads(threads), torch.no_grad():
        profiles = [profile(choose_shape(L, elements, None), repeats) for L in lengths]
    table = Table(title="ms of a forward call, by stage; * is part of the floor", box=box.SIMPLE_HEAD)
    table.add_column("L =", no_wrap=True)
    for p in profiles:
        table.add_column(f"{p.shape.L}", justify="right", no_wrap=True)
    for name in native.STAGES:
        table.add_row(name + ("*" if name in FLOOR else ""), *(f"{p.stages[name]:.2f}" for p in profiles))
    table.add_section()
    table.add_row("sum", *(f"{sum(p.stages.values()):.2f}" for p in profiles))
    table.add_row("whole call", *(f"{p.call:.2f}" for p in profiles))
    table.add_row("floor", *(f"{p.floor:.2f}" for p in profiles))
    table.add_row("floor / call", *(f"{p.share:.0%}" for p in profiles))
    table.add_row("GFLOP/s a thread", *(f"{p.gflops:.0f}" for p in profiles))
    console.print(table)
    return profiles


def profile(shape: Shape, repeats: int) -> Profile:
    """Measure one length; see `run`."""
    B, D, L, _ = shape
    # A filter of a single tap leaves the row as it is, however often it is applied.
    u, k, y = torch.randn(B, D, L), torch.nn.functional.pad(torch.ones(D, 1), (0, L - 1)), torch.empty(B, D, L)
    call = native.Call(native.NATIVE.needed(), u, k, None, None, None, None)
    job = call.job
    job.y = y.data_ptr()
    times = max(2, 2**18 // job.plan.n)
    stages = {}
    for name in native.STAGES:
        rows = D * job.parts if name == "filter" else B * D
        # Before a stage is done a first time, its memory is filled.
        filled = _median(partial(call.run_stage, name, 0), repeats)
        done = _median(partial(call.run_stage, name, times), repeats)
        stages[name] = max(done - filled, 1e-6) / times * rows / min(job.threads, D * job.parts)
    floor = sum(stages[name] for name in FLOOR)
    transforms = (2 * B + job.parts) * D / min(job.threads, D * job.parts)
    gflops = transforms * 5 * job.plan.n * math.log2(job.plan.n) / floor / 1e6
    k = torch.randn(D, L)
    return Profile(shape, job.plan.n, stages, floor, gflops, _median(lambda: fft_conv(u, k), repeats))


def _median(call: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of `call`."""
    samples = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        call()
        samples.append((time.perf_counter() - started) * 1e3)
    return statistics.median(samples[2:])
