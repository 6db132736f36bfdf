"""The layers' streaming states as the cache object that transformers passes around in `generate()`."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache


class LongConvCache(Cache):
    """One streaming state per block, and what all of them share.

    It is a `transformers.Cache` so that `generate()` accepts it, with none of that class's per-layer tensors.

    Args:
        num_layers: number of blocks.

    Attributes:
        states: one `longconv.state.LayerState` per block; None before the first token.
        seen_tokens: tokens so far, padding included.
        may_be_padding: whether a row may still be in its left padding, so that the mask of new tokens matters.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[])
        self.states: list[Any] = [None] * num_layers
        self.seen_tokens = 0
        self.may_be_padding = True

    def __len__(self) -> int:
        return len(self.states)

    def __repr__(self) -> str:
        return f"LongConvCache(num_layers={len(self)}, seen_tokens={self.seen_tokens})"

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens so far, padding included."""
        return self.seen_tokens

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: the states have no length of their own (layers check theirs)."""
        return -1

    @property
    def is_croppable(self) -> bool:
        """False: a recurrence cannot take tokens back."""
        return False

    def crop(self, tokens_to_remove: int) -> None:
        """Raise ValueError unless there is nothing to remove: a recurrence cannot take tokens back."""
        if tokens_to_remove:
            raise ValueError("LongConvCache cannot take tokens back")

    def reset(self) -> None:
        """Forget everything."""
        self.states = [None] * len(self.states)
        self.seen_tokens = 0
        self.may_be_padding = True

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep batch rows `beam_idx`, in that order."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep batch rows `indices`, in that order."""
        self.states = [None if state is None else state.index_select(indices) for state in self.states]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row, copies next to each other."""
        self.states = [None if state is None else state.batch_repeat_interleave(repeats) for state in self.states]

    def to(self, device: torch.device | str) -> "LongConvCache":
        """Move the states to a device, in place."""
        self.states = [None if state is None else state.to(device) for state in self.states]
        return self
