"""Dilated depthwise convolution and the multiresolution tree against `F.conv1d`: `longconv bench dilated`."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from longconv.functional import dilated_conv, multires_conv, multires_levels
from longconv.kernels.dilated import dilated_conv_reference
from longconv.kernels.multires import multires_conv_reference

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


def run(
    lengths: tuple[int, ...] = (4096, 16384, 65536, 262144),
    taps: tuple[int, ...] = (2, 3, 5, 15),
    dilations: tuple[int, ...] = (1, 16, 256),
    tree_taps: tuple[int, ...] = (2, 4),
    elements: int = 2**21,
    batch: int | None = None,
    dtype: Literal["float32", "float64", "float16", "bfloat16"] = "float32",
    repeats: int = 20,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    output: Path | None = None,
) -> list[Row]:
    """Time dilated convolutions of u (B, D, L) with K taps, and multiresolution trees, ours and by `F.conv1d`.

    `F.conv1d` gets D groups and an input padded by `F.pad`; its tree is that of the published MultiresLayer. Those of
    one shape and dilation run interleaved in one process after a warm-up. What differs from the float64 reference by
    more than the dtype's tolerance is not timed. Prints a table, appends its rows to a CSV file (the dilation is in the
    name of the implementation) and draws two PNGs beside it, the second one, "-multires", of the trees.

    Args:
        lengths: sequence lengths L.
        taps: K.
        dilations: samples from one tap to the next.
        tree_taps: K of the trees, whose levels reach over L. Empty for no trees.
        elements: about B * D * L, which decides how many channels there are; at least one.
        batch: B; by default 8, or less where there would be fewer channels than batch rows.
        dtype: of u and the output. Filters are float32, or float64 if u is.
        repeats: timed calls of each implementation.
        threads: CPU threads; by default what torch chooses.
        device: "auto" takes a GPU if there is one.
        output: the CSV file. By default experiments/benchmarks/results/dilated.csv of a source checkout, elsewhere
            longconv-bench-dilated.csv in the current folder.

    Returns:
        A row for every length, K, dilation, mode and implementation.

    Raises:
        ValueError: a number below 1 (below 2 for `tree_taps`), "cuda" without a GPU, or an existing CSV file with other
            columns.
        DisagreementError: ours is wrong.
    """
    for name, numbers, least in (
        ("lengths", lengths, 1), ("taps", taps, 1), ("dilations", dilations, 1), ("tree_taps", tree_taps, 2),
        ("elements", (elements,), 1), ("repeats", (repeats,), 1), ("batch", (1 if batch is None else batch,), 1),
        ("threads", (1 if threads is None else threads,), 1),
    ):  # fmt: skip
        if any(number < least for number in numbers):
            raise ValueError(f"{name} must be at least {least}, got {numbers}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': torch finds no GPU here")
    console, where = Console(), torch.device(device)
    rows: list[Row] = []
    trees: list[Row] = []
    with cpu_threads(threads) as used:
        context = environment(where, used)
        for L in sorted(set(lengths)):
            for K in taps:
                shape = choose_shape(L, elements, batch)._replace(K=K)
                case = make_case(shape, getattr(torch, dtype), device)
                found = [
                    _contest(with_dilation(case, d), implementations(d), context, dtype, repeats, console)
                    for d in dilations
                ]
                rows += [row for mode in MODES for part in found for row in part if row.mode == mode]
            for K in tree_taps:
                case = make_tree_case(choose_shape(L, elements, batch)._replace(K=K), getattr(torch, dtype), device)
                trees += _contest(case, tree_implementations(), context, dtype, repeats, console)
    print_table(rows + trees, console)
    output = default_output("dilated") if output is None else output
    append_rows(output, rows + trees)
    plot(rows, output.with_suffix(".png"))
    plot(trees, output.with_name(f"{output.stem}-multires.png"))
    console.print(f"{len(rows + trees)} rows appended to {output}", soft_wrap=True)
    return rows + trees


def implementations(dilation: int) -> list[Implementation]:
    """Ours and `F.conv1d`, with this dilation."""
    return [
        Implementation(f"longconv, dilation {dilation}", functools.partial(dilated_conv, dilation=dilation)),
        Implementation(f"conv1d, dilation {dilation}", functools.partial(_conv1d, dilation=dilation)),
    ]


def tree_implementations() -> list[Implementation]:
    """Our tree and one of `F.conv1d`s."""
    return [Implementation("longconv, tree", multires_conv), Implementation("conv1d, tree", _conv1d_tree)]


def make_case(shape: Shape, dtype: torch.dtype, device: str) -> Case:
    """Normally distributed u (B, D, L), k (D, K) and incoming gradient, the same at every call."""
    B, D, L, K = shape
    u, dy, k = _random(dtype, device, (B, D, L), (B, D, L), (D, K))
    return Case(shape, (u, k), dy, dilated_conv_reference)


def with_dilation(case: Case, dilation: int) -> Case:
    """The same inputs, with the reference for this dilation."""
    return dataclasses.replace(case, reference=functools.partial(case.reference, dilation=dilation))


def make_tree_case(shape: Shape, dtype: torch.dtype, device: str) -> Case:
    """Normally distributed x (B, D, L), filters (D, K), weights (D, J+2) and incoming gradient of unit scale."""
    B, D, L, K = shape
    J = multires_levels(L, K)
    x, dy, h0, h1, w = _random(dtype, device, (B, D, L), (B, D, L), (D, K), (D, K), (D, J + 2))
    inputs = (x, h0 / K**0.5, h1 / K**0.5, w / J**0.5)
    return Case(shape, inputs, dy, functools.partial(multires_conv_reference, levels=J))


def _random(dtype: torch.dtype, device: str, *sizes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    filters = torch.float64 if dtype == torch.float64 else torch.float32
    return [torch.randn(s, generator=generator).to(device, dtype if len(s) == 3 else filters) for s in sizes]


def _contest(
    case: Case,
    contestants: list[Implementation],
    context: dict[str, Any],
    dtype: str,
    repeats: int,
    console: Console,
) -> list[Row]:
    """Gate and time contestants that do the same, the first of which is ours."""
    ours = contestants[0]
    expected = expected_results(case)
    rows = []
    for mode in MODES:
        trusted: dict[str, Callable[[], object]] = {}
        for contestant in contestants:
            try:
                check_against_oracle(contestant, case, mode, expected)
            except DisagreementError as error:
                if contestant is ours:
                    raise
                console.print(f"wrong, so not timed: {error}", style="bold red", markup=False)
                continue
            trusted[contestant.name] = functools.partial(evaluate, contestant.call, case, mode)
        timings = interleave(trusted, repeats, case.gradient.device)
        for contestant in contestants:
            timing = timings.get(contestant.name)
            rows.append(
                make_row(context, contestant.name, mode, case.shape, dtype, repeats, timing, timings[ours.name])
            )
    return rows


def _conv1d(u: Tensor, k: Tensor, dilation: int) -> Tensor:
    """Causal, by padding; it takes no mixed dtypes, so all compute in the dtype of k."""
    x = F.pad(u.to(k.dtype), ((k.shape[1] - 1) * dilation, 0))
    return F.conv1d(x, k.flip(-1)[:, None], dilation=dilation, groups=k.shape[0]).to(u.dtype)


def _conv1d_tree(x: Tensor, h0: Tensor, h1: Tensor, w: Tensor) -> Tensor:
    """Level by level: both filters see the same padded input."""
    D, K = h0.shape
    a, low, high = x.to(h0.dtype), h0.flip(-1)[:, None], h1.flip(-1)[:, None]
    y = w[:, -1:] * a
    J = w.shape[1] - 2
    for j in range(J):
        padded = F.pad(a, ((K - 1) * 2**j, 0))
        y = y + w[:, J - j, None] * F.conv1d(padded, high, dilation=2**j, groups=D)
        a = F.conv1d(padded, low, dilation=2**j, groups=D)
    return (y + w[:, :1] * a).to(x.dtype)
