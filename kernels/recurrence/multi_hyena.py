"""One step of a MultiHyena layer between its projections, in place: one launch on a GPU."""

import torch
from torch import Tensor

from .dispatch import takes_triton
from .hyena import check_short, short_step_
from .layout import ModeLayout
from .scan import _without_autocast
from .step import advance_, check_step, check_vectors


@_without_autocast
@torch.no_grad()
def multi_hyena_step_(
    u_t: Tensor,
    short_state: Tensor,
    short_weight: Tensor,
    short_bias: Tensor,
    poles: Tensor,
    residues: Tensor,
    passthrough: Tensor,
    skip: Tensor,
    state: Tensor,
    layout: ModeLayout | None = None,
    *,
    impl: str = "auto",
) -> Tensor:
    """Mix one sample, and write the new states over the old ones (Massaroli et al. 2023, section 4):

        q, k, v = short convolution of u, each in M heads of H channels,    w_de = k_d v_e
        y_e = sum_d q_d (h * w_de + skip w_de)                              for every head

    with h the head's filter, a modal recurrence (scan.py). Not differentiable.

    Args:
        u_t: (B, 3D) real, q, k and v before the short convolution, D = M H.
        short_state: (B, 3D, K-1) real, the inputs before u_t, oldest first; modified.
        short_weight: (3D, K), K >= 1; tap s multiplies the input s steps back.
        short_bias: (3D,).
        poles, residues: (M, N) complex, or (P,) in the order of `layout`; as in `modal_step_`.
        passthrough, skip: (M,).
        state: (B H H, M, N) or (B H H, P) complex, its rows in the order (b, d, e); modified.
        layout: where each head's modes are, if their numbers differ.
        impl: as in `hyena_step_`.

    Returns:
        y_t (B, D) in u_t's dtype. The recurrence is in the precision of the poles, all else in that of u_t and
        short_weight, at least float32; what comes between is not rounded.

    Raises:
        ValueError: an argument has the wrong shape, dtype or device, or `impl="triton"` where Triton cannot do it.
    """
    heads = skip.shape[0] if skip.dim() == 1 else 0
    if u_t.dim() != 2 or not heads or u_t.shape[1] == 0 or u_t.shape[1] % (3 * heads):
        raise ValueError(
            f"u_t must be (B, 3D) and skip (M,), D a multiple of M, got {tuple(u_t.shape)} and {tuple(skip.shape)}"
        )
    check_short(u_t, short_state, short_weight, short_bias, u_t.shape[1])
    check_vectors(u_t, heads, skip=skip)
    H = u_t.shape[1] // (3 * heads)
    inputs = u_t[:1, :heads].expand(
        len(u_t) * H * H, heads
    )  # of the recurrence: only its shape and dtype are looked at
    check_step(inputs, poles, residues, passthrough, state, layout)
    arguments = (u_t, short_state, short_weight, short_bias, poles, residues, passthrough, skip, state)
    if torch.compiler.is_compiling():
        from .op import multi_hyena_step_op, spread

        return multi_hyena_step_op(*arguments, *spread(layout), impl)
    return step(*arguments, layout, impl)


def step(
    u_t: Tensor,
    short_state: Tensor,
    short_weight: Tensor,
    short_bias: Tensor,
    poles: Tensor,
    residues: Tensor,
    passthrough: Tensor,
    skip: Tensor,
    state: Tensor,
    layout: ModeLayout | None,
    impl: str,
) -> Tensor:
    """`multi_hyena_step_` with its arguments checked."""
    if takes_triton(impl, u_t, state, short_state, short_weight, short_bias, skip):
        from . import triton_multi_hyena

        readout = residues.conj().resolve_conj()
        return triton_multi_hyena.multi_hyena_step_(
            u_t, short_state, short_weight, short_bias, poles, readout, passthrough, skip, state, layout
        )
    z = short_step_(u_t, short_state, short_weight, short_bias)
    heads = skip.shape[0]
    q, k, v = z.unflatten(1, (3, heads, -1)).transpose(2, 3).unbind(1)  # (B, H, M) each
    w = (k[:, :, None] * v[:, None]).to(poles.real.dtype)  # (B, d, e, M)
    rows = w.flatten(0, 2)
    y = advance_(rows, poles, residues, state, layout)
    y.addcmul_(rows, (passthrough + skip).to(y.dtype))
    return (y.view_as(w) * q[:, :, None]).sum(1).transpose(1, 2).flatten(1).to(u_t.dtype)
