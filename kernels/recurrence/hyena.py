"""One step of a Hyena layer of order 2 between its projections, in place: one launch on a GPU."""

import torch
from torch import Tensor

from .dispatch import takes_triton
from .layout import ModeLayout
from .scan import _without_autocast
from .step import advance_, check_step, check_vectors


@_without_autocast
@torch.no_grad()
def hyena_step_(
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
    """Mix one sample, and write the new states over the old ones (Poli et al. 2023, equation 4 with n = 2):

        x_0, x_1, v = short convolution of u,    w = x_1 v,    y = x_0 (h * w + skip w)

    with h the filter of the modal recurrence (scan.py). Not differentiable.

    Args:
        u_t: (B, 3D) real, x_0, x_1 and v before the short convolution.
        short_state: (B, 3D, K-1) real, the inputs before u_t, oldest first; modified.
        short_weight: (3D, K), K >= 1; tap s multiplies the input s steps back.
        short_bias: (3D,).
        poles, residues, passthrough, state, layout: as in `modal_step_`; state is modified.
        skip: (D,).
        impl: "torch"; "triton" (one launch; on a GPU, or anywhere under `TRITON_INTERPRET=1`); "auto" takes Triton for
            tensors on a GPU where it can: u_t in float32 or half precision, and a state whose rows are contiguous.

    Returns:
        y_t (B, D) in u_t's dtype. The recurrence is in the precision of the poles, all else in that of u_t and
        short_weight, at least float32; what comes between is not rounded.

    Raises:
        ValueError: an argument has the wrong shape, dtype or device, or `impl="triton"` where Triton cannot do it.
    """
    if skip.dim() != 1:
        raise ValueError(f"skip must have shape (D,), got {tuple(skip.shape)}")
    check_short(u_t, short_state, short_weight, short_bias, 3 * skip.shape[0])
    check_vectors(u_t, skip.shape[0], skip=skip)
    check_step(u_t[:, : skip.shape[0]], poles, residues, passthrough, state, layout)
    arguments = (u_t, short_state, short_weight, short_bias, poles, residues, passthrough, skip, state)
    if torch.compiler.is_compiling():
        from .op import hyena_step_op, spread

        return hyena_step_op(*arguments, *spread(layout), impl)
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
    """`hyena_step_` with its arguments checked."""
    if takes_triton(impl, u_t, state, short_state, short_weight, short_bias, skip):
        from . import triton_step

        readout = residues.conj().resolve_conj()
        return triton_step.hyena_step_(
            u_t, short_state, short_weight, short_bias, poles, readout, passthrough, skip, state, layout
        )
    z = short_step_(u_t, short_state, short_weight, short_bias)
    gate, inner, v = z.chunk(3, 1)
    w = (inner * v).to(poles.real.dtype)
    y = advance_(w, poles, residues, state, layout)
    y.addcmul_(w, (passthrough + skip).to(y.dtype))
    return y.mul_(gate).to(u_t.dtype)


def short_step_(u_t: Tensor, short_state: Tensor, short_weight: Tensor, short_bias: Tensor) -> Tensor:
    """A sample of the short convolution (B, C), in the widest dtype and at least float32; the window moves by one."""
    dtype = torch.promote_types(torch.promote_types(u_t.dtype, short_weight.dtype), torch.float32)
    # Tap by tap: a sum over three neighbours in memory takes several times as long. A copy side by side pays when many
    # rows read it.
    taps = short_weight.to(dtype).t()
    now, *before = (taps.contiguous() if len(u_t) > 4 else taps).unbind(0)
    past = short_state.unbind(-1)
    z = torch.addcmul(short_bias.to(dtype), u_t.to(dtype), now)
    for x, tap in zip(past, reversed(before), strict=True):
        z.addcmul_(x.to(dtype), tap)
    for x, after in zip(past, (*past[1:], u_t), strict=False):
        x.copy_(after)
    return z


def check_short(u_t: Tensor, short_state: Tensor, short_weight: Tensor, short_bias: Tensor, width: int) -> None:
    """Raise what `hyena_step_` promises for a short convolution of `width` = 3D channels."""
    if u_t.dim() != 2 or u_t.shape[1] != width:
        raise ValueError(f"u_t must have shape (B, 3D) with 3D = {width}, got {tuple(u_t.shape)}")
    if short_weight.dim() != 2 or short_weight.shape[0] != width or short_weight.shape[1] < 1:
        raise ValueError(
            f"short_weight must have shape (3D, K) with 3D = {width}, K >= 1, got {tuple(short_weight.shape)}"
        )
    if short_bias.shape != (width,):
        raise ValueError(f"short_bias must have shape (3D,) = ({width},), got {tuple(short_bias.shape)}")
    expected = (u_t.shape[0], width, short_weight.shape[1] - 1)
    if short_state.shape != expected:
        raise ValueError(f"short_state must have shape (B, 3D, K-1) = {expected}, got {tuple(short_state.shape)}")
    for name, x in (
        ("u_t", u_t), ("short_state", short_state), ("short_weight", short_weight), ("short_bias", short_bias),
    ):  # fmt: skip
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {x.dtype}")
        if x.device != u_t.device:
            raise ValueError(f"{name} is on {x.device}, u_t on {u_t.device}")
