"""What the benchmark of `fft_conv` on a GPU measures: sizes, forms and dtypes, the targets, and published numbers.

FlashFFTConv's table (README of its repository; the paper's Table 4) has the time of a gated forward pass by FFT size N.
Its benchmark (benchmarks/benchmark_flashfftconv.py there) convolves L = N samples with N taps around the circle for it
("gated conv"), and L = N / 2 samples with as many taps in its "padded" variants. Both are here, as "circular" and
"causal". It makes batch and channels smaller from 16K on, and scales the time to batch 64 and 768 channels: so do we,
with the same sizes, for everyone alike.
"""

import fnmatch
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from .report import Shape

Form = Literal["circular", "causal"]
FORMS: tuple[Form, ...] = get_args(Form)

FFT_SIZES = tuple(2**n for n in range(8, 23))
#: Rows (batch times channels) that times are scaled to.
FULL_ROWS = 64 * 768
# (B, D) from the size on at which FlashFFTConv's benchmark makes them smaller; with the last, 4M, they end.
_SHAPES = {
    2**8: (64, 768), 2**14: (32, 768), 2**15: (16, 768), 2**16: (8, 768), 2**17: (8, 384), 2**18: (8, 192),
    2**19: (8, 96), 2**20: (8, 48), 2**21: (8, 32), 2**22: (8, 16),
}  # fmt: skip

# Gated, forward, half precision, one H100-SXM, ms scaled to B = 64, D = 768.
PUBLISHED_SIZES = (2**8, 2**10, 2**12, 2**13, 2**14, 2**15, 2**20, 2**21, 2**22)
FLASHFFTCONV_MS = dict(zip(PUBLISHED_SIZES, (0.11, 0.29, 1.43, 3.58, 12.2, 26.3, 1768.9, 4623.5, 10049.4), strict=True))
PYTORCH_MS = dict(zip(PUBLISHED_SIZES, (0.62, 2.30, 9.49, 19.4, 29.9, 84.8, 3071.4, 6342.6, 13031.2), strict=True))


@dataclass(frozen=True)
class Targets:
    """What the project set out to reach at one FFT size, on an H200, for the circular gated convolution in bfloat16.

    Attributes:
        fft: times faster than torch's complex FFT, forward.
        rfft: times faster than torch's real FFT, forward.
        backward: times faster than torch's complex FFT, backward alone.
        memory: times less memory than torch's complex FFT needs, forward, inputs included.
        floor: share of the roofline floor.
    """

    fft: float | None
    rfft: float | None
    backward: float
    memory: float
    floor: float | None


def targets(fft_size: int) -> Targets:
    """The targets at an FFT size; those that have none there are None."""
    fft = {
        **dict.fromkeys((2**n for n in range(8, 14)), 8.0),
        2**14: 4.0,
        2**15: 4.0,
        2**20: 2.0,
        2**22: 1.5,
    }
    return Targets(
        fft=fft.get(fft_size),
        rfft=5.0 if 2**10 <= fft_size <= 2**13 else None,
        backward=4.0,
        memory=6.5,
        floor=0.5 if fft_size <= 2**13 else None,
    )


@dataclass(frozen=True)
class Point:
    """One convolution to measure.

    Attributes:
        form: "circular" (L = K = FFT size) or "causal" (L = K = half of it, so that nothing wraps).
        gated: whether there is a gate on the input and one on the output.
        dtype: of u, gates and output: "bfloat16", "float16" or "float32". Filters are float32.
        fft_size: of the transform that a convolution by FFT takes.
        B: batch.
        D: channels.
    """

    form: Form
    gated: bool
    dtype: str
    fft_size: int
    B: int
    D: int

    @property
    def name(self) -> str:
        """What `--points` patterns are compared with."""
        return f"{self.form}-{'gated' if self.gated else 'plain'}-{self.dtype}-{self.fft_size}"

    @property
    def circular(self) -> bool:
        """Whether indices wrap."""
        return self.form == "circular"

    @property
    def L(self) -> int:
        """Samples, and taps."""
        return self.fft_size if self.circular else self.fft_size // 2

    @property
    def shape(self) -> Shape:
        """The sizes."""
        return Shape(self.B, self.D, self.L, self.L)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch has it."""
        return getattr(torch, self.dtype)

    @property
    def headline(self) -> bool:
        """Whether it is the case of the published table and of the targets."""
        return self.circular and self.gated and self.dtype == "bfloat16"


def published_shape(fft_size: int) -> tuple[int, int]:
    """(B, D) at which FlashFFTConv's benchmark measures an FFT size."""
    return _SHAPES[max(n for n in _SHAPES if n <= fft_size)]


def all_points() -> list[Point]:
    """Every point, the most important first: the published table, then the causal form, without gates, other dtypes."""
    forms = itertools.product(("bfloat16", "float16", "float32"), (True, False), FORMS)
    order = sorted(forms, key=lambda f: (f[0] != "bfloat16") + (not f[1]) + (f[2] != "circular"))
    return [Point(form, gated, dtype, n, *published_shape(n)) for dtype, gated, form in order for n in FFT_SIZES]


def select(patterns: Sequence[str], quick: bool) -> list[Point]:
    """The points that a run measures, in order.

    Args:
        patterns: shell patterns (`*`, `?`, `[...]`) of names; a point is taken that fits any of them.
        quick: only those of the published table (among the ones that fit).

    Raises:
        ValueError: a pattern that fits no point, or nothing left of a quick run.
    """
    points = all_points()
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(point.name, pattern) for point in points):
            raise ValueError(f"points: no point is called {pattern!r}; one is called {points[0].name!r}")
    fitting = [p for p in points if not patterns or any(fnmatch.fnmatchcase(p.name, q) for q in patterns)]
    if not quick:
        return fitting
    published = [p for p in fitting if p.headline and p.fft_size in PUBLISHED_SIZES]
    if not published:
        raise ValueError(f"quick: none of the points {', '.join(patterns)} is in the published table")
    return published
