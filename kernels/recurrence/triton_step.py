"""Steps of the modal recurrence in Triton, one launch each: with skip, bias and activation, and with what a Hyena layer
has around it. That of MultiHyena is in triton_multi_hyena.py.

A program takes BB sequences and BD channels, and goes through the modes of a channel BN at a time: each is read once
and written once, in place, so nobody else may touch it. Poles and residues are read once for the BB sequences. Complex
numbers are pairs in memory, of which a thread has both parts. Arithmetic is in the precision of the poles (float64 for
complex128), around it in float32; a state of less precision is widened and rounded once. Offsets are 64 bits wide.

Without `starts` the modes of channel d are at d N ... d N + N - 1; with it at starts[d] ... + counts[d] - 1, and N is
the largest count. A tensor comes as its pointer and its strides; `readout` is the conjugate of the residues.
"""

# Types are Triton's business here.
# mypy: allow-untyped-defs, allow-incomplete-defs

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gpu import Config, bucket, on_device_of
from .layout import ModeLayout

# Elements of a tile of sequences x channels x modes, and its warps: four of each for a thread, 60 to 120 registers.
TILE, WARPS = 512, 4
# Poles and residues are half of what is read for one sequence, and a tenth for eight.
SEQUENCES, MODES = 8, 16
# Small tiles for few sequences, so that there are enough programs for a large GPU.
PROGRAMS, FEWEST_CHANNELS = 264, 4
# Loops over so many taps are unrolled.
UNROLLED = tl.constexpr(4)
COUNTS = ["B", "D", "N"]


