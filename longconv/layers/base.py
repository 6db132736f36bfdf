"""The contract of a sequence mixer, and the argument checks that all mixers share."""

from typing import Any

import torch
from torch import Tensor, nn

from longconv.state import LayerState


class Mixer(nn.Module):
    """A causal sequence mixer (B, L, D) -> (B, L, D).

    `forward` over a whole sequence, over its chunks with carried state, and `step` over its samples give the same.

    Attributes:
        channels: D.
        max_length: the longest sequence, in steps and padding included; None for no limit.
        long_filters: the layer's long filters, each with `forward(L) -> (D, L)`. An entry may be replaced by another
            filter of as many channels (distillation does); empty for a layer without.
    """

    def __init__(self, channels: int, max_length: int | None) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be at least 1 or None, got {max_length}")
        self.channels, self.max_length = channels, max_length
        self.long_filters = nn.ModuleList()

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        state: Any = None,
        return_state: bool = False,
    ) -> Any:
        """Mix a sequence, or the next chunk of one.

        Args:
            x: (B, L, D), L >= 1.
            mask: (B, L) bool or integer, true for real samples. Rows may be padded on the left or on the right; what
                comes out at padded positions means nothing.
            cu_seqlens: packed sequences, which are not supported yet.
            state: from `init_state`, or from the call over the preceding chunk.
            return_state: also return the state to go on with.

        Returns:
            y (B, L, D), or `(y, state)` with `return_state`.

        Raises:
            ValueError: x has the wrong shape or no samples, the mask's shape is wrong or it pads on the right while
                `return_state` is asked for, `cu_seqlens` is given, or the sequence exceeds `max_length`.
        """
        raise NotImplementedError

    def init_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Any:
        """Return the state before the first sample, for inputs of `dtype` (default: the layer's)."""
        raise NotImplementedError

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Mix one sample: x_t (B, D) -> y_t (B, D) and the next state; `state` itself stays usable.

        Raises:
            ValueError: x_t has the wrong shape, or `max_length` samples have been seen.
        """
        raise NotImplementedError

    def check_forward(
        self, x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, state: LayerState | None, return_state: bool
    ) -> Tensor | None:
        """Raise what `forward` promises to raise; return the mask as bool."""
        if x.ndim != 3 or x.shape[-1] != self.channels:
            raise ValueError(f"x must be (B, L, D) with D = {self.channels}, got shape {tuple(x.shape)}")
        if x.shape[1] == 0:
            raise ValueError("x has no samples: L must be at least 1")
        if cu_seqlens is not None:
            raise ValueError(f"cu_seqlens: {type(self).__name__} does not support packed sequences yet")
        self.check_length((state.position if state is not None else 0) + x.shape[1])
        if mask is None:
            return None
        if mask.shape != x.shape[:2]:
            raise ValueError(f"mask must be (B, L) = {tuple(x.shape[:2])}, got shape {tuple(mask.shape)}")
        mask = mask.bool()
        if return_state and bool((mask[:, :-1] & ~mask[:, 1:]).any()):
            raise ValueError("mask pads on the right, so there is no state to go on with: pad on the left")
        return mask

    def check_step(self, x_t: Tensor, state: LayerState) -> None:
        """Raise what `step` promises to raise."""
        if x_t.ndim != 2 or x_t.shape[-1] != self.channels:
            raise ValueError(f"x_t must be (B, D) with D = {self.channels}, got shape {tuple(x_t.shape)}")
        self.check_length(state.position + 1)

    def check_length(self, length: int) -> None:
        """Raise ValueError if a sequence of `length` samples is longer than the layer can take."""
        if self.max_length is not None and length > self.max_length:
            raise ValueError(f"sequence of length {length} is longer than max_length = {self.max_length}")
