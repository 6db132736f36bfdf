"""A baseline for audio of 256 levels: interpolated Kneser-Ney n-grams, in bits per byte."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longconv.tasks.audio.codec import silence
from longconv.tasks.audio.metrics import bits_per_byte
from longconv.tasks.extras import require

Levels = NDArray[np.integer]

#: Seven levels of 8 bits are what fits in 64 bits with room for a sign.
MAX_ORDER = 7
_BITS = 8
_COUNT = 1 << _BITS


@dataclass(frozen=True)
class _Order:
    """Counts of the n-grams of one order, each a number whose last 8 bits are its last level; sorted."""

    grams: NDArray[np.int64]
    counts: NDArray[np.int64]
    contexts: NDArray[np.int64]
    totals: NDArray[np.int64]  # of each context: the sum of the counts
    kinds: NDArray[np.int64]  # of each context: how many levels follow it
    discount: float

    @classmethod
    def of(cls, grams: NDArray[np.int64], counts: NDArray[np.int64]) -> "_Order":
        contexts, first, kinds = np.unique(grams >> _BITS, return_index=True, return_counts=True)
        once, twice = (int((counts == n).sum()) for n in (1, 2))
        # Of Ney, Essen and Kneser 1994. Where nothing was seen once, nothing suggests that more is to be seen; half a
        # count keeps every level possible.
        discount = once / (once + 2 * twice) if once else 0.5
        return cls(grams, counts, contexts, np.add.reduceat(counts, first), kinds, discount)


class NGram:
    """Interpolated Kneser-Ney with one discount for each order (Chen and Goodman 1999, section 2.7):

        p(w | h) = max(c(h w) - D, 0) / c(h) + D N(h) / c(h) p(w | h')

    with c the counts at the highest order and, below it, of how many levels an n-gram follows; N(h) of how many levels
    follow h; h' without its first level; and below a single level, all 256 alike. Contexts never seen are passed by.

    order: levels of an n-gram, the predicted one included: 1 … 7. What comes before a sequence counts as silence.
    sequences: of levels 0 … 255, each (n,), which are counted.

    Raises:
        ValueError: an order or a level out of range, or no sequences.
    """

    def __init__(self, order: int, sequences: Iterable[Levels]) -> None:
        if not 1 <= order <= MAX_ORDER:
            raise ValueError(f"order must be 1 … {MAX_ORDER}, got {order}")
        self.order = order
        keys = [self._keys(sequence, order) for sequence in sequences]
        if not sum(map(len, keys)):
            raise ValueError("no sequences to count")
        grams, counts = np.unique(np.concatenate(keys), return_counts=True)
        orders = [_Order.of(grams, counts)]
        for n in range(order - 1, 0, -1):
            # In how many contexts: every n-gram once for each different level before it.
            grams, counts = np.unique(grams & ((1 << (_BITS * n)) - 1), return_counts=True)
            orders.append(_Order.of(grams, counts))
        self._orders = orders[::-1]

    def probabilities(self, sequence: Levels) -> NDArray[np.float64]:
        """Of each level of a sequence (n,), given those before it. Raises ValueError for a level out of range."""
        return self._probabilities(self._keys(sequence, self.order))

    def _probabilities(self, keys: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of the last level of each n-gram (n,)."""
        p = np.full(len(keys), 1 / _COUNT)
        for n, seen in enumerate(self._orders, 1):
            key = keys & ((1 << (_BITS * n)) - 1)
            count = _look_up(seen.grams, seen.counts, key)
            total = _look_up(seen.contexts, seen.totals, key >> _BITS)
            kinds = _look_up(seen.contexts, seen.kinds, key >> _BITS)
            mixed = (np.maximum(count - seen.discount, 0) + seen.discount * kinds * p) / np.maximum(total, 1)
            p = np.where(total > 0, mixed, p)
        return p

    def bits_per_byte(self, sequences: Iterable[Levels]) -> float:
        """Of all levels of `sequences`. Raises ValueError if there are none."""
        keys = [np.empty(0, np.int64), *(self._keys(sequence, self.order) for sequence in sequences)]
        grams, counts = np.unique(np.concatenate(keys), return_counts=True)
        return bits_per_byte(-float(counts @ np.log(self._probabilities(grams))), int(counts.sum()))

    def _keys(self, sequence: Levels, order: int) -> NDArray[np.int64]:
        """The n-gram that ends at each level, (n,)."""
        levels = np.asarray(sequence, np.int64)
        if levels.ndim != 1 or (len(levels) and not 0 <= levels.min() <= levels.max() < _COUNT):
            raise ValueError(f"a sequence must be levels 0 … {_COUNT - 1}, (n,), got shape {levels.shape}")
        padded = np.concatenate([np.full(order - 1, silence()), levels])
        keys = np.zeros(len(levels), np.int64)
        for i in range(order):
            keys = keys << _BITS | padded[i : i + len(levels)]
        return keys


def baseline(task: Any, orders: Sequence[int] = (1, 2, 3, 4, 5)) -> dict[str, float]:
    """The best n-gram for an ``audio/wave`` task: the order by the validation split, learned from the train split.

    Returns:
        ``order``, ``validation`` and ``test``, both in bits per byte; ``validation_N`` for each order N.
    """
    splits = task.splits()
    sequences = {split: [row["levels"] for row in rows] for split, rows in splits.items()}
    bar = require("tqdm").tqdm(orders, desc="n-grams", disable=None, leave=False)
    models = {order: NGram(order, sequences["train"]) for order in bar}
    found = {order: model.bits_per_byte(sequences["validation"]) for order, model in models.items()}
    best = min(found, key=lambda order: found[order])
    return {
        "order": best,
        "validation": found[best],
        "test": models[best].bits_per_byte(sequences["test"]),
        **{f"validation_{order}": bits for order, bits in found.items()},
    }


def _look_up(keys: NDArray[np.int64], values: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """The value of each wanted key, 0 where it is not there; `keys` are sorted."""
    order = np.argsort(wanted)  # in order, one search goes on in cache where the last one ended
    found = np.empty_like(wanted)
    found[order] = np.searchsorted(keys, wanted[order])
    place = np.minimum(found, len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
