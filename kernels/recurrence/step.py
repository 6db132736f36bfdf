"""One step of the modal recurrence (scan.py has the system and the names), as a value and in place.

In place is for generation: the state stays where it is, so that a step can be captured in a CUDA graph. In PyTorch's
operators it takes three passes over the state: products for the output, times the poles, plus the input. (`addcmul`
would be one pass less, but takes longer: complex, it is not vectorised.)

Precision. Poles are best kept in complex128 whatever the state has: rounded to complex64 they are off by 3e-8 in every
step, which a mode that lasts thousands of steps adds up. A complex64 state with complex128 poles is widened, advanced
in double precision and rounded once. Relative L2 error of 65,536 outputs, against long double, input ~ N(0, 1):

    poles and arithmetic / state           complex128 / 128    complex128 / 64    complex64 / 64
    one mode, |lambda| = 0.9                    1e-16               6e-08             1e-07
    one mode, |lambda| = 0.999                  1e-15               6e-07             1e-05
    one mode, |lambda| = 1 - 1e-6               1e-14               3e-06             6e-04
    eight modes, 0.9 ... 1 - 1e-6               4e-15               4e-06             6e-04
    residues 100, -100 that cancel, 0.99        8e-14               4e-05             7e-05
    the same, 1 - 1e-4                          7e-13               3e-04             4e-02
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import takes_triton
from .layout import ModeLayout
from .scan import _check_device, _check_input, _check_modes, _check_state, _without_autocast

# Batch rows are taken so many modes at a time: what a step writes besides the state stays in cache.
_BLOCK_MODES = 1 << 17
# So few modes in all take less time by index than group by group (768 channels, 16 modes, one sequence: 51 of 77 us;
# 192 channels, 4 modes: 11 of 39, for 16 sequences 44 of 74), and many more (16 of the former: 690 of 310).
_FEW_MODES = 1 << 13
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}


def modal_step(
    u_t: Tensor, poles: Tensor, residues: Tensor, passthrough: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Advance the modal recurrence (scan.py) by one input: five small tensor operations. Differentiable.

    Args:
        u_t: (B, D) real.
        poles, residues: (D, N) complex.
        passthrough: (D,) real.
        state: (B, D, N) complex, the state before u_t. Not modified.

    Returns:
        y_t (B, D) in u_t's dtype, and the state after u_t (B, D, N) in the state's dtype. Arithmetic is in the widest
        of the dtypes.

    Raises:
        ValueError: an argument has the wrong shape.
    """
    # Shapes only: this runs once per token and layer.
    if poles.shape != residues.shape or passthrough.shape != poles.shape[:1]:
        _check_modes(poles, residues, passthrough)
    if state.shape != u_t.shape + poles.shape[1:] or u_t.dim() != 2:
        _check_input(u_t, poles, 2, "u_t")
        _check_state(state, u_t, poles)
    y = (residues * state).sum(-1).real + passthrough * u_t
    return y.to(u_t.dtype), (poles * state + u_t.unsqueeze(-1)).to(state.dtype)


@_without_autocast
@torch.no_grad()
def modal_step_(
    u_t: Tensor,
    poles: Tensor,
    residues: Tensor,
    passthrough: Tensor,
    state: Tensor,
    layout: ModeLayout | None = None,
    *,
    skip: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
    impl: str = "auto",
) -> Tensor:
    """Advance the modal recurrence by one input and write the new state over the old one. Not differentiable.

        y = activation(h * u + skip u + bias)

    Args:
        u_t: (B, D) real.
        poles, residues: (D, N) complex, or (P,) in the order of `layout`. Residues that are the conjugate of a tensor
            (`Tensor.conj`) are read as fast as any: the output needs the conjugate.
        passthrough: (D,) real.
        state: (B, D, N) complex, or (B, P); modified.
        layout: where each channel's modes are, if their numbers differ.
        skip, bias: (D,) real, or None.
        activation: "gelu", "silu", "relu" or None.
        impl: "torch"; "triton" (one launch; on a GPU, or anywhere under `TRITON_INTERPRET=1`); "auto" takes Triton for
            tensors on a GPU where it can: u_t in float32 or half precision, and a state whose rows are contiguous.

    Returns:
        y_t (B, D) in u_t's dtype. Arithmetic is in the precision of the poles, the activation in that of u_t, and both
        at least in float32.

    Raises:
        ValueError: an argument has the wrong shape, dtype or device, an unknown activation, or `impl="triton"` where
            Triton cannot do it.
    """
    check_step(u_t, poles, residues, passthrough, state, layout)
    check_vectors(u_t, passthrough.shape[0], skip=skip, bias=bias)
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    around = skip, bias, activation
    if torch.compiler.is_compiling():
        from .op import modal_step_op, spread

        return modal_step_op(u_t, poles, residues, passthrough, state, *spread(layout), *around, impl)
    return step(u_t, poles, residues, passthrough, state, layout, *around, impl)


