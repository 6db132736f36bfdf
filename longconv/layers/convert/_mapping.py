"""Reading tensors of a published checkpoint by name, with errors that say what does not fit."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor


class Reader:
    """Tensors of one module in a state dict.

    Args:
        state_dict: name -> tensor, e.g. of a whole model.
        prefix: of the module's tensors, e.g. `"backbone.layers.3.mixer."`.
    """

    def __init__(self, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
        self.state_dict, self.prefix = state_dict, prefix
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.state_dict

    def get(self, name: str, shape: Sequence[int] | None = None) -> Tensor:
        """Return a tensor, of this shape if one is given.

        Raises:
            ValueError: there is none of that name, or it has another shape.
        """
        if name not in self:
            raise ValueError(f"the state dict has no {self.prefix}{name}")
        tensor = self.state_dict[self.prefix + name]
        if shape is not None and tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{self.prefix}{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
        self._read.add(self.prefix + name)
        return tensor

    @torch.no_grad()
    def copy(self, target: Tensor, name: str, change: Callable[[Tensor], Tensor] | None = None) -> None:
        """Copy a tensor, or what `change` makes of it, into `target`, in place.

        Raises:
            ValueError: there is none of that name, or what comes out of `change` has not the target's shape.
        """
        source = self.get(name)
        source = source if change is None else change(source)
        if source.shape != target.shape:
            found, wanted = tuple(source.shape), tuple(target.shape)
            raise ValueError(f"{self.prefix}{name} gives shape {found}, the layer has {wanted}")
        target.copy_(source)

    def finish(self, ignored: Iterable[str] = ()) -> None:
        """Check that everything under the prefix was read: what is left belongs to a module of another kind.

        Args:
            ignored: names (or beginnings of names that end in a dot) that mean nothing to the layer.

        Raises:
            ValueError: naming what is left.
        """
        skip = tuple(self.prefix + name for name in ignored)
        left = [
            name
            for name in self.state_dict
            if name.startswith(self.prefix)
            and name not in self._read
            and not any(name == s or (s.endswith(".") and name.startswith(s)) for s in skip)
        ]
        if left:
            raise ValueError(f"the layer has no place for {', '.join(sorted(left))}")
