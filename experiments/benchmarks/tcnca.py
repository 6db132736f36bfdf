"""TCNCA's claim: a stack of dilated convolutions against MEGA's moving average by FFT: `longconv bench tcnca`.

Terzic et al. 2023 (arXiv:2312.05605) replace the moving average of MEGA, a recurrence computed as a convolution by FFT,
with a temporal convolutional network, and report it 7.07 times as fast forward and 2.86 times backward at 131k samples
on a GPU. Measured here is the same pair: what `TCNCA` does before its attention, with as many layers as let one output
see L samples, and what `Mega` does there. They are different functions, so each has its own reference.

A sample costs the stack n K multiply-adds with n = log(L) / log(K) layers, and an FFT about log(L): both grow alike.
What decides is how often a sample travels through memory.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from longconv.filters import DampedEMA
from longconv.functional import dilated_conv, fft_conv
from longconv.kernels.dilated import dilated_conv_reference
from longconv.kernels.fftconv.reference import fft_conv_reference

from .fftconv import choose_shape
from .harness import (
    Case,
    DisagreementError,
    Implementation,
    check_against_oracle,
    cpu_threads,
    evaluate,
    expected_results,
    interleave,
)
from .report import MODES, Row, Shape, append_rows, default_output, environment, make_row, plot, print_table

try:
    from rich.console import Console
except ImportError as error:
    raise ImportError(f"this benchmark needs {error.name}: pip install 'longconv[bench]'") from error

#: What the rows' ratios refer to.
OURS = "dilated stack"


def run(
    lengths: tuple[int, ...] = (1024, 4096, 16384, 65536, 131072),
    kernel_size: int = 8,
    ndim: int = 16,
    elements: int = 2**20,
    batch: int | None = None,
    dtype: Literal["float32", "float64", "float16", "bfloat16"] = "float32",
    repeats: int = 10,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    output: Path | None = None,
) -> list[Row]:
    """Time TCNCA's stack of dilated convolutions and MEGA's moving average on x (B, D, L), forward and backward.

    The contestants, interleaved in one process after a warm-up: the stack by `dilated_conv` and by `F.conv1d`; the
    moving average by `fft_conv`, and by the published code's kernel and pair of transforms, both computing the kernel
    from its parameters; and `fft_conv` with the kernel given. What differs from its float64 reference by
    more than the dtype's tolerance is not timed. Prints a table, appends its rows to a CSV file (K is L: every
    contestant sees L samples) and draws a PNG beside it.

    Args:
        lengths: sequence lengths L.
        kernel_size: K of the stack, and the ratio of its dilations: ceil(log_K L) layers.
        ndim: N, the dimensions of the moving average.
        elements: about B * D * L, which decides how many channels there are; at least one.
        batch: B; by default 8, or less where there would be fewer channels than batch rows.
        dtype: of x and the output. Parameters are float32, or float64 if x is.
        repeats: timed calls of each implementation.
        threads: CPU threads; by default what torch chooses.
        device: "auto" takes a GPU if there is one.
        output: the CSV file. By default experiments/benchmarks/results/tcnca.csv of a source checkout, elsewhere
            longconv-bench-tcnca.csv in the current folder.

    Returns:
        A row for every length, mode and contestant; `ratio` is to the stack by `dilated_conv`.

    Raises:
        ValueError: a number below 1 (2 for `kernel_size`), "cuda" without a GPU, or an existing CSV file with other
            columns.
        DisagreementError: ours is wrong.
    """
    for name, numbers, least in (
        ("lengths", lengths, 1), ("kernel_size", (kernel_size,), 2), ("ndim", (ndim,), 1), ("elements", (elements,), 1),
        ("repeats", (repeats,), 1), ("batch", (1 if batch is None else batch,), 1),
        ("threads", (1 if threads is None else threads,), 1),
    ):  # fmt: skip
        if not numbers or min(numbers) < least:
            raise ValueError(f"{name} must be at least {least}, got {numbers}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': torch finds no GPU here")
    console, rows = Console(), []
    with cpu_threads(threads) as used:
        context = environment(torch.device(device), used)
        for L in sorted(set(lengths)):
            shape = choose_shape(L, elements, batch)
            console.print(f"{shape}: {layers(L, kernel_size)} layers of {kernel_size} taps", highlight=False)
            entrants = contestants(shape, kernel_size, ndim, getattr(torch, dtype), device)
            rows += _contest(entrants, context, dtype, repeats, console)
    print_table(rows, console)
    output = default_output("tcnca") if output is None else output
    append_rows(output, rows)
    plot(rows, output.with_suffix(".png"))
    console.print(f"{len(rows)} rows appended to {output}; drawn in {output.with_suffix('.png')}", soft_wrap=True)
    return rows


def layers(L: int, K: int) -> int:
    """How many layers of K taps at dilations 1, K, K^2, ... see L samples: the least n with K^n >= L, at least 1."""
    n = 1
    while K**n < L:
        n += 1
    return n


def contestants(
    shape: Shape, kernel_size: int, ndim: int, dtype: torch.dtype, device: str
) -> list[tuple[Implementation, Case]]:
    """Every implementation with the case it is measured on; ours first. Inputs are the same at every call."""
    B, D, L, _ = shape
    n, wide = layers(L, kernel_size), torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(0)

    def random(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(size, generator=generator)).to(device, wide)

    # A mean of 1, so that what a bias gets is no sum that cancels, which conv1d's gradient is not accurate enough for.
    x, dy = random(B, D, L).to(dtype), 1 + random(B, D, L).to(dtype)
    weight, bias = random(n, D, kernel_size, scale=kernel_size**-0.5), random(n, D, scale=0.1)
    stack = Case(shape, (x, weight, bias), dy, functools.partial(_stack, conv=dilated_conv_reference))
    # About as MEGA initialises them. With poles nearer to the circle the published kernel, in float32, is not accurate.
    delta, alpha = random(D, ndim, scale=0.2), random(D, ndim, scale=0.2)
    parameters = (delta, alpha, random(D, ndim), random(D, ndim), random(D))
    ema = Case(shape, (x, *parameters), dy, _ema_reference)
    given = Case(shape, (x, _kernel(*parameters[:4], L=L).detach(), parameters[4]), dy, _given_reference)
    return [
        (Implementation(OURS, functools.partial(_stack, conv=dilated_conv)), stack),
        (Implementation("dilated stack, conv1d", functools.partial(_stack, conv=_conv1d)), stack),
        (Implementation("EMA, fft_conv", _ema), ema),
        (Implementation("EMA, published code", _ema_published), ema),
        (Implementation("fft_conv, kernel given", lambda x, k, omega: fft_conv(x, k, skip=omega)), given),
    ]


def _contest(
    entrants: list[tuple[Implementation, Case]], context: dict[str, Any], dtype: str, repeats: int, console: Console
) -> list[Row]:
    """Gate each on its own case, and time all in turns."""
    expected = {id(case): expected_results(case) for _, case in entrants}
    rows = []
    for mode in MODES:
        trusted: dict[str, Callable[[], object]] = {}
        for entrant, case in entrants:
            try:
                check_against_oracle(entrant, case, mode, expected[id(case)])
            except DisagreementError as error:
                if entrant.name == OURS:
                    raise
                console.print(f"wrong, so not timed: {error}", style="bold red", markup=False)
                continue
            trusted[entrant.name] = functools.partial(evaluate, entrant.call, case, mode)
        timings = interleave(trusted, repeats, entrants[0][1].gradient.device)
        for entrant, case in entrants:
            timing = timings.get(entrant.name)
            rows.append(make_row(context, entrant.name, mode, case.shape, dtype, repeats, timing, timings[OURS]))
    return rows


def _stack(x: Tensor, weight: Tensor, bias: Tensor, *, conv: Callable[..., Tensor]) -> Tensor:
    """`TCNCA`'s network: silu(a_n), a_{i+1} = a_i + silu(conv_i(a_i)) with dilation K^i."""
    for i, (taps, b) in enumerate(zip(weight, bias, strict=True)):
        x = x + F.silu(conv(x, taps, b, dilation=taps.shape[1] ** i))
    return F.silu(x)


