"""The past of a stream as dilated taps see it, kept so that a sample costs the same however far the taps reach."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class DelayLines:
    """The last `reach_i` samples of N signals (B, D), i = 0 ... N-1, each read at multiples of its own dilation.

    A value: `append` returns a new one and leaves the old one as it was. New samples are written behind the old ones,
    into spare room that no other value has taken. When there is none, the windows move to new storage; with room for
    `sum(reach) / N` steps there, a step costs N samples written, those that it reads, and N moved, on average. With
    gradients enabled every step copies all, because autograd may need the storage as it was.

    Args:
        windows: for each signal its last samples (B, D, reach), oldest first, reach a multiple of its dilation; all of
            one batch, D, dtype and device.
        dilations: for each signal the samples from one tap to the next.
    """

    def __init__(self, windows: Sequence[Tensor], dilations: Sequence[int]) -> None:
        self.dilations = tuple(dilations)
        self.reaches = tuple(w.shape[-1] for w in windows)
        assert all(r % d == 0 for r, d in zip(self.reaches, self.dilations, strict=True))
        room = max(4, -(-sum(self.reaches) // len(windows)))
        B, D, _ = windows[0].shape
        # Time stands before the channels, so that a sample is one piece of memory.
        parts = [part for w in windows for part in (w.transpose(1, 2), w.new_zeros(B, room, D))]
        self._storage = torch.cat(parts, 1)
        self._room, self._steps, self._filled = room, 0, [0]
        self._starts = [sum(self.reaches[:i]) + i * room for i in range(len(windows))]
        ends = [start + reach for start, reach in zip(self._starts, self.reaches, strict=True)]
        lags = [range(d, r + 1, d) for r, d in zip(self.reaches, self.dilations, strict=True)]
        device = windows[0].device
        reads = [end - lag for end, at in zip(ends, lags, strict=True) for lag in at]
        self._write = torch.tensor(ends, dtype=torch.int64, device=device)
        self._read = torch.tensor(reads, dtype=torch.int64, device=device)

    def window(self, i: int) -> Tensor:
        """The last samples of signal i, a view (B, D, reach), oldest first."""
        return self._storage.narrow(1, self._starts[i] + self._steps, self.reaches[i]).transpose(1, 2)

    def taps(self) -> Tensor:
        """Samples at lags dilation, 2 dilation, ..., reach before the next one, signal after signal: (B, taps, D)."""
        return self._storage.index_select(1, self._read.to(self._storage.device) + self._steps)

    def append(self, new: Tensor) -> "DelayLines":
        """Return the lines after the next sample of every signal, new (B, N, D)."""
        storage, steps, filled = self._storage, self._steps, self._filled
        locked = storage.requires_grad or (storage.is_inference() and not torch.is_inference_mode_enabled())
        if steps == self._room or (not torch.is_grad_enabled() and (locked or filled[0] != steps)):
            return DelayLines([self.window(i) for i in range(len(self.reaches))], self.dilations).append(new)
        new, at = new.to(storage.dtype), self._write.to(storage.device) + steps
        if torch.is_grad_enabled():
            return self._over(storage.index_copy(1, at, new), steps + 1, [steps + 1])
        storage.index_copy_(1, at, new)
        filled[0] = steps + 1
        return self._over(storage, steps + 1, filled)

    def map(self, fn: Callable[[Tensor], Tensor]) -> "DelayLines":
        """Return the lines with `fn(storage)`, batch first, in place of their storage: reordered, moved, detached."""
        storage = fn(self._storage)
        shared = storage.untyped_storage().data_ptr() == self._storage.untyped_storage().data_ptr()
        return self._over(storage, self._steps, self._filled if shared else [self._steps])

    def _over(self, storage: Tensor, steps: int, filled: list[int]) -> "DelayLines":
        lines = object.__new__(DelayLines)
        lines.__dict__.update(self.__dict__)
        lines._storage, lines._steps, lines._filled = storage, steps, filled
        return lines
