"""Checks of arguments that the convolutions of this folder share. They name the argument and what was expected."""

from torch import Tensor


def check_rows(u: Tensor, k: Tensor) -> None:
    """Raise ValueError unless u is (B, D, L) and k (D, K) with L, K >= 1."""
    if u.dim() != 3:
        raise ValueError(f"u must have shape (B, D, L); got {tuple(u.shape)}")
    D, L = u.shape[1:]
    if L == 0:
        raise ValueError(f"u must have at least one time step (L >= 1); got shape {tuple(u.shape)}")
    if k.dim() != 2 or k.shape[0] != D or k.shape[1] == 0:
        raise ValueError(f"k must have shape (D, K) with D = {D} as in u and K >= 1; got {tuple(k.shape)}")


def check_companions(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    k_reverse: Tensor | None = None,
) -> None:
    """Raise unless skip is (D,), the gates have the shape of u, and all are floating point on one device.

    Raises:
        ValueError: a shape or a device does not fit.
        TypeError: a tensor is not floating point.
    """
    D = u.shape[1]
    if k_reverse is not None and (k_reverse.dim() != 2 or k_reverse.shape[0] != D):
        raise ValueError(f"k_reverse must have shape (D, K') with D = {D} as in u; got {tuple(k_reverse.shape)}")
    if skip is not None and skip.shape != (D,):
        raise ValueError(f"skip must have shape (D,) = ({D},) as in u; got {tuple(skip.shape)}")
    for name, gate in (("pre_gate", pre_gate), ("post_gate", post_gate)):
        if gate is not None and gate.shape != u.shape:
            raise ValueError(f"{name} must have the shape of u, {tuple(u.shape)}; got {tuple(gate.shape)}")
    tensors = {"u": u, "k": k, "skip": skip, "k_reverse": k_reverse, "pre_gate": pre_gate, "post_gate": post_gate}
    for name, x in tensors.items():
        if x is None:
            continue
        if not x.is_floating_point():
            raise TypeError(f"{name} must be floating point; got {x.dtype}")
        if x.device != u.device:
            raise ValueError(f"{name} must be on the device of u, {u.device}; got {x.device}")
