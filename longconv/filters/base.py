"""What every long filter shares: parameters that stay in float32 and carry their own optimiser options."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Filter(nn.Module):
    """A module whose `forward(L)` gives a kernel (channels, L); tap `s` multiplies the input `s` steps back.

    A shorter kernel is the beginning of a longer one. Casting a model to half precision leaves filters in float32: a
    position or a pole rounded to 8 bits is useless, and a filter's parameters are few. (`double()` does reach them.)

    Attributes:
        channels: D, the rows of the kernel.
        max_length: the largest L that `forward` takes; None for no limit.
    """

    channels: int
    max_length: int | None = None

    @property
    def support(self) -> int | None:
        """The number of taps, if it is finite: taps from there on are zero (or do not exist, above `max_length`)."""
        return self.max_length

    def mark(self, name: str, **options: float) -> None:
        """Ask for optimiser options (`lr`, `weight_decay`) of one parameter; `training.parameter_groups` reads them."""
        self.get_parameter(name)._optim = options  # type: ignore[attr-defined]

    def check_length(self, L: int) -> None:
        """Raise ValueError unless `forward` can give `L` taps."""
        if self.max_length is not None and not 1 <= L <= self.max_length:
            raise ValueError(f"L must be in 1..max_length = {self.max_length}, got {L}")
        if L < 1:
            raise ValueError(f"L must be at least 1, got {L}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep_float32(t: Tensor) -> Tensor:
            out = fn(t)
            shrunk = t.is_floating_point() and out.is_floating_point() and out.dtype.itemsize < 4 <= t.dtype.itemsize
            return t.to(out.device) if shrunk else out

        return super()._apply(keep_float32, recurse)


def filter_dtype() -> torch.dtype:
    """The dtype to create filter parameters in: float32, also while a half-precision model is being built."""
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context in which arithmetic on `device` has the dtype of its operands."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def check_sizes(**sizes: int) -> None:
    """Raise ValueError, naming it, for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError, listing what there is, unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def clamp_straight_through(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp the value but not the gradient, so that a parameter beyond the limits finds its way back."""
    return x + (x.clamp(low, high) - x).detach()
