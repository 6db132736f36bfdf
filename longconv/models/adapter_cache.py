"""The streaming state of a mixer that stands in place of an attention, in the cache that the model hands around."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, StaticLayer


class Moment(NamedTuple):
    """What a `MixerStateLayer` holds at one moment. States are values, so it costs nothing but the memory held."""

    state: Any
    seen_tokens: int
    may_be_padding: bool
    last_real: Tensor | None


class MixerStateLayer(CacheLayerMixin):
    """One layer's entry in a `transformers.DynamicCache`: a mixer's state instead of keys and values.

    It says how many tokens it has seen, as the others do, so masks and positions come out right whichever layer the
    model asks.

    A recurrence does not run backwards, so tokens are taken back (`crop`) by going back to the state before a chunk,
    kept for that if `record_past` is on. Inputs between such a state and the place `crop` leads to are pending: they
    are mixed again together with the next ones.

    Attributes:
        state: the mixer's `longconv.state.LayerState`; None before the first token.
        seen_tokens: tokens so far, padding and pending ones included.
        may_be_padding: whether a row may still be in its left padding.
        last_real: (B,) bool, whether each row's last token was real; None if all were, or before the first token.
        closed: whether rows ended in padding on the right, so that nothing can follow.
        record_past: whether the states before each chunk are kept, until the next `crop`.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.record_past = False
        self.reset()

    def reset(self) -> None:
        """Forget everything; whether the past is recorded stays as it is."""
        self._past: list[tuple[Moment, Tensor, Tensor | None]] = []
        self._pending: tuple[Tensor, Tensor | None] | None = None
        self.state: Any = None
        self.seen_tokens = 0
        self.may_be_padding, self.closed = True, False
        self.last_real: Tensor | None = None
        self.device: torch.device | None = None

    @property
    def next_is_real(self) -> bool:
        """Whether a token that follows must be real, because all rows have begun: no need to look at its mask."""
        return self.state is not None and not self.may_be_padding and not self.closed

    def take(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What to mix when x (B, L, D) comes next, with its mask (None: all real): pending inputs come before it."""
        if self._pending is not None:
            (earlier, hidden), self._pending = self._pending, None
            self.seen_tokens -= earlier.shape[1]
            if mask is not None or hidden is not None:
                pairs = ((earlier, hidden), (x, mask))
                masks = [inputs.new_ones(inputs.shape[:2], dtype=torch.bool) if m is None else m for inputs, m in pairs]
                mask = torch.cat(masks, dim=1)
            x = torch.cat([earlier, x], dim=1)
        if self.record_past:
            self._past.append((Moment(self.state, self.seen_tokens, self.may_be_padding, self.last_real), x, mask))
        else:
            self._past.clear()
        return x, mask

    def ends_before(self, mask: Tensor) -> bool:
        """Whether a row that has begun is padded in this chunk's mask (B, L): padding on the right."""
        before = mask.new_full((len(mask),), not self.may_be_padding) if self.last_real is None else self.last_real
        joined = torch.cat([before[:, None], mask], dim=1)
        return bool((joined[:, :-1] & ~joined[:, 1:]).any())

    def advance(self, state: Any, length: int, mask: Tensor | None, device: torch.device) -> None:
        """Take over the state after a chunk of `length` tokens with this mask (None: all real)."""
        self.state, self.device = state, device
        self.seen_tokens += length
        if self.may_be_padding:
            self.last_real = None if mask is None or bool(mask[:, -1].all()) else mask[:, -1]
            self.may_be_padding = self.last_real is not None

    def get_seq_length(self) -> int:
        """Tokens so far, padding included."""
        return self.seen_tokens

    def get_max_length(self) -> int:
        """Return -1: the state has no length of its own (the mixer checks its own)."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The length and the offset of what a mask covers: all tokens so far and the new ones."""
        return self.seen_tokens + query_length, 0

    def activate_past_recording(self) -> None:
        """Keep the states before each chunk from now on, until the next `crop`."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last tokens back, as many as a negative number says; 0 forgets the past that was kept so far.

        Raises:
            ValueError: a positive number, or the states of that moment were not kept.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove must be 0 or negative, got {tokens_to_remove}")
        if tokens_to_remove < 0:
            self._go_back(self.seen_tokens + tokens_to_remove)
        self._past.clear()

    def _go_back(self, target: int) -> None:
        entry = next((entry for entry in reversed(self._past) if entry[0].seen_tokens <= target), None)
        if entry is None:
            raise ValueError(
                f"crop: a layer with a mixer in place of its attention cannot go back to {target} tokens, because the "
                "states before were not kept; activate_past_recording() comes first, and lasts until the next crop"
            )
        moment, x, mask = entry
        self.state, self.seen_tokens, self.may_be_padding, self.last_real = moment
        self.closed = False
        if count := target - self.seen_tokens:
            self._pending = x[:, :count], None if mask is None else mask[:, :count]
            self.seen_tokens = target

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep batch rows `beam_idx`, in that order."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep batch rows `indices`, in that order."""
        rows = torch.as_tensor(indices, device=self.device)
        self._map(lambda state: state.index_select(rows), lambda t: t.index_select(0, rows))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row, copies next to each other."""
        self._map(lambda state: state.batch_repeat_interleave(repeats), lambda t: t.repeat_interleave(repeats, 0))

    def _map(self, on_state: Callable[[Any], Any], on_tensor: Callable[[Tensor], Tensor]) -> None:
        self.state = None if self.state is None else on_state(self.state)
        self.last_real = None if self.last_real is None else on_tensor(self.last_real)
        if self._pending is not None:
            x, mask = self._pending
            self._pending = on_tensor(x), None if mask is None else on_tensor(mask)
        self._past.clear()  # of rows that are no longer there

    def offload(self) -> None:
        """Do nothing: the state is small, so it stays on its device."""

    def prefetch(self) -> None:
        """Do nothing: see `offload`."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Raise: there are no keys and values here."""
        raise NotImplementedError("a mixer's state has no keys and values")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Raise: there are no keys and values here."""
        raise NotImplementedError("a mixer's state has no keys and values")


def state_layer(cache: Any, index: int) -> MixerStateLayer:
    """The state of layer `index` in a cache; where that is new, in place of an empty layer for keys and values.

    Raises:
        TypeError: it is no `transformers.Cache`.
        ValueError: a static cache, or one in which another model has put keys and values for this layer.
    """
    if not isinstance(cache, Cache):
        raise TypeError(f"past_key_values must be a transformers.DynamicCache, got {type(cache).__name__}")
    while len(cache.layers) <= index and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[index]
    if isinstance(layer, MixerStateLayer):
        return layer
    if isinstance(layer, StaticLayer):
        raise ValueError(
            f"past_key_values: a {type(cache).__name__} has memory of a fixed layout, and a mixer's state does not fit "
            "into that; use a DynamicCache (cache_implementation='dynamic')"
        )
    if layer.get_seq_length():  # type: ignore[union-attr]
        raise ValueError(
            f"past_key_values: layer {index} holds keys and values, of a model whose attention was not replaced"
        )
    cache.layers[index] = fresh = MixerStateLayer()
    return fresh
