"""Whole convolutions in C, on a CPU: all that happens to a row happens while it is in cache.

    rows.c       frames, filters, tasks, threads
    transform.h  transforms of rows, there and back
    plan.py      their tables, and the cut of rows into frames

Arithmetic is float32. What is not for this (float64, circular convolutions, other devices, dtypes that differ, no
compiler) is computed by PyTorch's operators (blocked.py, overlap.py).
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...native import GROUP, TYPES, Array, Native, numbers, parallel
from ..blocked import empty_gradients
from .plan import PlanStruct, cut_rows, make_plan

# Numbers of a spectrum of n points beyond 2n: the gap between real and imaginary parts and another, as in rows.c.
_ROW_MARGIN = 32
# Of rows.c: tensors that are read through tiles where their channels lie beside each other. The spectra of a group of
# filters are kept for that, so only rows of so many points are; longer ones are copied before.
_TENSORS, MOST_POINTS_TOGETHER = 4, 2**13
#: What `Call.run_stage` knows: the spectrum of a filter; reading a row; its transform, product and transform back;
#: writing the result.
STAGES = ("filter", "read", "transform", "write")


class _Job(ctypes.Structure):
    """`Job` of rows.c."""

    _fields_ = (
        ("plan", PlanStruct),
        *((name, ctypes.c_int64) for name in ("B", "D", "L", "type", "past", "future", "origin", "step", "frames")),
        *((name, ctypes.c_int64) for name in ("real", "group", "parts", "threads")),
        *((name, Array) for name in ("u", "pre_gate", "post_gate", "dy")),
        *((name, ctypes.c_void_p) for name in ("k", "skip", "k_reverse")),
        *((name, ctypes.c_void_p) for name in ("y", "du", "dpre_gate", "dpost_gate")),
        *((name, ctypes.c_void_p) for name in ("dk", "dskip", "dk_reverse", "scratch")),
        *((name, ctypes.c_int64) for name in ("per_thread", "next")),
    )


def unavailable(
    u: Tensor, filters: Sequence[Tensor | None], activations: Sequence[Tensor | None], circular: bool = False
) -> str:
    """Why `fft_conv` of u (B, D, L) cannot be computed here; empty if it can.

    Args:
        u: the input.
        filters: k, skip, k_reverse.
        activations: the gates, and the gradient of the output: what has u's shape.
        circular: whether it wraps.
    """
    if u.device.type != "cpu":
        return f"it needs a CPU, not {u.device.type}"
    if circular:
        return "it has no circular convolution"
    if u.dtype not in TYPES:
        return f"it has no {u.dtype}"
    if any(x is not None and x.dtype not in (u.dtype, torch.float32) for x in filters):
        return f"filters must be float32 or of u's dtype, {u.dtype}"
    if any(x is not None and x.dtype != u.dtype for x in activations):
        return f"gates must be of u's dtype, {u.dtype}"
    return _missing(u.dtype)


def conv_forward(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    k_reverse: Tensor | None,
    circular: bool,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    """Evaluate `fft_conv` (see there for shapes), unless `unavailable`: a new contiguous tensor of u's dtype."""
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if y.numel():
        Call(NATIVE.needed(), u, k, skip, k_reverse, pre_gate, post_gate).run_forward(y)
    return y