def step(
    u_t: Tensor,
    poles: Tensor,
    residues: Tensor,
    passthrough: Tensor,
    state: Tensor,
    layout: ModeLayout | None,
    skip: Tensor | None,
    bias: Tensor | None,
    activation: str | None,
    impl: str,
) -> Tensor:
    """`modal_step_` with its arguments checked."""
    if takes_triton(impl, u_t, state, *(x for x in (skip, bias) if x is not None)):
        from . import triton_step

        readout = residues.conj().resolve_conj()
        return triton_step.modal_step_(u_t, poles, readout, passthrough, state, layout, skip, bias, activation)
    v = u_t.to(poles.real.dtype)
    y = advance_(v, poles, residues, state, layout)
    y.addcmul_(v, (passthrough if skip is None else passthrough + skip).to(y.dtype))
    if bias is not None:
        y += bias
    if activation is None:
        return y.to(u_t.dtype)
    return ACTIVATIONS[activation](y.to(torch.promote_types(u_t.dtype, torch.float32))).to(u_t.dtype)


def advance_(v: Tensor, poles: Tensor, residues: Tensor, state: Tensor, layout: ModeLayout | None) -> Tensor:
    """Return Re sum_n R_n x_n (B, D) in the dtype of v (B, D), that of the poles' parts, and advance the state by v."""
    readout = torch.view_as_real(residues.conj().resolve_conj()).flatten(-2)
    rows = max(1, _BLOCK_MODES // max(1, poles.numel()))
    if len(v) <= rows:
        return _advance_rows_(v, poles, readout, state, layout)
    blocks = zip(v.split(rows), state.split(rows), strict=True)
    return torch.cat([_advance_rows_(part, poles, readout, x, layout) for part, x in blocks])


def _advance_rows_(v: Tensor, poles: Tensor, readout: Tensor, state: Tensor, layout: ModeLayout | None) -> Tensor:
    x = state.to(poles.dtype)  # itself, unless it is kept in less precision
    products = torch.view_as_real(x).flatten(-2).mul(readout)
    x.mul_(poles)
    if layout is None:
        y = products.sum(-1)
        x.add_(v.unsqueeze(-1))
    elif x.numel() <= _FEW_MODES and x.device.type == "cpu":
        y = torch.zeros_like(v).index_add_(1, layout.owners, products)
        x.add_(v.index_select(1, layout.owners[::2]))
    else:
        sums, column, mode = [], 0, 0
        v = v.index_select(1, layout.order).unsqueeze(-1)
        for channels, width in layout.groups:
            size = channels * width
            sums.append(products[:, 2 * mode : 2 * (mode + size)].unflatten(1, (channels, 2 * width)).sum(-1))
            x[:, mode : mode + size].unflatten(1, (channels, width)).add_(v[:, column : column + channels])
            column, mode = column + channels, mode + size
        y = torch.cat(sums, 1).index_select(1, layout.place)
    if x is not state:
        state.copy_(x)
    return y


def check_step(
    u_t: Tensor, poles: Tensor, residues: Tensor, passthrough: Tensor, state: Tensor, layout: ModeLayout | None
) -> None:
    """Raise what `modal_step_` promises. Shapes first, and the rest only if they do not fit: it runs once per token."""
    if layout is None:
        if poles.shape != residues.shape or passthrough.shape != poles.shape[:1] or not poles.is_complex():
            _check_modes(poles, residues, passthrough)
        if u_t.dim() != 2 or state.shape != u_t.shape + poles.shape[1:] or not state.is_complex():
            _check_input(u_t, poles, 2, "u_t")
            _check_state(state, u_t, poles)
    else:
        layout.check(u_t, poles, residues, passthrough, state)
    if not u_t.is_floating_point():
        raise ValueError(f"u_t must be a real tensor (B, D), got {u_t.dtype}")
    for name, tensor in (("u_t", u_t), ("residues", residues), ("passthrough", passthrough), ("state", state)):
        if tensor.device != poles.device:
            _check_device(name, tensor, poles)


def check_vectors(u_t: Tensor, size: int, **vectors: Tensor | None) -> None:
    """Raise ValueError unless each of the vectors is None or a real (size,) on the device of u_t."""
    for name, x in vectors.items():
        if x is None:
            continue
        if x.shape != (size,):
            raise ValueError(f"{name} must have shape ({size},), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {x.dtype}")
        if x.device != u_t.device:
            raise ValueError(f"{name} is on {x.device}, u_t on {u_t.device}")
