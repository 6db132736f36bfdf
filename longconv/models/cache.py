"""The layers' streaming states as the cache object that transformers passes around in `generate()`."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from transformers import Cache

from .state_io import decode, encode, load_states, save_states

# While tokens may be taken back, a longer chunk is run in two parts, so that at most so many tokens are run again.
REPLAYED = 64


class Snapshot(NamedTuple):
    """A `LongConvCache` at one moment. It holds references: states are values that nobody changes."""

    states: tuple[Any, ...]
    seen_tokens: int
    may_be_padding: bool


class Chunk(NamedTuple):
    """Inputs of the blocks, x (B, L, D), and their mask (B, L) bool, or None if all are real."""

    x: Tensor
    mask: Tensor | None

    def then(self, other: "Chunk") -> "Chunk":
        """The two one behind the other."""
        mask = None
        if self.mask is not None or other.mask is not None:
            masks = [c.x.new_ones(c.x.shape[:2], dtype=torch.bool) if c.mask is None else c.mask for c in (self, other)]
            mask = torch.cat(masks, dim=1)
        return Chunk(torch.cat([self.x, other.x], dim=1), mask)

    def first(self, length: int) -> "Chunk":
        """The first `length` of them."""
        return Chunk(self.x[:, :length], None if self.mask is None else self.mask[:, :length])

    def last(self, length: int) -> "Chunk":
        """The last `length` of them."""
        return Chunk(self.x[:, -length:], None if self.mask is None else self.mask[:, -length:])


class LongConvCache(Cache):
    """One streaming state per block, and what all of them share.

    It is a `transformers.Cache` so that `generate()` accepts it, with none of that class's per-layer tensors.

    A recurrence cannot be run backwards, so tokens are taken back by going back to an earlier state: by hand with
    `snapshot` and `restore`, or by `crop`, for which the cache has to have kept the states before each chunk
    (`activate_past_recording`, as assisted generation does). Tokens between such a state and the place `crop` leads to
    are `pending`: the model runs them again together with the next ones.

    Args:
        num_layers: number of blocks.

    Attributes:
        states: one `longconv.state.LayerState` per block; None before the first token.
        seen_tokens: tokens so far, padding included.
        may_be_padding: whether a row may still be in its left padding, so that the mask of new tokens matters.
        pending: a `Chunk` whose tokens count as seen, but are not in the states; None if there are none.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[])
        self.states: list[Any] = [None] * num_layers
        self.seen_tokens = 0
        self.may_be_padding = True
        self.pending: Chunk | None = None
        # While recording: what was before each chunk since the last `crop`, and the chunk.
        self._past: list[tuple[Snapshot, Chunk]] | None = None

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

    def snapshot(self) -> Snapshot:
        """What `restore` needs to come back to this moment, any number of times. Costs nothing but the memory held.

        Raises:
            ValueError: `crop` has just taken tokens back: run the next ones first.
        """
        if self.pending is not None:
            raise ValueError("no snapshot right after crop: the tokens it kept are not in the states yet")
        return Snapshot(tuple(self.states), self.seen_tokens, self.may_be_padding)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to `snapshot`, taken of this cache or another one of the same model.

        Raises:
            ValueError: it has another number of layers.
        """
        if len(snapshot.states) != len(self.states):
            raise ValueError(f"snapshot has {len(snapshot.states)} layers, the cache {len(self.states)}")
        self.states = list(snapshot.states)
        self.seen_tokens, self.may_be_padding = snapshot.seen_tokens, snapshot.may_be_padding
        self.pending = None
        if self._past is not None:
            self._past = []

    @property
    def is_croppable(self) -> bool:
        """True: a cache that records its past can be cropped."""
        return True

    @property
    def records_past(self) -> bool:
        """Whether states before each chunk are kept for `crop`."""
        return self._past is not None

    def activate_past_recording(self) -> None:
        """Keep the states before each chunk from now on, until the next `crop`."""
        if self._past is None:
            self._past = []

    def deactivate_past_recording(self) -> None:
        """Keep no more of the past, and forget what was kept."""
        self._past = None

    def take(self, chunk: Chunk) -> list[Chunk]:
        """What the model has to run, one after the other, when `chunk` comes next; for the model.

        Pending tokens, which then no longer count as seen, come before it. If tokens may be taken back, the last ones
        are a piece of their own.
        """
        if self.pending is not None:
            self.seen_tokens -= self.pending.x.shape[1]
            chunk, self.pending = self.pending.then(chunk), None
        cut = chunk.x.shape[1] - REPLAYED
        return [chunk] if self._past is None or cut < 1 else [chunk.first(cut), chunk.last(REPLAYED)]

    def record(self, chunk: Chunk) -> None:
        """Note what is about to be run, if the past is kept. For the model."""
        if self._past is not None:
            self._past.append((self.snapshot(), chunk))

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last tokens back, as many as a negative number says; 0 forgets the past that was kept so far.

        Raises:
            ValueError: a positive number; or the states of that moment were not kept: recording has to be on, and what
                was there at the last `crop` is there to stay.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove must be 0 or negative, got {tokens_to_remove}")
        if tokens_to_remove:
            self._go_back(self.seen_tokens + tokens_to_remove)
        if self._past is not None:
            self._past = []

    def _go_back(self, target: int) -> None:
        if self._past is None:
            raise ValueError("a recurrence cannot take tokens back, unless its past is kept: activate_past_recording()")
        kept = self._past[0][0].seen_tokens if self._past else self.seen_tokens
        if target < kept:
            raise ValueError(f"cannot go back to {target} tokens: only the states since {kept} were kept")
        before, chunk = next(entry for entry in reversed(self._past) if entry[0].seen_tokens <= target)
        self.restore(before)
        if target > before.seen_tokens:
            self.pending = chunk.first(target - before.seen_tokens)
            self.seen_tokens = target

    def reset(self) -> None:
        """Forget everything; whether the past is recorded stays as it is."""
        self.restore(Snapshot((None,) * len(self.states), 0, True))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep batch rows `beam_idx`, in that order."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep batch rows `indices`, in that order."""
        self._map(lambda state: state.index_select(indices), lambda t: t.index_select(0, indices))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row, copies next to each other."""
        self._map(lambda state: state.batch_repeat_interleave(repeats), lambda t: t.repeat_interleave(repeats, 0))

    def to(self, device: torch.device | str) -> Self:
        """Move the states to a device, in place."""
        self._map(lambda state: state.to(device), lambda t: t.to(device))
        return self

    def _map(self, on_state: Callable[[Any], Any], on_tensor: Callable[[Tensor], Tensor]) -> None:
        self.states = [None if state is None else on_state(state) for state in self.states]
        if self.pending is not None:
            x, mask = self.pending
            self.pending = Chunk(on_tensor(x), None if mask is None else on_tensor(mask))
        if self._past is not None:  # of rows that are no longer there
            self._past = []

    def save(self, folder: str | os.PathLike[str], model: Any) -> None:
        """Write the states of `model` into a folder, whole or not at all, to go on with them another time.

        Raises:
            ValueError: `crop` has just taken tokens back, or the model has another number of layers.
            OSError: the disk is full or not writable.
        """
        _check_layers(self, model)
        tensors: dict[str, Tensor] = {}
        states, seen_tokens, may_be_padding = self.snapshot()
        data = {
            "states": [encode(state, tensors, str(layer)) for layer, state in enumerate(states)],
            "seen_tokens": seen_tokens,
            "may_be_padding": may_be_padding,
        }
        save_states(folder, "LongConvCache", model, data, tensors)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], model: Any) -> Self:
        """Read what `save` wrote, onto the device of `model`.

        Raises:
            FileNotFoundError: nothing was saved there.
            ValueError: it is damaged, or belongs to another model.
        """

        def build(data: Any, tensors: dict[str, Tensor]) -> LongConvCache:
            cache = cls(len(data["states"]))
            cache.states = [decode(state, tensors) for state in data["states"]]
            cache.seen_tokens, cache.may_be_padding = data["seen_tokens"], data["may_be_padding"]
            _check_layers(cache, model)
            return cache

        return load_states(folder, "LongConvCache", model, build)


def _check_layers(cache: LongConvCache, model: Any) -> None:
    if len(cache) != model.config.num_hidden_layers:
        raise ValueError(f"the cache has {len(cache)} layers, the model {model.config.num_hidden_layers}")
