"""A convolution given as a plan of transforms (spectral.py) as a PyTorch operator: `Operator`.

It is linear in u, in each gate, and in its filters (k, skip) together, so the derivative of its backward pass consists
of convolutions and backward passes again, to any order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import spectral
from .blocked import compute_dtype
from .spectral import SpectralPlan
from .transforms import add, changed, fold, in_torch_func, lower, unfold

# (grid, taps, config, dtype of the arithmetic, device) -> plan
MakePlan = Callable[[tuple[int, ...], tuple[int, ...], tuple[int, ...], torch.dtype, torch.device], SpectralPlan]

# (config, u, k, skip, gates) -> something with `conv_forward` and `conv_backward` as in spectral.py, without the plan;
# None for the plan's transforms
MakeKernels = Callable[..., Any]

# The differentiable arguments in order, and which of their dimensions are the channels.
_TENSORS = ("u", "k", "skip", "pre_gate", "post_gate")
_CHANNELS = (1, 0, 0, 1, 1)
# What the output is linear in: the filters together, the others one by one.
_FACTORS = ({"u"}, {"k", "skip"}, {"pre_gate"}, {"post_gate"})


class Operator:
    """``longconv::<name>``: called with (u, k, skip, pre_gate, post_gate, config), see `spectral.conv_forward`.

    `config` holds the operator's own integers, for `make_plan` and `make_kernels`. Saved for the backward pass are the
    inputs only: spectra are recomputed. Registered are fake kernels, autograd of any order, vmap, the transformations
    of torch.func, and autocast.
    """

    def __init__(self, name: str, make_plan: MakePlan, make_kernels: MakeKernels | None = None) -> None:
        self.forward, self.backward = _register(name, make_plan, make_kernels)
        self._register_autograd()
        for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            torch.library.impl(f"longconv::{name}", key, _autocast_kernel(self.forward, device_type))

    def __call__(self, *args: Any) -> Tensor:
        """Convolve, under any transformation."""
        y: Tensor = self._conv.apply(*args) if in_torch_func() else self.forward(*args)
        return y

    def _gradients(
        self, dy: Tensor, x: dict[str, Tensor | None], config: Sequence[int], wanted: set[str]
    ) -> dict[str, Tensor]:
        needs = [name in wanted and x[name] is not None for name in _TENSORS]
        if not any(needs):
            return {}
        backward = self._conv_backward.apply if in_torch_func() else self.backward
        grads = backward(dy, *x.values(), config, needs)
        return {name: grad for name, grad, need in zip(_TENSORS, grads, needs, strict=True) if need}

    def _register_autograd(self) -> None:
        def setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
            *tensors, ctx.config = inputs
            ctx.save_for_backward(*tensors)

        def backward(ctx, dy):  # type: ignore[no-untyped-def]
            x = _named(ctx.saved_tensors)
            grads = self._gradients(dy, x, ctx.config, _where(ctx.needs_input_grad))
            return *(grads.get(name) for name in _TENSORS), None

        def forward_mode(ctx, *changes):  # type: ignore[no-untyped-def]
            x = _named(ctx.saved_tensors)
            return sum(self(*replaced.values(), ctx.config) for _, replaced in changed(x, _named(changes), _FACTORS))

        def setup_of_backward(ctx, inputs, output):  # type: ignore[no-untyped-def]
            *tensors, ctx.config, ctx.needs = inputs
            ctx.save_for_backward(*tensors)

        def double_backward(ctx, cotangents):  # type: ignore[no-untyped-def]
            # <cotangents, gradients> is <dy, change of y when the inputs change by the cotangents>.
            dy, *tensors = ctx.saved_tensors
            wants_dy, *wants = ctx.needs_input_grad
            changes = {name: change for name, change in _named(cotangents).items() if name in _where(ctx.needs)}
            totals: dict[str, Tensor] = {}
            for factor, replaced in changed(_named(tensors), changes, _FACTORS):
                parts = self._gradients(dy, replaced, ctx.config, _where(wants) - factor)
                if wants_dy:
                    parts["dy"] = self(*replaced.values(), ctx.config).to(dy.dtype)
                add(totals, parts)
            return *(totals.get(name) for name in ("dy", *_TENSORS)), None, None

        def forward_mode_of_backward(ctx, ddy, *changes):  # type: ignore[no-untyped-def]
            dy, *tensors = ctx.saved_tensors
            x, needed = _named(tensors), _where(ctx.needs)
            totals = {} if ddy is None else self._gradients(ddy, x, ctx.config, needed)
            for factor, replaced in changed(x, _named(changes), _FACTORS):
                add(totals, self._gradients(dy, replaced, ctx.config, needed - factor))
            rest = {name: torch.zeros_like(t) if name in needed else dy.new_zeros(0) for name, t in x.items()}
            return tuple({**rest, **totals}.values())

        self.forward.register_autograd(backward, setup_context=setup)
        self.backward.register_autograd(double_backward, setup_context=setup_of_backward)
        self.forward.register_vmap(self._vmap_forward)
        self.backward.register_vmap(self._vmap_backward)
        self._conv = _autograd_function(self.forward, setup, backward, forward_mode, self._vmap_forward)
        self._conv_backward = _autograd_function(
            lambda *args: tuple(self.backward(*args)),
            setup_of_backward,
            lambda ctx, *cotangents: double_backward(ctx, cotangents),
            forward_mode_of_backward,
            lambda *args: tuple(map(tuple, self._vmap_backward(*args))),
        )

    # vmap: a mapped dimension becomes part of the channels, which are independent of each other.

    def _vmap_forward(self, info, dims, *args):  # type: ignore[no-untyped-def]
        *tensors, config = args
        y = self(*_fold_all(tensors, dims[:5], info.batch_size), config)
        return unfold(y, 1, info.batch_size), 1

    def _vmap_backward(self, info, dims, *args):  # type: ignore[no-untyped-def]
        dy, *tensors, config, needs = args
        dy = fold(dy, dims[0], info.batch_size, 1)
        folded = _fold_all(tensors, dims[1:6], info.batch_size)
        backward = self._conv_backward.apply if in_torch_func() else self.backward
        grads = backward(dy, *folded, config, needs)
        there = [need and x is not None for need, x in zip(needs, tensors, strict=True)]
        channels = [c if present else None for c, present in zip(_CHANNELS, there, strict=True)]
        return [
            grad if c is None else unfold(grad, c, info.batch_size) for grad, c in zip(grads, channels, strict=True)
        ], channels


def _register(name: str, make_plan: MakePlan, make_kernels: MakeKernels | None) -> tuple[Any, Any]:
    def plan(u: Tensor, k: Tensor, config: Sequence[int]) -> SpectralPlan:
        dtype = compute_dtype(u, k)
        return make_plan(tuple(u.shape[2:]), tuple(k.shape[1:]), tuple(config), dtype, u.device)

    @torch.library.custom_op(f"longconv::{name}", mutates_args=())
    def forward(
        u: Tensor,
        k: Tensor,
        skip: Tensor | None,
        pre_gate: Tensor | None,
        post_gate: Tensor | None,
        config: list[int],
    ) -> Tensor:
        tensors = (u, k, skip, pre_gate, post_gate)
        if make_kernels and (kernels := make_kernels(config, *tensors)):
            return kernels.conv_forward(*tensors)
        return spectral.conv_forward(plan(u, k, config), *tensors)

    @torch.library.custom_op(f"longconv::{name}_backward", mutates_args=())
    def backward(
        dy: Tensor,
        u: Tensor,
        k: Tensor,
        skip: Tensor | None,
        pre_gate: Tensor | None,
        post_gate: Tensor | None,
        config: list[int],
        needs: list[bool],
    ) -> list[Tensor]:
        tensors = (u, k, skip, pre_gate, post_gate)
        if make_kernels and (kernels := make_kernels(config, *tensors)):
            return kernels.conv_backward(dy, *tensors, needs)
        return spectral.conv_backward(plan(u, k, config), dy, *tensors, needs)

    @forward.register_fake
    def _(u, k, skip, pre_gate, post_gate, config):  # type: ignore[no-untyped-def]
        return torch.empty(u.shape, dtype=u.dtype, device=u.device)

    @backward.register_fake
    def _(dy, u, k, skip, pre_gate, post_gate, config, needs):  # type: ignore[no-untyped-def]
        return [
            torch.empty(x.shape, dtype=x.dtype, device=x.device) if need and x is not None else u.new_empty(0)
            for x, need in zip((u, k, skip, pre_gate, post_gate), needs, strict=True)
        ]

    return forward, backward


def _autograd_function(of: Any, setup: Any, back: Any, forward_mode: Any, mapped: Any) -> Any:
    """What torch.func goes through: its transformations pass by the autograd of a registered operator."""

    def setup_both(ctx, inputs, output):  # type: ignore[no-untyped-def]
        setup(ctx, inputs, output)
        ctx.save_for_forward(*(x for x in inputs if x is None or isinstance(x, Tensor)))

    class Function(torch.autograd.Function):
        forward = staticmethod(of)
        setup_context = staticmethod(setup_both)
        backward = staticmethod(back)
        jvp = staticmethod(forward_mode)
        vmap = staticmethod(mapped)

    return Function


def _named(values: Sequence[Any]) -> dict[str, Any]:
    """The differentiable arguments, or something for each of them, by name; what follows them is left out."""
    return dict(zip(_TENSORS, values, strict=False))


def _where(flags: Sequence[bool]) -> set[str]:
    return {name for name, flag in _named(flags).items() if flag}


def _fold_all(tensors: Sequence[Tensor | None], dims: Sequence[int | None], size: int) -> list[Tensor | None]:
    return [fold(x, d, size, channel) for x, d, channel in zip(tensors, dims, _CHANNELS, strict=True)]


def _autocast_kernel(forward: Any, device_type: str) -> Callable[..., Tensor]:
    """Under autocast the activations (u and the gates) take its dtype; filters and skip stay as they are."""

    def kernel(u, k, skip, pre_gate, post_gate, config):  # type: ignore[no-untyped-def]
        u, pre_gate, post_gate = (lower(x, device_type) for x in (u, pre_gate, post_gate))
        with torch.autocast(device_type, enabled=False):
            return forward(u, k, skip, pre_gate, post_gate, config)

    return kernel