def conv_backward(
    dy: Tensor,
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    k_reverse: Tensor | None,
    circular: bool,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients as `blocked.conv_backward` gives them; those of filters are summed in an order that threads set."""
    grads = empty_gradients((u, k, skip, k_reverse, pre_gate, post_gate), needs)
    du, dk, dskip, dk_reverse, dpre, dpost = grads
    if not (u.numel() and any(grad.numel() for grad in grads)):
        return grads
    call = Call(NATIVE.needed(), u, k, skip, k_reverse, pre_gate, post_gate, dy)
    for name, grad in (("du", du), ("dpre_gate", dpre), ("dpost_gate", dpost)):
        setattr(call.job, name, grad.data_ptr() if grad.numel() else None)
    lags = {"dk": (dk, call.cut.past + 1), "dskip": (dskip, 1), "dk_reverse": (dk_reverse, call.cut.future)}
    shares = {}
    for name, (grad, count) in lags.items():
        if grad.numel() and count:
            whole = call.job.parts == 1 and grad.numel() == u.shape[1] * count and grad.dtype == torch.float32
            shares[name] = grad if whole else u.new_empty((call.job.parts, u.shape[1], count), dtype=torch.float32)
            setattr(call.job, name, shares[name].data_ptr())
    call.run(backward=True)
    for name, share in shares.items():
        grad, count = lags[name]
        if share is not grad:
            grad.view(u.shape[1], -1)[:, :count].copy_(share[0] if len(share) == 1 else share.sum(0))
    return grads


class Call:
    """A job, and what keeps its memory alive; with `dy` that of the gradients."""

    def __init__(
        self,
        library: ctypes.CDLL,
        u: Tensor,
        k: Tensor,
        skip: Tensor | None,
        k_reverse: Tensor | None,
        pre_gate: Tensor | None,
        post_gate: Tensor | None,
        dy: Tensor | None = None,
    ) -> None:
        self._library = library
        self._kept: list[Tensor] = []
        B, D, L = u.shape
        past = min(k.shape[1], L) - 1
        future = 0 if k_reverse is None else min(k_reverse.shape[1], L - 1)
        lanes = int(library.longconv_lanes())
        self.cut, threads = cut_rows(L, past, future, lanes), torch.get_num_threads()
        self.plan = make_plan(self.cut.n, lanes)
        channels_last = any(x is not None and x.stride(-1) != 1 for x in (u, pre_gate, post_gate, dy))
        together = channels_last and self.cut.frames == 1 and self.cut.n <= MOST_POINTS_TOGETHER
        group = GROUP if together else 1
        self.job = _Job(
            plan=self.plan.struct, B=B, D=D, L=L, type=TYPES[u.dtype], past=past, future=future,
            origin=self.cut.origin, step=self.cut.step, frames=self.cut.frames,
            real=int(self.cut.frames == 1 and self.cut.n >= L and self.plan.struct.levels > 0),
            group=group, parts=_parts(-(-D // group), B * self.cut.frames, threads), threads=threads,
            u=self._array(u, together), pre_gate=self._array(pre_gate, together),
            post_gate=self._array(post_gate, together), dy=self._array(dy, together),
            k=self._filter(k[:, : past + 1]), skip=self._filter(skip),
            k_reverse=self._filter(None if k_reverse is None else k_reverse[:, :future]),
        )  # fmt: skip

    def run_forward(self, y: Tensor) -> None:
        """Write the result into y (B, D, L), contiguous and of u's dtype."""
        self.job.y = y.data_ptr()
        self.run(backward=False)

    def run(self, backward: bool) -> None:
        """Compute what the job has pointers for."""
        group = self.job.group
        self._take_memory(2 + 2 * group + (self.cut.frames > 1) if backward else 1 + group)
        self._library.longconv_rows(ctypes.byref(self.job), int(backward), parallel())

    def run_stage(self, stage: str, repeats: int) -> None:
        """For measurements: do one of `STAGES` of the forward pass that often, in every thread, on a row in cache."""
        if self.cut.frames > 1 or self.job.group > 1:
            raise ValueError("stages are measured on rows of one frame, with samples beside each other")
        self._take_memory(2)
        which, count = ctypes.c_int64(STAGES.index(stage)), ctypes.c_int64(repeats)
        self._library.longconv_stage(ctypes.byref(self.job), which, count, parallel())

    def _take_memory(self, spectra: int) -> None:
        job = self.job
        job.per_thread = spectra * (2 * job.plan.n + _ROW_MARGIN)
        if job.group > 1:
            job.per_thread += _TENSORS * job.group * (job.L // 16 + 2) * 16
        self._memory = numbers("rows", job.threads * job.per_thread)  # nobody else may keep it
        job.scratch, job.next = self._memory.data_ptr(), 0

    def _array(self, x: Tensor | None, any_strides: bool) -> Array:
        if x is None:
            return Array()
        if not any_strides and x.stride(-1) != 1:
            x = x.contiguous()
        self._kept.append(x)
        # A row of one sample is a row, whatever its stride.
        return Array(x.data_ptr(), x.stride(0), x.stride(1), x.stride(2) if x.shape[2] > 1 else 1)

    def _filter(self, taps: Tensor | None) -> int | None:
        if taps is None or taps.numel() == 0:
            return None
        taps = taps.to(torch.float32).contiguous()
        self._kept.append(taps)
        return taps.data_ptr()


def _parts(channels: int, frames: int, threads: int) -> int:
    """Shares to cut the frames of a channel into, so that all threads have to do; each share transforms the filter."""

    def cost(parts: int) -> float:
        return -(-channels * parts // threads) * (0.6 + -(-frames // parts))

    return min(range(1, min(frames, threads) + 1), key=cost)


def _right(library: ctypes.CDLL) -> bool:
    """Whether a small example comes out right."""
    numbers_from_0 = torch.arange(600, dtype=torch.float32, device="cpu")
    u, k = numbers_from_0.cos().view(1, 2, 300), numbers_from_0[:260].sin().view(2, 130)
    y = torch.empty_like(u)
    Call(library, u, k, None, None, None, None).run_forward(y)
    padded = torch.nn.functional.pad(u[0].double(), (129, 0))
    exact = torch.nn.functional.conv1d(padded, k.double().flip(1)[:, None], groups=2)
    return bool((y[0] - exact).norm() < 1e-5 * exact.norm())


def _missing(dtype: torch.dtype) -> str:
    return NATIVE.unavailable(dtype)


# Or torch.compile would look into the build. It is what `torch.compiler.assume_constant_result` does, after importing
# the compiler, and with it Triton.
_missing._dynamo_marked_constant = True  # type: ignore[attr-defined]


NATIVE = Native(Path(__file__).with_name("rows.c"), _Job, _right)
