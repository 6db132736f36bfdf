"""The least time that a long convolution can take on a GPU: its bytes, or its matrix products, at rates measured here.

The floor is the larger of two times: every input read once and every output written once, at the rate of a large copy;
and the operations of the transforms that our plan takes (`configs.ways`), at the rate of a large matrix product.
"""

import functools
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from longconv.kernels.fftconv.monarch.configs import Nested, Outer, Way, ways

from .gpu_points import Point
from .harness import time_call
from .report import Mode


@dataclass(frozen=True)
class Rates:
    """What a device was seen to do.

    Attributes:
        copy: bytes per second, read and written ones counted, of a large copy.
        matmul: operations per second of a large matrix product. In float32 a third of the TF32 rate, because there a
            product is made of three TF32 products.
    """

    copy: float
    matmul: float


@dataclass(frozen=True)
class Work:
    """What a convolution has to do: bytes to move, and operations of the matrix units."""

    bytes: int
    flops: float

    def floor_ms(self, rates: Rates) -> float:
        """The least time, in milliseconds."""
        return 1e3 * max(self.bytes / rates.copy, self.flops / rates.matmul)


def measure_rates(
    dtype: torch.dtype, device: torch.device, *, copy_bytes: int = 2**31, matmul_size: int = 8192, repeats: int = 10
) -> Rates:
    """Measure a copy of `copy_bytes` and a product of two square matrices of random numbers: medians of `repeats`."""
    source = torch.randint(2**15, (copy_bytes // 2,), dtype=torch.int16, device=device)
    copy_ms = _median_ms(functools.partial(torch.empty_like(source).copy_, source), device, repeats)
    a, b = (torch.randn(matmul_size, matmul_size, device=device).to(dtype) for _ in range(2))
    with _tf32():
        matmul_ms = _median_ms(lambda: a @ b, device, repeats)
    products = 3 if dtype == torch.float32 else 1
    return Rates(2e3 * copy_bytes / copy_ms, 2e3 * matmul_size**3 / matmul_ms / products)


def work(point: Point, mode: Mode, shared_limit: int) -> Work:
    """Count the bytes and operations of a point.

    Forward, half of the operations go to transforms and half to inverse ones. Backward transforms the input and the
    incoming gradient, and has an inverse transform for the gradient of u and of the input gate (it is the same), one
    for that of the output gate, if there are gates; the filters' gradients are sums of spectra.

    Args:
        point: the convolution.
        mode: "forward", or "forward+backward".
        shared_limit: bytes of shared memory that a block may use, which decides the plan.
    """
    B, D, L, K = point.shape
    row, filters = B * D * L * point.torch_dtype.itemsize, D * K * 4
    cut = ways(B, L, K, L - 1 if point.circular else 0, point.torch_dtype, shared_limit)[0]
    there_and_back = B * D * round_trip(cut)
    forward = Work((4 if point.gated else 2) * row + filters, there_and_back)
    if mode == "forward":
        return forward
    # u and dy in, du out; with gates these two come in as well, and their gradients go out
    tensors, transforms = (7, 4) if point.gated else (3, 3)
    return Work(forward.bytes + tensors * row + 2 * filters, forward.flops + transforms * there_and_back / 2)


def round_trip(cut: Way) -> float:
    """Operations of the matrix units to transform a row and back; see `configs.py` and `triton_stages.py`."""
    N1, N2 = cut.tile.N1, cut.tile.N2
    if isinstance(cut, Nested):  # its outer DFT is summed by the ordinary units
        return float(cut.P * cut.tile.N * 16 * (N1 + N2))
    if isinstance(cut, Outer):
        return float(cut.P * cut.tile.N * (8 * cut.P + 16 * (N1 + N2)))
    return cut.count * (1 + cut.pieces) / 2 * cut.tile.N * (8 * N1 + 16 * N2)


def _median_ms(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    for _ in range(3):
        call()
    return statistics.median(time_call(call, device) for _ in range(repeats))


@contextmanager
def _tf32() -> Iterator[None]:
    """Let float32 products run on matrix units."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
