"""Benchmarks of operators against the alternatives, one file each; run as `longconv bench NAME`.

fftconv.py   long convolution: torch.fft, scipy, julius, fft-conv-pytorch
harness.py   what they share: oracle gate, interleaved timing, peak memory
report.py    the columns of a row, CSV file, table and plot
results/     rows appended by every run, with device, versions and date
"""

from collections.abc import Callable

from . import fftconv
from .report import Row

#: The functions behind `longconv bench NAME`.
BENCHMARKS: dict[str, Callable[..., list[Row]]] = {"fftconv": fftconv.run}

__all__ = ["BENCHMARKS"]
