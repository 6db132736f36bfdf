"""What every long filter shares: parameters that stay in float32 and carry their own optimiser options."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Filter(nn.Module):
    """A module whose `forward(L)` gives a kernel (channels, L); tap `s` multiplies the input `s` steps back.

    Casting a model to half precision leaves filters in float32: a position or a pole rounded to 8 bits is useless,
    and a filter's parameters are few. (`double()` does reach them.)
    """

    channels: int

    def mark(self, name: str, **options: float) -> None:
        """Ask for optimiser options (`lr`, `weight_decay`) of one parameter; `training.parameter_groups` reads them."""
        self.get_parameter(name)._optim = options  # type: ignore[attr-defined]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep_float32(t: Tensor) -> Tensor:
            out = fn(t)
            shrunk = t.is_floating_point() and out.is_floating_point() and out.dtype.itemsize < 4 <= t.dtype.itemsize
            return t.to(out.device) if shrunk else out

        return super()._apply(keep_float32, recurse)


def filter_dtype() -> torch.dtype:
    """The dtype to create filter parameters in: float32, also while a half-precision model is being built."""
    return torch.promote_types(torch.get_default_dtype(), torch.float32)
