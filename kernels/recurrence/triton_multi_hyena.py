"""The step of a MultiHyena layer between its projections in Triton: one launch.

A program takes BB sequences and a whole head of H channels, because every product of a key's channel d and a value's
channel e has a state of its own, and the window of past inputs is written by who has read it. It goes through d, with
all e side by side, and through the modes BN at a time. Everything else is as in triton_step.py.
"""

# Types are Triton's business here.
# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gpu import Config, bucket
from .layout import ModeLayout
from .triton_step import MODES, SEQUENCES, WARPS, advance, modes_of, short, short_of, start

# Elements of a tile of sequences x channels of a head x modes; with 512, as there, a thread has 158 registers on sm_80.
TILE = 256


@triton.jit(do_not_specialize=["B", "M", "H", "N"])
def multi_hyena_step_kernel(
    u, u_b, u_d, past, past_b, past_d, past_k, weight, weight_d, weight_k, bias,
    poles, readout, passthrough, skip, state, state_b, starts, counts, y, B, M, H, N,
    K: tl.constexpr, BB: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y_e = sum_d q_d (h * w + skip w) with w = k_d v_e, and q, k, v = the short convolution of u's three parts."""
    across = tl.cdiv(B, BB)
    program = tl.program_id(0)
    b = (program % across).to(tl.int64) * BB + tl.arange(0, BB)
    e = tl.arange(0, BE)
    m = (program // across).to(tl.int64)
    live = (b < B)[:, None] & (e < H)[None, :]
    c, D = m * H + e, M * H
    q = short(
        u, u_b, u_d, past, past_b, past_d, past_k, weight, weight_d, weight_k, bias, b, c, live, K
    )  # fmt: skip
    k = short(
        u, u_b, u_d, past, past_b, past_d, past_k, weight, weight_d, weight_k, bias, b, c + D, live, K
    )  # fmt: skip
    v = short(
        u, u_b, u_d, past, past_b, past_d, past_k, weight, weight_d, weight_k, bias, b, c + 2 * D, live, K
    )  # fmt: skip
    dtype = poles.dtype.element_ty
    through = tl.load(passthrough + m).to(dtype) + tl.load(skip + m).to(dtype)
    head = tl.zeros_like(e).to(tl.int64) + m
    sums = tl.zeros([BB, BE], dtype)
    for d in range(H):
        # A thread has no other way to an element that another one holds.
        this = (e == d)[None, :]
        k_d, q_d = tl.sum(tl.where(this, k, 0.0), 1)[:, None], tl.sum(tl.where(this, q, 0.0), 1)[:, None]
        w = (k_d * v).to(dtype)
        row = (b[:, None] * H + d) * H + e[None, :]
        z = through * w + advance(w, poles, readout, state, state_b, starts, counts, row, head, live, M, N, BN)
        sums += q_d.to(dtype) * z
    tl.store(y + b[:, None] * D + c[None, :], sums.to(tl.float32).to(y.dtype.element_ty), mask=live)


def multi_hyena_step_(
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
    """Do what `multi_hyena.multi_hyena_step_` does; readout is the conjugate of the residues, no lazy one."""
    B, M, D = u_t.shape[0], skip.shape[0], u_t.shape[1] // 3
    y = torch.empty((B, D), dtype=u_t.dtype, device=u_t.device)
    if y.numel() == 0:
        return y
    arguments = modes_of(poles, readout, passthrough, state, layout)
    arguments |= short_of(u_t, short_state, short_weight, short_bias) | {"skip": skip.contiguous(), "y": y}
    arguments |= {"B": B, "M": M, "H": D // M}
    config = configuration(B, D // M, arguments["N"], short_weight.shape[1])
    start(multi_hyena_step_kernel, -(-B // config.constants["BB"]) * M, arguments, config)
    return y


def configuration(B: int, H: int, N: int, K: int) -> Config:
    """The tile for so many sequences, channels of a head and modes: powers of two, so that there are few variants."""
    BE = bucket(H)
    BN = min(bucket(max(1, N)), MODES, max(1, TILE // BE))
    BB = min(bucket(B), SEQUENCES, max(1, TILE // (BE * BN)))
    warps = max(1, min(WARPS, BB * BE * BN // 32))
    return Config({"K": K, "BB": BB, "BE": BE, "BN": BN}, num_warps=warps, num_stages=1)
