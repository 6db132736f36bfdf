"""What the tests of the Triton kernels share: where they run, the grid of cases, comparison with float64.

A test that takes `place` runs twice: marked `gpu` on "cuda", at sizes that matter, and on "cpu", in Triton's
interpreter, at tiny ones (bfloat16 left out: the interpreter multiplies it wrongly).
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numerics
import pytest
import torch
from torch import Tensor

from longconv.functional import fft_conv
from longconv.kernels.fftconv import fft_conv_reference
from longconv.kernels.gpu import interpreting

T = TypeVar("T")

_needs_interpreter = pytest.mark.skipif(not interpreting(), reason="on a CPU Triton runs in its interpreter only")
PLACES = {
    "cpu": {"id": "interpreter", "marks": _needs_interpreter},
    "cuda": {"id": "gpu", "marks": pytest.mark.gpu},
}

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Samples that a reference in float64 takes at a time.
CHUNK = 2**22


def at_each_place(cpu: list[T], cuda: list[T]) -> Callable[[Callable], Callable]:
    """Parametrise `place` and `case`: the cases of the first list on a CPU, of the second one on a GPU."""
    both = [("cpu", cpu), ("cuda", cuda)]
    return pytest.mark.parametrize(
        ("place", "case"),
        [
            pytest.param(place, case, id=f"{PLACES[place]['id']}-{label(case)}", marks=PLACES[place]["marks"])
            for place, cases in both
            for case in cases
        ],
    )


def label(case: object) -> str:
    """A case in few characters."""
    if isinstance(case, torch.dtype):
        return str(case).removeprefix("torch.")
    if isinstance(case, tuple | list):
        return "-".join(label(part) for part in case)
    return str(case)


# --- The grid ---------------------------------------------------------------------------------------------------------

FFT_SIZES = tuple(2**n for n in range(8, 23))
BATCHES, CHANNELS = (1, 2, 4, 8, 64), (768, 111)
# Samples of a tensor in the grid; a GPU with less memory than that takes fewer.
MOST_SAMPLES, FEWER_SAMPLES, LARGE_GPU = 2**27, 2**24, 60 * 2**30


@dataclass(frozen=True)
class GridCase:
    """A convolution of the grid. `full`: L = FFT size, around the circle; else L is half of it, and nothing wraps."""

    fft_size: int
    dtype: torch.dtype
    gated: bool
    full: bool
    B: int
    D: int

    @property
    def L(self) -> int:
        return self.fft_size if self.full else self.fft_size // 2

    def __str__(self) -> str:
        form = f"{'gated' if self.gated else 'plain'}-{'full' if self.full else 'half'}"
        return f"{self.fft_size}-{label(self.dtype)}-{form}-B{self.B}-D{self.D}"

    def shape(self, samples: int) -> tuple[int, int, int]:
        """(B, D, L) with at most so many samples: first there are fewer channels, then fewer batch rows."""
        D = max(1, min(self.D, samples // (self.B * self.L)))
        return max(1, min(self.B, samples // (D * self.L))), D, self.L


def grid() -> list[GridCase]:
    """A tenth of the cross product FFT size x (dtype, gated, full) x (B, D), in which any two of the three meet.

    Every FFT size is run with every dtype, gated and plain, full and half, because these decide which kernels run; the
    ten pairs (B, D), which decide how rows are dealt out, take turns, so that each meets every FFT size and every
    kind of kernel.
    """
    kinds = itertools.product(DTYPES, (False, True), (True, False))
    pairs = tuple(itertools.product(BATCHES, CHANNELS))
    return [
        GridCase(n, *kind, *pairs[(i + j) % len(pairs)])
        for (i, n), (j, kind) in itertools.product(enumerate(FFT_SIZES), enumerate(kinds))
    ]


def most_samples(place: str) -> int:
    """How many samples a tensor of the grid may have here."""
    if place == "cpu":
        return FEWER_SAMPLES
    return MOST_SAMPLES if torch.cuda.get_device_properties(0).total_memory >= LARGE_GPU else FEWER_SAMPLES


# --- Inputs and comparison --------------------------------------------------------------------------------------------


def make(place: str, B: int, D: int, L: int, K: int, dtype: torch.dtype, K_reverse: int = 0, *options: str) -> dict:
    """Arguments of `fft_conv` of unit scale, that want gradients; options: "skip", "pre_gate", "post_gate", "gates"."""
    options = tuple(itertools.chain.from_iterable(("pre_gate", "post_gate") if o == "gates" else (o,) for o in options))

    def rows() -> Tensor:
        return torch.randn(B, D, L, device=place, dtype=dtype).requires_grad_()

    def filters(*size: int) -> Tensor:
        return (torch.randn(D, *size, device=place) / max(1, K + K_reverse) ** 0.5).requires_grad_()

    x = {"u": rows(), "k": filters(K)}
    if K_reverse:
        x["k_reverse"] = filters(K_reverse)
    return x | {name: filters() if name == "skip" else rows() for name in options}


def run(x: dict[str, Tensor], dy: Tensor | None, impl: str = "triton", **way: object) -> dict[str, Tensor]:
    """The output "y" and the gradients, by the name of the argument."""
    y = fft_conv(**x, impl=impl, **way)
    dy = torch.randn_like(y) if dy is None else dy
    return {"y": y.detach(), **dict(zip(x, torch.autograd.grad(y, list(x.values()), dy), strict=True))}


def check(x: dict[str, Tensor], dy: Tensor | None = None, channels: list[int] | None = None, **way: object) -> None:
    """Run the kernels on x, and compare output and gradients with the float64 reference, some channels at a time.

    Args:
        x: tensor arguments of `fft_conv`, which want gradients.
        dy: incoming gradient; by default a random one.
        channels: compare these alone.
        way: `circular`, `cu_seqlens`.
    """
    dy = torch.randn_like(x["u"]) if dy is None else dy
    found = run(x, dy, **way)
    compare(found, x, dy, channels, **way)


def compare(
    found: dict[str, Tensor], x: dict[str, Tensor], dy: Tensor, channels: list[int] | None = None, **way: object
) -> None:
    """Compare what `run` gave with the reference; see `check`."""
    u = x["u"]
    for name, tensor in x.items():
        assert found[name].dtype == tensor.dtype, name
    every = torch.arange(u.shape[1]) if channels is None else torch.tensor(channels)
    for part in every.to(u.device).split(max(1, CHUNK // (u.shape[0] * u.shape[2]))):
        sums: dict[str, Tensor] = {}
        for rows in torch.arange(u.shape[0]).split(max(1, CHUNK // (len(part) * u.shape[2]))):
            batch = slice(int(rows[0]), int(rows[-1]) + 1)
            for name, wanted in _expected(x, dy, part, batch, way).items():
                if wanted.dim() == 3:
                    numerics.assert_close(_pick(found[name], part, batch), wanted, u.dtype, name)
                else:
                    sums[name] = sums.get(name, 0) + wanted
        for name, wanted in sums.items():
            numerics.assert_close(_pick(found[name], part), wanted, u.dtype, name)


def _expected(x: dict[str, Tensor], dy: Tensor, part: Tensor, batch: slice, way: dict) -> dict[str, Tensor]:
    """Output and gradients in float64, of some channels and batch rows alone."""
    leaves = {name: _pick(tensor, part, batch).detach().double().requires_grad_() for name, tensor in x.items()}
    y = fft_conv_reference(**leaves, **way)
    dy = _pick(dy, part, batch).double()
    grads = torch.autograd.grad(y, list(leaves.values()), dy, allow_unused=True, materialize_grads=True)
    return {"y": y.detach(), **dict(zip(leaves, grads, strict=True))}


def _pick(x: Tensor, channels: Tensor, batch: slice = slice(None)) -> Tensor:
    """Channels, and batch rows, of (B, D, L); channels of (D, K) or (D,)."""
    return x[batch, channels] if x.dim() == 3 else x[channels]
