"""The impulse response of the modal recurrence; see scan.py for the system, the names and the shapes.

While a graph is being traced it is an operator of its own, `longconv::modal_kernel`: how exponents are split depends on
the length, which a graph for every length does not know yet, and compilers cannot fuse complex numbers anyway.
"""

import math

import torch
from torch import Tensor

from .scan import _check_modes, _pairs, _power_of_two, _powers, _without_autocast, _working_dtype

# Real numbers in the table of a pole's powers, for the channels that are taken at a time: 8 MB.
_TABLE_ELEMENTS = 1 << 20


@_without_autocast
def modal_kernel(poles: Tensor, residues: Tensor, passthrough: Tensor, length: int) -> Tensor:
    """Return the impulse response of the modal recurrence (module docstring) as a dense kernel.

    Exponents are split in two, lambda^(aT+b) with T about sqrt(length), and channels are taken so many at a time that
    the powers of their poles take little memory beside the result. Differentiable in the three tensors.

    Args:
        poles: (D, N) complex64 or complex128, N >= 0.
        residues: (D, N) complex.
        passthrough: (D,) real, the tap at lag 0.
        length: number of taps, >= 1.

    Returns:
        (D, length) real: float64 if any input is double precision, else float32.

    Raises:
        ValueError: an argument has the wrong shape, dtype or device, or length < 1.
    """
    _check_modes(poles, residues, passthrough)
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    if torch.compiler.is_compiling():
        return modal_kernel_op(poles, residues, passthrough, length)
    return _kernel(poles, residues, passthrough, length)


@torch.library.custom_op("longconv::modal_kernel", mutates_args=())
def modal_kernel_op(poles: Tensor, residues: Tensor, passthrough: Tensor, length: int) -> Tensor:
    """`modal_kernel`, which checks the arguments, as one node of a graph. Differentiable once."""
    return _kernel(poles, residues, passthrough, length)


@torch.library.custom_op("longconv::modal_kernel_backward", mutates_args=())
def modal_kernel_backward_op(dh: Tensor, poles: Tensor, residues: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients for poles and residues (D, N), given that of the kernel, dh (D, length).

    With G(lambda) = sum_s dh[s+1] lambda^s they are conj(R G'(lambda)) and conj(G(lambda)). Exponents are split as in
    the forward pass, s = a T + b, and so is the derivative.
    """
    dtype = _working_dtype(poles, residues, dh)
    D, taps = poles.shape[0], dh.shape[-1] - 1
    if taps == 0:
        return torch.zeros_like(poles), torch.zeros_like(residues)
    T, inner, outer = _split_powers(poles, taps)
    chunks = outer.shape[1]
    b = torch.arange(T, device=dh.device)[:, None]
    a = torch.arange(chunks, device=dh.device)[:, None]
    # d lambda^b = b lambda^(b-1), and 0 for b = 0, without dividing by lambda, which may be 0.
    inner_slope = b * torch.cat([inner[:, :1], inner[:, : T - 1]], dim=1)
    outer_slope = a * torch.cat([outer[:, :1], outer[:, : chunks - 1]], dim=1) * (T * inner[:, T - 1 : T])
    g = torch.nn.functional.pad(dh[:, 1:].to(dtype), (0, chunks * T - taps)).view(D, chunks, T)

    def within(powers: Tensor) -> Tensor:  # (D, T, N) -> sum over b, (D, chunks, N)
        pairs = torch.bmm(g, _pairs(powers, dtype)).double()
        return torch.view_as_complex(pairs.view(D, chunks, -1, 2))

    value = within(inner[:, :T])
    slope = (outer_slope * value + outer * within(inner_slope)).sum(1)
    dpoles = torch.conj_physical(residues.to(torch.complex128) * slope)
    return dpoles.to(poles.dtype), torch.conj_physical((outer * value).sum(1)).to(residues.dtype)


def _kernel(poles: Tensor, residues: Tensor, passthrough: Tensor, length: int) -> Tensor:
    D, N = poles.shape
    few = max(1, _TABLE_ELEMENTS // max(1, 2 * N * (math.isqrt(length) + 1)))
    if few >= D:
        return _of_channels(poles, residues, passthrough, length)
    parts = zip(poles.split(few), residues.split(few), passthrough.split(few), strict=True)
    kernels = (_of_channels(*part, length) for part in parts)
    if torch.is_grad_enabled():
        return torch.cat(list(kernels))
    out = torch.empty(D, length, dtype=_working_dtype(poles, residues, passthrough), device=poles.device)
    for at, kernel in zip(range(0, D, few), kernels, strict=True):
        out[at : at + few] = kernel
    return out


def _of_channels(poles: Tensor, residues: Tensor, passthrough: Tensor, length: int) -> Tensor:
    dtype = _working_dtype(poles, residues, passthrough)
    taps = length - 1
    first = passthrough.to(dtype)[:, None]
    if taps == 0:
        return first.clone()  # an operator's output must not share memory with its inputs
    T, inner, outer = _split_powers(poles, taps)
    outer = residues.to(torch.complex128)[:, None] * outer
    kernel = torch.bmm(_pairs(outer.conj(), dtype), _pairs(inner[:, :T], dtype).mT)
    return torch.cat([first, kernel.flatten(1)[:, :taps]], dim=-1)


def _split_powers(poles: Tensor, taps: int) -> tuple[int, Tensor, Tensor]:
    """T about sqrt(taps), lambda^0 .. lambda^T (D, T+1, N), and as many powers of lambda^T as cover the taps."""
    T = _power_of_two(math.isqrt(taps), 1, taps)
    inner = _powers(poles, T)
    return T, inner, _powers(inner[:, T], -(-taps // T) - 1)


@modal_kernel_op.register_fake
def _(poles, residues, passthrough, length):  # type: ignore[no-untyped-def]
    dtype = _working_dtype(poles, residues, passthrough)
    return torch.empty((poles.shape[0], length), dtype=dtype, device=poles.device)


@modal_kernel_backward_op.register_fake
def _(dh, poles, residues):  # type: ignore[no-untyped-def]
    return (
        torch.empty(poles.shape, dtype=poles.dtype, device=poles.device),
        torch.empty(residues.shape, dtype=residues.dtype, device=poles.device),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    poles, residues, passthrough, _ = inputs
    ctx.passthrough_dtype = passthrough.dtype
    ctx.save_for_backward(poles, residues)


def _backward(ctx, dh):  # type: ignore[no-untyped-def]
    dpoles, dresidues = modal_kernel_backward_op(dh, *ctx.saved_tensors)
    return dpoles, dresidues, dh[:, 0].to(ctx.passthrough_dtype), None


modal_kernel_op.register_autograd(_backward, setup_context=_setup_context)