def _conv1d(u: Tensor, k: Tensor, bias: Tensor, *, dilation: int) -> Tensor:
    """Causal, by padding; it takes no mixed dtypes, so all compute in the dtype of k."""
    x = F.pad(u.to(k.dtype), ((k.shape[1] - 1) * dilation, 0))
    return F.conv1d(x, k.flip(-1)[:, None], bias, dilation=dilation, groups=k.shape[0]).to(u.dtype)


def _kernel(delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, L: int) -> Tensor:
    """The taps of `DampedEMA` with these parameters, (D, L)."""
    filter = DampedEMA(*delta.shape).to(device=delta.device, dtype=delta.dtype)
    names = {"delta": delta, "alpha": alpha, "beta": beta, "gamma": gamma}
    return torch.func.functional_call(filter, names, (L,))


def _ema(x: Tensor, delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, omega: Tensor) -> Tensor:
    """`Mega`'s summary: silu(k * x + omega x)."""
    return F.silu(fft_conv(x, _kernel(delta, alpha, beta, gamma, x.shape[-1]), skip=omega))


def _powers(delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, L: int) -> Tensor:
    """The kernel (D, L) as a sum over a Vandermonde matrix (D, N, L), as in facebookresearch/mega."""
    p = delta.sigmoid()
    q = 1 - p * alpha.sigmoid()
    matrix = (torch.arange(L, device=q.device, dtype=q.dtype) * q.log()[..., None]).exp()
    return torch.einsum("dnl,dn->dl", (p * beta)[..., None] * matrix, gamma / math.sqrt(q.shape[1]))


def _ema_published(x: Tensor, delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, omega: Tensor) -> Tensor:
    """The same with the published code's kernel and its transforms of 2L points."""
    L, u = x.shape[-1], x.to(delta.dtype)
    k = torch.fft.rfft(_powers(delta, alpha, beta, gamma, L), 2 * L)
    y = torch.fft.irfft(k * torch.fft.rfft(u, 2 * L), 2 * L)[..., :L]
    return F.silu(y.to(x.dtype) + x * omega[:, None].to(x.dtype))


def _ema_reference(x: Tensor, delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, omega: Tensor) -> Tensor:
    return F.silu(_given_reference(x, _powers(delta, alpha, beta, gamma, x.shape[-1]), omega))


def _given_reference(x: Tensor, k: Tensor, omega: Tensor) -> Tensor:
    return fft_conv_reference(x, k, skip=omega)