@triton.jit
def _places(B, D, BB: tl.constexpr, BD: tl.constexpr):
    """Sequences and channels of this program, and which there are; consecutive programs share poles and residues."""
    across = tl.cdiv(B, BB)
    program = tl.program_id(0)
    b = (program % across).to(tl.int64) * BB + tl.arange(0, BB)
    d = (program // across).to(tl.int64) * BD + tl.arange(0, BD)
    return b, d, (b < B)[:, None] & (d < D)[None, :]


@triton.jit
def _pair(x, at, inside):
    """Real and imaginary parts of the complex numbers at `at`."""
    last = tl.arange(0, 2)
    if len(at.shape) == 2:
        value = tl.load(x + 2 * at[:, :, None] + last[None, None, :], mask=inside[:, :, None], other=0.0)
    else:
        value = tl.load(x + 2 * at[:, :, :, None] + last[None, None, None, :], mask=inside[:, :, :, None], other=0.0)
    return tl.split(value)


@triton.jit
def advance(v, poles, readout, state, state_b, starts, counts, row, d, live, D, N, BN: tl.constexpr):
    """Return Re sum_n R_n x_n, and write lambda_n x_n + v over x_n; v (BB, BD) in the precision of the poles.

    The modes are those of channels d (BD,) of D, in rows of the state (BB, BD) or (BB, 1).
    """
    if starts is not None:
        first = tl.load(starts + d, mask=d < D, other=0)
        count = tl.load(counts + d, mask=d < D, other=0).to(tl.int32)
    else:
        first = d * N
        count = tl.zeros_like(d).to(tl.int32) + N
    total = tl.zeros_like(v)
    for begin in range(0, N, BN):
        n = begin + tl.arange(0, BN)
        there = (n[None, :] < count[:, None]) & (d < D)[:, None]
        at = first[:, None] + n[None, :]
        pole, pole_im = _pair(poles, at, there)
        out, out_im = _pair(readout, at, there)
        inside = there[None, :, :] & live[:, :, None]
        place = row[:, :, None] * state_b + at[None, :, :]
        x, x_im = _pair(state, place, inside)
        x, x_im = x.to(v.dtype), x_im.to(v.dtype)
        total += tl.sum(out[None] * x + out_im[None] * x_im, 2)
        new = pole[None] * x - pole_im[None] * x_im + v[:, :, None]
        new_im = pole[None] * x_im + pole_im[None] * x
        last = tl.arange(0, 2)[None, None, None, :]
        value = tl.join(new, new_im).to(state.dtype.element_ty)
        tl.store(state + 2 * place[:, :, :, None] + last, value, mask=inside[:, :, :, None])
    return total


@triton.jit(do_not_specialize=COUNTS)
def modal_step_kernel(
    u, u_b, u_d, poles, readout, passthrough, skip, bias, state, state_b, starts, counts, y, B, D, N,
    ACTIVATION: tl.constexpr, BB: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y = activation(Re sum_n R_n x_n + (h_0 + skip) u + bias), and the state advanced by u."""
    b, d, live = _places(B, D, BB, BD)
    dtype = poles.dtype.element_ty
    v = tl.load(u + b[:, None] * u_b + d[None, :] * u_d, mask=live, other=0.0).to(dtype)
    total = advance(v, poles, readout, state, state_b, starts, counts, b[:, None], d, live, D, N, BN)
    through = tl.load(passthrough + d, mask=d < D, other=0.0).to(dtype)
    if skip is not None:
        through += tl.load(skip + d, mask=d < D, other=0.0).to(dtype)
    total += through[None, :] * v
    if bias is not None:
        total += tl.load(bias + d, mask=d < D, other=0.0).to(dtype)[None, :]
    # By way of float32, also without an activation: the interpreter knows no cast from float64 to bfloat16.
    total = _activate(total.to(tl.float32), ACTIVATION)
    tl.store(y + b[:, None] * D + d[None, :], total.to(y.dtype.element_ty), mask=live)


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    elif ACTIVATION == "relu":
        x = tl.where(x < 0.0, 0.0, x)  # not maximum: NaN stays NaN
    else:
        tl.static_assert(ACTIVATION is None)
    return x


@triton.jit
def short(u, u_b, u_d, past, past_b, past_d, past_k, weight, weight_d, weight_k, bias, b, c, live, K: tl.constexpr):
    """One sample of the short convolution of channels c, (BB, BD) float32; its past inputs move up by one."""
    now = tl.load(u + b[:, None] * u_b + c[None, :] * u_d, mask=live, other=0.0)
    within = tl.max(live.to(tl.int32), 0) > 0
    z = tl.load(weight + c * weight_d, mask=within, other=0.0).to(tl.float32)[None, :] * now.to(tl.float32)
    z += tl.load(bias + c, mask=within, other=0.0).to(tl.float32)[None, :]
    line = past + b[:, None] * past_b + c[None, :] * past_d
    if K <= UNROLLED:
        for j in tl.static_range(K - 1):
            z += _earlier(line, past_k, weight + c * weight_d, weight_k, within, live, j, K)
    else:
        for j in range(K - 1):
            z += _earlier(line, past_k, weight + c * weight_d, weight_k, within, live, j, K)
    if K > 1:
        tl.store(line + (K - 2) * past_k, now.to(past.dtype.element_ty), mask=live)
    return z


@triton.jit
def _earlier(line, past_k, taps, weight_k, within, live, j, K: tl.constexpr):
    x = tl.load(line + j * past_k, mask=live, other=0.0)
    tl.store(line + (j - 1) * past_k, x, mask=live & (j > 0))
    tap = tl.load(taps + (K - 1 - j) * weight_k, mask=within, other=0.0)
    return tap.to(tl.float32)[None, :] * x.to(tl.float32)


@triton.jit(do_not_specialize=COUNTS)
def hyena_step_kernel(
    u, u_b, u_d, past, past_b, past_d, past_k, weight, weight_d, weight_k, bias,
    poles, readout, passthrough, skip, state, state_b, starts, counts, y, B, D, N,
    K: tl.constexpr, BB: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """x_0 (h * (x_1 v) + skip x_1 v) with x_0, x_1, v = the short convolution of u's three parts."""
    b, d, live = _places(B, D, BB, BD)
    dtype = poles.dtype.element_ty
    # Written out: Triton has no functions within functions.
    gate = short(
        u, u_b, u_d, past, past_b, past_d, past_k, weight, weight_d, weight_k, bias, b, d, live, K
    )  # fmt: skip
    inner = short(
        u, u_b, u_d, past, past_b, past_d, past_k, weight, weight_d, weight_k, bias, b, d + D, live, K
    )  # fmt: skip
    inner *= short(
        u, u_b, u_d, past, past_b, past_d, past_k, weight, weight_d, weight_k, bias, b, d + 2 * D, live, K
    )  # fmt: skip
    v = inner.to(dtype)
    total = advance(v, poles, readout, state, state_b, starts, counts, b[:, None], d, live, D, N, BN)
    through = tl.load(passthrough + d, mask=d < D, other=0.0).to(dtype)
    through += tl.load(skip + d, mask=d < D, other=0.0).to(dtype)
    total += through[None, :] * v
    value = (gate.to(dtype) * total).to(tl.float32)
    tl.store(y + b[:, None] * D + d[None, :], value.to(y.dtype.element_ty), mask=live)


def modal_step_(
    u_t: Tensor,
    poles: Tensor,
    readout: Tensor,
    passthrough: Tensor,
    state: Tensor,
    layout: ModeLayout | None,
    skip: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Do what `step.modal_step_` does; readout is the conjugate of the residues, no lazy one."""
    y = torch.empty(u_t.shape, dtype=u_t.dtype, device=u_t.device)
    arguments = modes_of(poles, readout, passthrough, state, layout)
    arguments |= {"u": u_t, "u_b": u_t.stride(0), "u_d": u_t.stride(1), "y": y}
    arguments |= {name: None if x is None else x.contiguous() for name, x in (("skip", skip), ("bias", bias))}
    _launch(modal_step_kernel, arguments, u_t.shape[0], u_t.shape[1], {"ACTIVATION": activation})
    return y


def hyena_step_(
    u_t: Tensor,
    short_state: Tensor,
    short_weight: Tensor,
    short_bias: Tensor,
    poles: Tensor,
    readout: Tensor,
    passthrough: Tensor,
    skip: Tensor,
    state: Tensor,
    layout: ModeLayout | None,
) -> Tensor:
    """Do what `hyena.hyena_step_` does; readout is the conjugate of the residues, no lazy one."""
    B, D = u_t.shape[0], skip.shape[0]
    y = torch.empty((B, D), dtype=u_t.dtype, device=u_t.device)
    arguments = modes_of(poles, readout, passthrough, state, layout)
    arguments |= short_of(u_t, short_state, short_weight, short_bias) | {"skip": skip.contiguous(), "y": y}
    _launch(hyena_step_kernel, arguments, B, D, {"K": short_weight.shape[1]})
    return y


def short_of(u_t: Tensor, short_state: Tensor, short_weight: Tensor, short_bias: Tensor) -> dict[str, Any]:
    """The arguments of `short`."""
    arguments: dict[str, Any] = {"bias": short_bias.contiguous()}
    for name, tensor, strides in (("u", u_t, "bd"), ("past", short_state, "bdk"), ("weight", short_weight, "dk")):
        arguments[name] = tensor
        arguments |= {f"{name}_{axis}": stride for axis, stride in zip(strides, tensor.stride(), strict=True)}
    return arguments


def modes_of(
    poles: Tensor, readout: Tensor, passthrough: Tensor, state: Tensor, layout: ModeLayout | None
) -> dict[str, Any]:
    """The arguments of `advance`, but for the tile."""
    return {
        "poles": torch.view_as_real(poles.contiguous()),
        "readout": torch.view_as_real(readout.contiguous()),
        "passthrough": passthrough.contiguous(),
        "state": torch.view_as_real(state),
        "state_b": state.stride(0),
        "starts": None if layout is None else layout.starts,
        "counts": None if layout is None else layout.counts,
        "N": poles.shape[1] if layout is None else max(width for _, width in layout.groups),
    }


def _launch(kernel: Any, arguments: dict[str, Any], B: int, D: int, constants: dict[str, Any]) -> None:
    if B == 0 or D == 0:
        return
    config = configuration(B, D, arguments["N"], constants)
    BB, BD = config.constants["BB"], config.constants["BD"]
    start(kernel, -(-B // BB) * -(-D // BD), arguments | {"B": B, "D": D}, config)


def configuration(B: int, D: int, N: int, constants: dict[str, Any]) -> Config:
    """The tile for so many sequences, channels and modes: powers of two, so that few variants are ever compiled."""
    BB, BN = min(bucket(B), SEQUENCES), min(bucket(max(1, N)), MODES)
    BD = min(bucket(D), max(1, TILE // (BB * BN)))
    while BD > FEWEST_CHANNELS and -(-B // BB) * -(-D // BD) < PROGRAMS:
        BD //= 2
    # A tile smaller than a thread each needs fewer warps.
    warps = max(1, min(WARPS, BB * BD * BN // 32))
    return Config(constants | {"BB": BB, "BD": BD, "BN": BN}, num_warps=warps, num_stages=1)


def start(kernel: Any, programs: int, arguments: dict[str, Any], config: Config) -> None:
    """Launch on the device of u, on its current stream."""
    with on_device_of(arguments["u"]):
        kernel[(programs,)](**arguments, **config.launch())
