"""Streaming states: what a layer carries from one chunk, or one token, to the next.

A state is an immutable-looking value: `step` and `forward` return a new one and leave the old one usable. Only `step_`,
for generation in memory that stays where it is, writes the new state over the old one.
Every tensor in it has the batch as its first dimension, except inside a `Constant`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from longconv.functional import DelayLines, OnlineConv


@dataclass(frozen=True)
class Constant:
    """Something in a state that has no batch dimension, such as a filter evaluated once: never reordered.

    `value` is a tensor, or tensors nested in tuples, lists, dicts or dataclasses.
    """

    value: Any


class GrowingBuffer:
    """A tensor that grows along one dimension at amortised constant cost per element.

    `append` writes into spare room behind the data if nobody else has, and otherwise moves to storage of twice the
    size. An older buffer of the same storage keeps its view: appending to it again copies instead of overwriting.
    With gradients enabled it always copies, because autograd may still need the storage as it was.

    Args:
        data: (B, ...) the first contents, of any length along `dim`.
        dim: the dimension that grows; not 0, which is the batch.
    """

    def __init__(self, data: Tensor, dim: int) -> None:
        self.dim = dim % data.ndim
        self.length = data.shape[self.dim]
        self._storage = data
        self._filled = [self.length]  # shared by all buffers of one storage: how much of it is taken

    @property
    def view(self) -> Tensor:
        """The contents, a view of shape (B, ..., length, ...)."""
        return self._storage.narrow(self.dim, 0, self.length)

    def append(self, new: Tensor) -> "GrowingBuffer":
        """Return a buffer with `new` (B, ..., n, ...), cast to the buffer's dtype, behind the contents of this one."""
        new = new.to(self._storage.dtype)
        total = self.length + new.shape[self.dim]
        storage, filled = self._storage, self._filled
        if torch.is_grad_enabled():
            return GrowingBuffer(torch.cat([self.view, new], self.dim), self.dim)
        locked = storage.requires_grad or (storage.is_inference() and not torch.is_inference_mode_enabled())
        if locked or filled[0] != self.length or total > storage.shape[self.dim]:
            shape = list(storage.shape)
            shape[self.dim] = 2 * total
            storage = storage.new_zeros(shape)
            storage.narrow(self.dim, 0, self.length).copy_(self.view)
            filled = [self.length]
        storage.narrow(self.dim, self.length, new.shape[self.dim]).copy_(new)
        filled[0] = total
        return self._over(storage, total, filled)

    def map(self, fn: Callable[[Tensor], Tensor]) -> "GrowingBuffer":
        """Return a buffer of `fn(storage)`, where `fn` keeps the growing dimension; spare room is kept."""
        storage = fn(self._storage)
        if storage.untyped_storage().data_ptr() == self._storage.untyped_storage().data_ptr():
            return self._over(storage, self.length, self._filled)  # `detach`, or `to` where it is: still one memory
        return self._over(storage, self.length, [self.length])

    def _over(self, storage: Tensor, length: int, filled: list[int]) -> "GrowingBuffer":
        buffer = GrowingBuffer(storage, self.dim)
        buffer.length, buffer._filled = length, filled
        return buffer


def map_tensors(state: Any, fn: Callable[[Tensor], Tensor], *, constants: bool = False) -> Any:
    """Apply `fn` to every tensor of a state; inside a `Constant` only if `constants`.

    Goes through tuples, named tuples, lists, dicts, dataclasses, `GrowingBuffer`s, `DelayLines` and `OnlineConv`s
    (whose taps are constants); other values are kept.
    """

    def go(value: Any) -> Any:
        if isinstance(value, Tensor):
            return fn(value)
        if isinstance(value, GrowingBuffer | DelayLines):
            return value.map(fn)
        if isinstance(value, OnlineConv):
            return value.map(fn, constants=constants)
        if isinstance(value, Constant):
            return Constant(go(value.value)) if constants else value
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(go, value))
        if isinstance(value, tuple | list):
            return type(value)(map(go, value))
        if isinstance(value, dict):
            return {key: go(item) for key, item in value.items()}
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{f.name: go(getattr(value, f.name)) for f in fields(value) if f.init})
        return value

    return go(state)


@dataclass
class LayerState:
    """Base of the layers' states.

    Attributes:
        position: time steps seen so far, padding included; the next sample has this index.
    """

    position: int

    def index_select(self, rows: Tensor) -> Self:
        """The state of batch rows `rows` (int64, on the state's device), in that order: beam search's reordering."""
        return map_tensors(self, lambda t: t.index_select(0, rows))

    def batch_repeat_interleave(self, repeats: int) -> Self:
        """The state with every batch row repeated `repeats` times, copies next to each other."""
        return map_tensors(self, lambda t: t.repeat_interleave(repeats, 0))

    def to(self, device: torch.device | str) -> Self:
        """The state on another device."""
        return map_tensors(self, lambda t: t.to(device), constants=True)

    def clone(self) -> Self:
        """The state in memory of its own, which `step_` on the original leaves alone."""
        return map_tensors(self, lambda t: t.clone())

    def copy_(self, source: Self) -> None:
        """Take over another state of the same layer and batch, in the memory of this one.

        Raises:
            ValueError: the two differ in shape, or they are no static states.
        """
        if not self.is_static:
            raise ValueError(f"{type(self).__name__} is not static: it has no fixed memory to copy into")
        _assign(self, source)

    @property
    def is_static(self) -> bool:
        """Whether it is tensors that have the same shape after any number of steps, so that `step_` can write to them.

        A cache that grows with the context is not, nor are delay lines, which move on in their storage.
        """
        return _is_static(self)

    def detach(self) -> Self:
        """The state cut off from autograd, for truncated backpropagation through time."""
        return map_tensors(self, lambda t: t.detach(), constants=True)


def _is_static(value: Any) -> bool:
    if isinstance(value, GrowingBuffer | OnlineConv | DelayLines):
        return False
    if is_dataclass(value) and not isinstance(value, type | Constant):
        return all(_is_static(getattr(value, f.name)) for f in fields(value))
    return not isinstance(value, tuple | list) or all(map(_is_static, value))


def _assign(target: Any, source: Any) -> None:
    """Copy the tensors of `source` into those of `target`, both static; numbers are replaced, constants kept."""
    if isinstance(target, Tensor):
        if target.shape != source.shape:
            raise ValueError(f"source has shape {tuple(source.shape)} where the state has {tuple(target.shape)}")
        target.copy_(source)
    elif isinstance(target, tuple | list):
        for old, new in zip(target, source, strict=True):
            _assign(old, new)
    elif not isinstance(target, Constant):
        for f in fields(target):
            old, new = getattr(target, f.name), getattr(source, f.name)
            if isinstance(old, Tensor | tuple | list) or is_dataclass(old):
                _assign(old, new)
            else:
                setattr(target, f.name, new)
