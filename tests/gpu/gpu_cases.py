"""What the tests of the Triton kernels share: where they run, the grid of cases, comparison with float64.

A test that takes `place` runs twice: marked `gpu` on "cuda", at sizes that matter, and on "cpu", in Triton's
interpreter, at tiny ones (bfloat16 left out: the interpreter multiplies it wrongly).
"""

import itertools
from collections.abc import Callable, Iterator
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
CHUNK = 2**23


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
    dtype = x["u"].dtype
    for name, tensor in x.items():
        assert found[name].dtype == tensor.dtype, name
    for part in _parts(x["u"], channels):
        leaves = {name: _pick(tensor, part).detach().double().requires_grad_() for name, tensor in x.items()}
        y = fft_conv_reference(**leaves, **way)
        exact = torch.autograd.grad(y, list(leaves.values()), _pick(dy, part).double(), allow_unused=True)
        expected = {"y": y.detach(), **dict(zip(leaves, exact, strict=True))}
        for name, wanted in expected.items():
            ours = _pick(found[name], part)
            wanted = torch.zeros_like(ours, dtype=torch.float64) if wanted is None else wanted
            numerics.assert_close(ours, wanted, dtype, name)


def _parts(u: Tensor, channels: list[int] | None) -> Iterator[Tensor]:
    every = torch.tensor(channels) if channels is not None else torch.arange(u.shape[1])
    yield from every.to(u.device).split(max(1, CHUNK // (u.shape[0] * u.shape[2])))


def _pick(x: Tensor, channels: Tensor) -> Tensor:
    """Channels of (B, D, L), (D, K) or (D,)."""
    return x[:, channels] if x.dim() == 3 else x[channels]
