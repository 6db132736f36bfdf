"""Long convolution against torch.fft, scipy, julius and fft-conv-pytorch: `longconv bench fftconv`.

On a GPU it is another benchmark, against others: `gpu_run.py`.
"""

from pathlib import Path
from typing import Any, Literal

import torch

from longconv.functional import fft_conv
from longconv.kernels.fftconv import fft_conv_reference

from .harness import Case, Implementation, compare
from .report import Row, Shape, append_rows, default_output, plot, print_table

try:
    from rich.console import Console
except ImportError as error:
    raise ImportError(f"this benchmark needs {error.name}: pip install 'longconv[bench]'") from error

# What `run` takes on a CPU.
LENGTHS = (256, 1024, 4096, 16384, 65536, 262144, 1048576)
TAPS = (0, 1024, 64)
ELEMENTS, REPEATS = 2**21, 20
# What it takes on a GPU.
MINUTES = 9.0


def run(
    lengths: tuple[int, ...] | None = None,
    taps: tuple[int, ...] | None = None,
    elements: int | None = None,
    batch: int | None = None,
    dtype: Literal["float32", "float64", "float16", "bfloat16"] | None = None,
    repeats: int | None = None,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    fresh: bool = False,
    memory: bool = True,
    points: tuple[str, ...] = (),
    quick: bool = False,
    minutes: float | None = None,
    output: Path | None = None,
) -> list[Any]:
    """Time the long convolution of u (B, D, L) with filters k (D, K), ours and others', forward and backward.

    All run interleaved in one process after a warm-up. An implementation whose output or gradients differ from the
    float64 reference by more than the dtype's tolerance is not timed. Prints a table, appends its rows to a CSV file
    and draws a PNG beside it.

    On a CPU: causal, at lengths and filter lengths to choose. On a GPU: FlashFFTConv's published sizes and more, with
    and without gates, causal and circular, bfloat16, float16 and float32, in that order of importance, with the
    roofline floor of each; then a table of what was to be reached.

    Args:
        lengths: CPU: sequence lengths L; by default seven from 256 to 1,048,576.
        taps: CPU: filter lengths K; 0 for filters as long as the sequence. A K that is not below L is left out. By
            default 0, 1024 and 64.
        elements: CPU: about B * D * L, which decides how many channels there are; at least one. By default 2^21.
        batch: CPU: B; by default 8, or less where there would be fewer channels than batch rows.
        dtype: CPU: of u and the output, by default float32. Filters are float32, or float64 if u is.
        repeats: CPU: timed calls of each implementation; by default 20.
        threads: CPU: threads; by default what torch chooses.
        device: "auto" takes a GPU if there is one.
        fresh: CPU: give freed memory back to the system before every timed call, so that each call has to get its own
            anew, as in training with changing shapes. Otherwise calls may reuse what earlier ones left behind.
        memory: CPU: measure peak memory too, each implementation in a process of its own.
        points: GPU: only points whose name fits one of these patterns, such as "circular-gated-bfloat16-4096" or
            "causal-*". Runs that share the points out among them make one table together.
        quick: GPU: only the nine FFT sizes of the published table, gated, circular, in bfloat16.
        minutes: GPU: begin no new point after that; by default 9.
        output: the CSV file. By default experiments/benchmarks/results/fftconv.csv (on a GPU fftconv-cuda.csv) of a
            source checkout, elsewhere longconv-bench-fftconv.csv in the current folder.

    Returns:
        A row for every length, mode and implementation: `report.Row`, on a GPU `gpu_report.GpuRow`.

    Raises:
        ValueError: a number below 1, "cuda" without a GPU, an option of the other device, no such point, or an
            existing CSV file with other columns.
        DisagreementError: ours is wrong.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    of_cpu = {"lengths": lengths, "taps": taps, "elements": elements, "batch": batch, "dtype": dtype}
    of_cpu |= {"repeats": repeats, "threads": threads, "fresh": fresh or None, "memory": None if memory else False}
    of_gpu = {"points": points or None, "quick": quick or None, "minutes": minutes}
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': torch finds no GPU here")
    for name, value in (of_cpu if device == "cuda" else of_gpu).items():
        if value is not None:
            raise ValueError(f"{name} is no option of the benchmark on device {device!r}; got {value}")
    if device == "cuda":
        from . import gpu_run

        return gpu_run.run(points, quick, MINUTES if minutes is None else minutes, output)
    return _run_on_cpu(
        LENGTHS if lengths is None else lengths,
        TAPS if taps is None else taps,
        ELEMENTS if elements is None else elements,
        batch,
        dtype or "float32",
        REPEATS if repeats is None else repeats,
        threads,
        fresh,
        memory,
        output,
    )


def _run_on_cpu(
    lengths: tuple[int, ...],
    taps: tuple[int, ...],
    elements: int,
    batch: int | None,
    dtype: str,
    repeats: int,
    threads: int | None,
    fresh: bool,
    memory: bool,
    output: Path | None,
) -> list[Row]:
    for name, value in (("elements", elements), ("batch", batch), ("repeats", repeats), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not lengths or min(lengths) < 1:
        raise ValueError(f"lengths must be one or more numbers from 1 up, got {lengths}")
    if min(taps, default=-1) < 0:
        raise ValueError(f"taps must be one or more numbers from 0 up, got {taps}")
    console = Console()
    whole = [choose_shape(L, elements, batch) for L in sorted(set(lengths))]
    console.print("Shapes (B, D, L): " + ", ".join(f"({s.B}, {s.D}, {s.L})" for s in whole))
    shapes = [s if K == 0 else s._replace(K=K) for K in dict.fromkeys(taps) for s in whole if s.L > K]
    if not shapes:
        raise ValueError(f"taps: no filter of {taps} taps is shorter than a sequence of {lengths}")
    rows = compare(
        __name__,
        shapes,
        dtype=dtype,
        device="cpu",
        repeats=repeats,
        threads=threads,
        fresh=fresh,
        memory=memory,
        console=console,
    )
    print_table(rows, console)
    output = default_output("fftconv") if output is None else output
    append_rows(output, rows)
    plot(rows, output.with_suffix(".png"))
    console.print(f"{len(rows)} rows appended to {output}; drawn in {output.with_suffix('.png')}", soft_wrap=True)
    return rows


def choose_shape(L: int, elements: int, batch: int | None) -> Shape:
    """Sizes with B * D * L about `elements`: 8 batch rows, halved while there are fewer channels than that."""
    rows = max(1, elements // L)
    B = batch or 8
    while batch is None and B > 1 and rows < B * B:
        B //= 2
    return Shape(B, max(1, rows // B), L, L)


def implementations(device: str) -> list[Implementation]:
    """Ours and the others that run on `device`, "cpu" or "cuda".

    Raises:
        ImportError: naming a package that is missing.
    """
    from .cpu_contestants import DIFFERENTIABLE, scipy_conv

    everywhere = [Implementation("longconv", fft_conv), *(Implementation(*other) for other in DIFFERENTIABLE.items())]
    return everywhere + ([Implementation("scipy", scipy_conv, differentiable=False)] if device == "cpu" else [])


def make_case(shape: Shape, dtype: torch.dtype, device: str) -> Case:
    """Normally distributed u (B, D, L), k (D, K) and incoming gradient, the same at every call."""
    B, D, L, K = shape
    generator = torch.Generator().manual_seed(0)
    u, dy, k = (torch.randn(size, generator=generator) for size in ((B, D, L), (B, D, L), (D, K)))
    filter_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = (u.to(device, dtype), k.to(device, filter_dtype))
    return Case(shape, inputs, dy.to(device, dtype), fft_conv_reference)
