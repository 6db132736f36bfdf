"""The static memory of a `DecodeEngine`: the states of all slots, layer by layer, in tensors that never move."""

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from longconv.layers.long_conv import is_recurrent
from longconv.state import Constant, LayerState, map_tensors

from .cache import LongConvCache


class SlotStates:
    """States of S slots of every layer of a model: tensors (S m, ...), where m rows belong to a slot.

    Args:
        model: a `LongConvForCausalLM`.
        slots: S.

    Raises:
        ValueError: a layer's state grows with the context, or depends on the position in a way that slots, each at its
            own position, cannot share.
    """

    def __init__(self, model: Any, slots: int) -> None:
        self.slots = slots
        # A state after one token has all its tensors, in the dtypes that they have from then on.
        cache, token = LongConvCache(model.config.num_hidden_layers), torch.zeros(1, 1, dtype=torch.int64)
        model(token.to(model.device), past_key_values=cache)
        first = list(cache.states)
        model(token.to(model.device), past_key_values=cache)
        for layer, (one, two) in enumerate(zip(first, cache.states, strict=True)):
            _check_static(model.base_model.layers[layer].mixer, layer, one, two)
        self.layers: list[LayerState] = [
            map_tensors(state.batch_repeat_interleave(slots), torch.zeros_like) for state in first
        ]
        self._views: dict[int, list[LayerState]] = {}

    def first(self, slots: int) -> list[LayerState]:
        """The states of slots 0 ... slots - 1: views, which are written through."""
        if slots not in self._views:
            share = self.slots
            self._views[slots] = [
                map_tensors(state, lambda t: t[: slots * (t.shape[0] // share)]) for state in self.layers
            ]
        return self._views[slots]

    def fits(self, states: list[Any]) -> bool:
        """Whether these are states of one sequence (B = 1) of this model."""
        if len(states) != len(self.layers) or not all(isinstance(state, LayerState) for state in states):
            return False
        mine, others = ([_shapes(state) for state in some] for some in (self.layers, states))
        share = [{name: (shape[0] // self.slots, *shape[1:]) for name, shape in some.items()} for some in mine]
        return share == others

    def write(self, slot: int, states: list[Any]) -> None:
        """Copy the states of one sequence (B = 1) into a slot."""
        for mine, other in zip(self.layers, states, strict=True):
            rows, values = tensors_of(mine), tensors_of(other)
            assert rows.keys() == values.keys()
            for name, value in values.items():
                self._rows(rows[name], slot).copy_(value)

    def read(self, slot: int) -> dict[str, Tensor]:
        """Copies of a slot's tensors (m, ...), by layer and name."""
        return {name: self._rows(tensor, slot).clone() for name, tensor in self.tensors().items()}

    def put(self, slot: int, tensors: dict[str, Tensor]) -> None:
        """Write what `read` returned, of this or another slot.

        Raises:
            ValueError: tensors are missing, or of another shape.
        """
        rows = {name: self._rows(tensor, slot) for name, tensor in self.tensors().items()}
        shapes = [{name: (t.dtype, tuple(t.shape)) for name, t in some.items()} for some in (rows, tensors)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"states of a slot must be {shapes[0]}, got {shapes[1]}")
        for name, tensor in tensors.items():
            rows[name].copy_(tensor)

    @property
    def bytes_per_slot(self) -> int:
        """Memory of one slot's states."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values()) // self.slots

    def tensors(self) -> dict[str, Tensor]:
        """All of them, by layer and name."""
        return {f"{i}.{name}": t for i, state in enumerate(self.layers) for name, t in tensors_of(state).items()}

    def _rows(self, tensor: Tensor, slot: int) -> Tensor:
        m = tensor.shape[0] // self.slots
        return tensor[slot * m : (slot + 1) * m]


def tensors_of(value: Any) -> dict[str, Tensor]:
    """Name -> tensor of everything in a state that belongs to a row of the batch."""
    return {name: leaf for name, leaf in _leaves(value) if isinstance(leaf, Tensor)}


def _shapes(state: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors_of(state).items()}


def _leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """The tensors and other values of a state, by name; constants, and the positions of layers, left out."""
    if isinstance(value, Constant):
        return []
    inner: list[tuple[str, Any]]
    if is_dataclass(value) and not isinstance(value, type):
        skipped = ("position",) if isinstance(value, LayerState) else ()
        inner = [(f.name, getattr(value, f.name)) for f in fields(value) if f.name not in skipped]
    elif isinstance(value, tuple | list):
        inner = [(str(i), item) for i, item in enumerate(value)]
    elif isinstance(value, dict):
        inner = list(value.items())
    else:
        return [(name, value)]
    return [leaf for key, item in inner for leaf in _leaves(item, f"{name}.{key}" if name else key)]


def _check_static(mixer: Any, layer: int, one: LayerState, two: LayerState) -> None:
    """Raise ValueError unless a layer's state is the same after one token and after two, up to what tensors hold."""

    def shape(leaf: Any) -> Any:
        return (leaf.dtype, leaf.shape) if isinstance(leaf, Tensor) else leaf

    before, after = ([(name, shape(leaf)) for name, leaf in _leaves(state)] for state in (one, two))
    if not two.is_static or before != after:
        kind = type(mixer).__name__
        advice = (
            "distil the model first, with longconv.distill.distill"
            if not all(map(is_recurrent, mixer.long_filters))
            else "only layers that are recurrences can be served in slots"
        )
        raise ValueError(f"layer {layer} ({kind}) has a state that changes its size or layout as it goes: {advice}")
