"""`short_conv` in C (taps.c), on a CPU: gates, taps, bias and SiLU in one pass over memory, gradients in another.

Arithmetic is float32, sums over time for the gradients of taps and bias are float64.
"""

import ctypes
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ...native import GROUP, TYPES, Array, Native, numbers, parallel
from ..layout import laid_out_as

# Samples of an item: enough for what lies around it to be little beside it, few enough for its tiles to stay in cache.
LEAST_SAMPLES, REACHES = 512, 4
# Of taps.c: tiles of a thread.
_TILES = 4
# Shares that a group of channels is cut into for all threads to have work, not more than there are items. It does not
# depend on the number of threads, so neither does the order of the sums.
_SHARES = 64


class _Job(ctypes.Structure):
    """`Job` of taps.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("B", "D", "K", "shift", "type", "silu", "count")),
        ("items", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("parts", "threads")),
        *((name, Array) for name in ("u", "pre_gate", "post_gate", "dy", "y", "du", "dpre_gate", "dpost_gate")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "sums", "scratch")),
        *((name, ctypes.c_int64) for name in ("width", "next")),
    )


def unavailable(u: Tensor, weight: Tensor, bias: Tensor | None, *gates: Tensor | None) -> str:
    """Why `short_conv` of these tensors cannot be computed here; empty if it can."""
    if u.device.type != "cpu":
        return f"it needs a CPU, not {u.device.type}"
    if u.dtype not in TYPES:
        return f"it has no {u.dtype}"
    if any(x is not None and x.dtype not in TYPES for x in (weight, bias)):
        return "it has no float64"
    if any(x is not None and x.dtype != u.dtype for x in gates):
        return f"gates must be of u's dtype, {u.dtype}"
    return _missing(u.dtype)


def forward(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    cu_seqlens: Tensor | None,
    left: int,
    right: int,
    silu: bool,
) -> Tensor:
    """As `triton_launch.forward`, unless `unavailable`."""
    (B, D, L), K = u.shape, weight.shape[1]
    y = torch.empty((B, D, L + left + right - K + 1), dtype=u.dtype, device=u.device)
    if y.numel():
        call = _Call(NATIVE.needed(), u, weight, bias, pre_gate, post_gate, cu_seqlens, left, y.shape[-1], silu)
        call.run({"y": y})
    return y


def backward(
    dy: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    cu_seqlens: Tensor | None,
    left: int,
    right: int,
    silu: bool,
    needs: list[bool],
) -> list[Tensor]:
    """As `triton_launch.backward`, unless `unavailable`."""
    (B, D, L), K, T = u.shape, weight.shape[1], dy.shape[-1]
    du, dpre, dpost = (
        laid_out_as(x, x.shape[-1]) if need and x is not None else None
        for x, need in ((u, needs[0]), (pre_gate, needs[3]), (post_gate, needs[4]))
    )
    of_taps, of_bias = needs[1], needs[2] and bias is not None
    sums = None
    if B * D and max(L, T):
        call = _Call(NATIVE.needed(), u, weight, bias, pre_gate, post_gate, cu_seqlens, left, T, silu)
        if of_taps or of_bias:
            sums = torch.zeros((call.job.parts, D, K + 1), dtype=torch.float64, device="cpu")
        call.run({"dy": dy, "du": du, "dpre_gate": dpre, "dpost_gate": dpost}, sums)
    total = torch.zeros((D, K + 1), dtype=torch.float64, device="cpu") if sums is None else sums.sum(0)
    dweight = total[:, :K].to(weight.dtype).contiguous() if of_taps else None
    dbias = total[:, K].to(bias.dtype).contiguous() if of_bias and bias is not None else None
    grads = (du, dweight, dbias, dpre, dpost)
    return [u.new_empty(0) if x is None else x for x in grads]


class _Call:
    """A job, and what keeps its memory alive. T: number of results of a row."""

    def __init__(
        self,
        library: ctypes.CDLL,
        u: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        pre_gate: Tensor | None,
        post_gate: Tensor | None,
        cu_seqlens: Tensor | None,
        left: int,
        T: int,
        silu: bool,
    ) -> None:
        self._library = library
        self._kept: list[Tensor] = []
        (B, D, L), K = u.shape, weight.shape[1]
        shift = K - 1 - left
        samples = max(LEAST_SAMPLES, REACHES * (K - 1))
        items = _items_of_rows(L, T, samples) if cu_seqlens is None else _items_of_sequences(cu_seqlens, samples)
        groups = -(-D // GROUP)
        # The longest row of a tile: inputs of all gradients that inputs of an item show in, and vectors that overhang.
        width = samples + max(shift, 0) + max(K - 1 - shift, 0) + K - 1 + 5 * GROUP
        self.job = _Job(
            B=B, D=D, K=K, shift=shift, type=TYPES[u.dtype], silu=silu,
            count=len(items), items=self._keep(items), parts=min(B * len(items), -(-_SHARES // groups)),
            threads=torch.get_num_threads(),
            u=self._array(u), pre_gate=self._array(pre_gate), post_gate=self._array(post_gate),
            weight=self._keep(weight.to(torch.float32).contiguous()),
            bias=None if bias is None else self._keep(bias.to(torch.float32).contiguous()),
            width=(width // 16 | 1) * 16,  # an odd number of lines: rows of a tile get out of each other's way
        )  # fmt: skip

    def run(self, tensors: dict[str, Tensor | None], sums: Tensor | None = None) -> None:
        """Compute what `tensors` asks for: y, or from dy the gradients of its other names and `sums`."""
        for name, x in tensors.items():
            setattr(self.job, name, self._array(x))
        job = self.job
        job.sums = None if sums is None else sums.data_ptr()
        memory = numbers("taps", job.threads * _TILES * GROUP * job.width)
        job.scratch, job.next = memory.data_ptr(), 0
        self._library.longconv_taps(ctypes.byref(job), int("dy" in tensors), parallel())

    def _keep(self, x: Tensor) -> int:
        self._kept.append(x)
        return x.data_ptr()

    def _array(self, x: Tensor | None) -> Array:
        return Array() if x is None else Array(self._keep(x), *x.stride())


@lru_cache(maxsize=256)
def _items_of_rows(L: int, T: int, samples: int) -> Tensor:
    """Rows of L samples and T results, cut into items of so many samples: (items, 6), see `Item` of taps.c."""
    return _cut(torch.tensor([[0, L, 0, T]], dtype=torch.int64, device="cpu"), samples)


def _items_of_sequences(cu_seqlens: Tensor, samples: int) -> Tensor:
    """The same of packed sequences, whose results are as many as their samples."""
    ends = cu_seqlens.to(torch.int64)
    spans = torch.stack([ends[:-1], ends[1:], ends[:-1], ends[1:]], 1)
    return _cut(spans[spans[:, 1] > spans[:, 0]], samples)


def _cut(spans: Tensor, samples: int) -> Tensor:
    start, end = spans[:, 0], torch.maximum(spans[:, 1], spans[:, 3])
    counts = -((start - end) // samples)
    of = torch.arange(len(spans), device="cpu").repeat_interleave(counts)
    nth = torch.arange(len(of), device="cpu") - (counts.cumsum(0) - counts)[of]
    first = start[of] + nth * samples
    return torch.cat([spans[of], first[:, None], torch.minimum(first + samples, end[of])[:, None]], 1)


def _right(library: ctypes.CDLL) -> bool:
    """Whether a small example comes out right."""
    numbers_from_0 = torch.arange(2100, dtype=torch.float32, device="cpu")
    u, weight = numbers_from_0.cos().view(1, 3, 700), numbers_from_0[:15].sin().view(3, 5)
    y = torch.empty_like(u)
    _Call(library, u, weight, None, None, None, None, 4, 700, False).run({"y": y})
    padded = torch.nn.functional.pad(u[0].double(), (4, 0))
    exact = torch.nn.functional.conv1d(padded, weight.double().flip(1)[:, None], groups=3)
    return bool((y[0] - exact).norm() < 1e-5 * exact.norm())


def _missing(dtype: torch.dtype) -> str:
    return NATIVE.unavailable(dtype)


# Or torch.compile would look into the build. It is what `torch.compiler.assume_constant_result` does, after importing
# the compiler, and with it Triton.
_missing._dynamo_marked_constant = True  # type: ignore[attr-defined]


NATIVE = Native(Path(__file__).with_name("taps.c"), _Job, _right)
