"""The dilated convolution and its weight gradient in Triton; imported when it is needed.

Shapes and offsets as in direct.py: output t sees through tap s the input t + (K-1-s) dilation - left. Tensors are made
contiguous, sums are in float32. Addresses are 64 bits wide: rows of L samples start at row * L with an int64 row.

Forward, a program computes BLOCK outputs of one row; the K reads of a sample hit the cache. Backward for the taps, a
program sums over a stretch of one channel's rows, tap after tap, and the sums of the stretches are added by PyTorch:
no atomic operations, so the result is the same at every call.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gpu import on_device_of
from .direct import empty_output

# Outputs of a program, and the most samples of a row that one program sums over for the taps' gradient.
BLOCK, STRETCH = 1024, 16384


@triton.jit
def _conv_kernel(  # type: ignore[no-untyped-def]
    u_ptr, k_ptr, bias_ptr, index_ptr, y_ptr, D, L, T, left, dilation, blocks,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    channel = (row % D).to(tl.int32)
    t = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    u_row = u_ptr + row * L
    step = tl.full((), 1, tl.int64) * dilation
    acc = tl.zeros((BLOCK,), tl.float32)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + channel).to(tl.float32)
    if PACKED:
        mine = tl.load(index_ptr + t, mask=t < T, other=-1)
    for s in range(K):
        at = t + ((K - 1 - s) * step - left)
        inside = (at >= 0) & (at < L) & (t < T)
        if PACKED:
            inside &= tl.load(index_ptr + at, mask=inside, other=-2) == mine
        tap = tl.load(k_ptr + channel * K + s).to(tl.float32)
        acc += tap * tl.load(u_row + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * T + t, acc.to(y_ptr.dtype.element_ty), mask=t < T)


@triton.jit
def _weight_grad_kernel(  # type: ignore[no-untyped-def]
    dy_ptr, u_ptr, index_ptr, part_ptr, D, L, T, left, dilation, stretches, steps,
    K: tl.constexpr, PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row = (program // stretches).to(tl.int64)
    start = (program % stretches) * (BLOCK * steps)
    u_row, dy_row = u_ptr + row * L, dy_ptr + row * T
    step = tl.full((), 1, tl.int64) * dilation
    for s in range(K):
        acc = tl.zeros((BLOCK,), tl.float32)
        for i in range(steps):  # no constant: unrolled, it takes 500 registers on AMD's GPUs
            t = start + i * BLOCK + tl.arange(0, BLOCK)
            at = t + ((K - 1 - s) * step - left)
            inside = (at >= 0) & (at < L) & (t < T)
            if PACKED:
                mine = tl.load(index_ptr + t, mask=t < T, other=-1)
                inside &= tl.load(index_ptr + at, mask=inside, other=-2) == mine
            grad = tl.load(dy_row + t, mask=inside, other=0.0).to(tl.float32)
            acc += grad * tl.load(u_row + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(part_ptr + program.to(tl.int64) * K + s, tl.sum(acc, 0))


def convolve(
    u: Tensor, k: Tensor, bias: Tensor | None, dilation: int, left: int, right: int, index: Tensor | None = None
) -> Tensor:
    """Evaluate what `direct.shifted` does; arguments and result as there."""
    (B, D, L), K = u.shape, k.shape[1]
    T = L + left + right - (K - 1) * dilation
    out = empty_output(u, T)
    y = out if out.is_contiguous() else torch.empty((B, D, T), dtype=u.dtype, device=u.device)
    if out.numel() == 0:
        return out
    blocks = triton.cdiv(T, BLOCK)
    u, k = u.contiguous(), k.contiguous()
    with on_device_of(u):
        _conv_kernel[(B * D * blocks,)](
            u, k, k if bias is None else bias.contiguous(), u if index is None else index, y,
            D, L, T, left, dilation, blocks,
            K=K, HAS_BIAS=bias is not None, PACKED=index is not None, BLOCK=BLOCK,
        )  # fmt: skip
    return out if y is out else out.copy_(y)


def weight_gradient(
    dy: Tensor, u: Tensor, K: int, dilation: int, left: int, right: int, index: Tensor | None = None
) -> Tensor:
    """Evaluate what `direct.weight_gradient` does, (D, K) in float32."""
    (B, D, T), L = dy.shape, u.shape[-1]
    if B * T == 0:
        return torch.zeros((D, K), dtype=torch.float32, device=u.device)
    steps = min(STRETCH // BLOCK, triton.next_power_of_2(triton.cdiv(T, BLOCK)))
    stretches = triton.cdiv(T, BLOCK * steps)
    parts = torch.empty((B, D, stretches, K), dtype=torch.float32, device=u.device)
    dy, u = dy.contiguous(), u.contiguous()
    with on_device_of(u):
        _weight_grad_kernel[(B * D * stretches,)](
            dy, u, u if index is None else index, parts, D, L, T, left, dilation, stretches, steps,
            K=K, PACKED=index is not None, BLOCK=BLOCK,
        )  # fmt: skip
    return parts.sum((0, 2))
