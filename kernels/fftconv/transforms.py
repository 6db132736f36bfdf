"""What the operators of this folder share under PyTorch's transformations: vmap, torch.func, autocast, derivatives."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def changed(
    x: dict[str, Tensor | None], changes: dict[str, Tensor | None], factors: Sequence[set[str]]
) -> Iterator[tuple[set[str], dict[str, Tensor | None]]]:
    """Yield each factor that the output is linear in, and the inputs with that factor replaced by its change."""
    changes = {name: change for name, change in changes.items() if change is not None and x[name] is not None}
    for factor in factors:
        if factor & changes.keys():
            replaced = {**x, **{name: changes.get(name) for name in factor}}
            if replaced["k"] is None:  # of the filters only the skip weight, or the taps before lag 0, change
                assert x["k"] is not None
                replaced["k"] = torch.zeros_like(x["k"])
            yield factor, replaced


def add(totals: dict[str, Tensor], parts: dict[str, Tensor]) -> None:
    """Add `parts` to the totals of the same names."""
    for name, part in parts.items():
        totals[name] = totals[name] + part if name in totals else part


def in_torch_func() -> bool:
    """Whether torch.func transforms the present call; its grad and jvp pass by the autograd of registered operators."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def fold(x: Tensor | None, dim: int | None, size: int, channel: int) -> Tensor | None:
    """Make a mapped dimension part of the channels, which are independent of each other.

    Moves dimension `dim` of x (None: not mapped, so x is repeated) before dimension `channel` and merges the two.
    """
    if x is None:
        return None
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.movedim(0, channel).flatten(channel, channel + 1)


def unfold(x: Tensor, channel: int, size: int) -> Tensor:
    """Take the mapped dimension out of the channels again; it comes to stand before them."""
    return x.unflatten(channel, (size, x.shape[channel] // size))


def lower(x: Tensor | None, device_type: str) -> Tensor | None:
    """An activation in the dtype of the autocast that is on; float64 stays."""
    if x is None or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(device_type))
