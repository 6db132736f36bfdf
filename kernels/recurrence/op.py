"""The steps as PyTorch operators, for graphs: they change their states and have no derivative.

Outside of a graph the functions are called directly, which takes 20 microseconds less.
"""

import torch
from torch import Tensor

from . import hyena, multi_hyena, step
from .layout import ModeLayout

#: The fields of a `ModeLayout` that a step reads, in types that operators take.
Spread = tuple[list[int], Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def spread(layout: ModeLayout | None) -> Spread:
    """A layout as arguments of an operator."""
    if layout is None:
        return [], None, None, None, None, None
    groups = [n for group in layout.groups for n in group]
    return groups, layout.order, layout.place, layout.starts, layout.counts, layout.owners


def gathered(
    groups: list[int],
    order: Tensor | None,
    place: Tensor | None,
    starts: Tensor | None,
    counts: Tensor | None,
    owners: Tensor | None,
) -> ModeLayout | None:
    """The layout again, as far as a step reads it."""
    if order is None or place is None or starts is None or counts is None or owners is None:
        return None
    pairs = tuple(zip(groups[::2], groups[1::2], strict=True))
    widest = max(width for _, width in pairs)
    return ModeLayout(pairs, order, place, starts, counts, owners, order[:0], (len(order), widest))


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
    owners: Tensor | None,
    skip: Tensor | None,
    bias: Tensor | None,
    activation: str | None,
    impl: str,
) -> Tensor:
    """`step.modal_step_`, which checks the arguments."""
    layout = gathered(groups, order, place, starts, counts, owners)
    return step.step(u_t, poles, residues, passthrough, state, layout, skip, bias, activation, impl)


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
    owners: Tensor | None,
    impl: str,
) -> Tensor:
    """`hyena.hyena_step_`, which checks the arguments."""
    layout = gathered(groups, order, place, starts, counts, owners)
    around = (u_t, short_state, short_weight, short_bias)
    return hyena.step(*around, poles, residues, passthrough, skip, state, layout, impl)


@torch.library.custom_op("longconv::multi_hyena_step_", mutates_args=("short_state", "state"))
def multi_hyena_step_op(
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
    owners: Tensor | None,
    impl: str,
) -> Tensor:
    """`multi_hyena.multi_hyena_step_`, which checks the arguments."""
    layout = gathered(groups, order, place, starts, counts, owners)
    around = (u_t, short_state, short_weight, short_bias)
    return multi_hyena.step(*around, poles, residues, passthrough, skip, state, layout, impl)


@modal_step_op.register_fake
def _(u_t, *rest):  # type: ignore[no-untyped-def]
    return torch.empty(u_t.shape, dtype=u_t.dtype, device=u_t.device)


@hyena_step_op.register_fake
@multi_hyena_step_op.register_fake
def _(u_t, *rest):  # type: ignore[no-untyped-def]
    return torch.empty((u_t.shape[0], u_t.shape[1] // 3), dtype=u_t.dtype, device=u_t.device)
