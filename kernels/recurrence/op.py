"""The steps as PyTorch operators, for graphs: they change their states and have no derivative.

Outside of a graph the functions are called directly, which takes 20 microseconds less.
"""

from collections.abc import Callable
from typing import Any

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


@modal_step_op.register_fake
def _(u_t: Tensor, *rest: Any) -> Tensor:
    return torch.empty(u_t.shape, dtype=u_t.dtype, device=u_t.device)


def _with_short_convolution(name: str, run: Callable[..., Tensor]) -> torch.library.CustomOpDef:
    """The operator of a step that has a short convolution of 3D channels before it; `run` checks no arguments."""

    @torch.library.custom_op(name, mutates_args=("short_state", "state"))
    def op(
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
        layout = gathered(groups, order, place, starts, counts, owners)
        around = (u_t, short_state, short_weight, short_bias)
        return run(*around, poles, residues, passthrough, skip, state, layout, impl)

    @op.register_fake
    def _(u_t: Tensor, *rest: Any) -> Tensor:
        return torch.empty((u_t.shape[0], u_t.shape[1] // 3), dtype=u_t.dtype, device=u_t.device)

    return op


hyena_step_op = _with_short_convolution("longconv::hyena_step_", hyena.step)
multi_hyena_step_op = _with_short_convolution("longconv::multi_hyena_step_", multi_hyena.step)
