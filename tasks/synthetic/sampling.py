"""Draws without replacement from a `Stream`, many rows at a time."""

import numpy as np
from numpy.typing import NDArray

from longconv.tasks.lra.random import Stream


def uniform(stream: Stream, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Numbers in (0, 1), of `shape`, 53 bits each."""
    words = stream.bytes(8 * int(np.prod(shape, dtype=np.int64))).view("<u8").reshape(shape)
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def distinct(stream: Stream, rows: int, count: int, limit: int) -> NDArray[np.int64]:
    """In each row `count` different integers of 0 … limit - 1, in random order: (rows, count)."""
    return _smallest(uniform(stream, (rows, limit)), count)


def distinct_weighted(stream: Stream, rows: int, count: int, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """The same with unequal chances, (rows, count): one after the other is drawn from those that are left, each with
    a chance in proportion to its weight.

    An exponential variable of rate w for each: the order in which they ring is that of the draws (Efraimidis and
    Spirakis 2006).
    """
    return _smallest(-np.log(uniform(stream, (rows, len(weights)))) / weights, count)


def _smallest(keys: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Indices of the `count` smallest of each row, smallest first."""
    if count < keys.shape[1]:  # ordering what is left over would take most of the time
        chosen = np.argpartition(keys, count - 1, axis=1)[:, :count]
    else:
        chosen = np.broadcast_to(np.arange(count), keys.shape)
    order = np.argsort(np.take_along_axis(keys, chosen, 1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, 1)
