"""`modal_step_` and `hyena_step_` as PyTorch operators, for graphs: they change their states and have no derivative.

Outside of a graph the functions are called directly, which takes 20 microseconds less.
"""

import torch
from torch import Tensor

from . import hyena, step
from .layout import ModeLayout

#: The fields of a `ModeLayout` that a step reads, in types that operators take.
Spread = tuple[list[int], Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def spread(layout: ModeLayout | None) -> Spread:
    """A layout as arguments of an operator."""
    if layout is None:
        return [], None, None, None, None
    return [n for group in layout.groups for n in group], layout.order, layout.place, layout.starts, layout.counts


def gathered(
    groups: list[int],
    order: Tensor | None,
    place: Tensor | None,
    starts: Tensor | None,
    counts: Tensor | None,
) -> ModeLayout | None:
    """The layout again, as far as a step reads it."""
    if order is None or place is None or starts is None or counts is None:
        return None
    pairs = tuple(zip(groups[::2], groups[1::2], strict=True))
    widest = max(width for _, width in pairs)
    return ModeLayout(pairs, order, place, starts, counts, order[:0], (len(order), widest))


@torch.library.custom_op("longconv::modal_step_", mutates_args=("state",))
def modal_step_op(
    u_t: Tensor,
    poles: Tensor,
    residues: Tensor,
    passthrough: Tensor,
    state: Tensor,
    groups: list[int],
    order: Tensor | None,
    place: Tensor | None,
    starts: Tensor | None,
    counts: Tensor | None,
    impl: str,
) -> Tensor:
    """`step.modal_step_`, which checks the arguments."""
    layout = gathered(groups, order, place, starts, counts)
    return step.step(u_t, poles, residues, passthrough, state, layout, impl)


@torch.library.custom_op("longconv::hyena_step_", mutates_args=("short_state", "state"))
def hyena_step_op(
    u_t: Tensor,
    short_state: Tensor,
    short_weight: Tensor,
    short_bias: Tensor,
    poles: Tensor,
    residues: Tensor,
    passthrough: Tensor,
    skip: Tensor,
    state: Tensor,
    groups: list[int],
    order: Tensor | None,
    place: Tensor | None,
    starts: Tensor | None,
    counts: Tensor | None,
    impl: str,
) -> Tensor:
    """`hyena.hyena_step_`, which checks the arguments."""
    layout = gathered(groups, order, place, starts, counts)
    around = (u_t, short_state, short_weight, short_bias)
    return hyena.step(*around, poles, residues, passthrough, skip, state, layout, impl)


@modal_step_op.register_fake
def _(u_t, poles, residues, passthrough, state, groups, order, place, starts, counts, impl):  # type: ignore[no-untyped-def]
    return torch.empty(u_t.shape, dtype=u_t.dtype, device=u_t.device)


@hyena_step_op.register_fake
def _(  # type: ignore[no-untyped-def]
    u_t, short_state, short_weight, short_bias, poles, residues, passthrough, skip, state,
    groups, order, place, starts, counts, impl,
):  # fmt: skip
    return torch.empty((u_t.shape[0], skip.shape[0]), dtype=u_t.dtype, device=u_t.device)
