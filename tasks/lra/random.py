"""Random numbers that depend on a seed and on what they are for, and on nothing else.

Data sets are made in blocks, and each block has a stream of its own, so it does not matter who computes it or when.
Only the bits of numpy's Philox and its `SeedSequence` are used, which numpy promises never to change; the methods of
`numpy.random.Generator` come without that promise.
"""

import numpy as np
from numpy.typing import NDArray


def child_seed(seed: int, *path: int) -> int:
    """A seed of its own for a part of a data set, such as a file of a split."""
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1, np.uint64)[0])


class Stream:
    """The numbers of one block: ``Stream(seed, block)``; streams with another seed or block are independent of it.

    Raises ValueError for a seed or block that is negative or no integer.
    """

    def __init__(self, seed: int, *block: int) -> None:
        for name, value in (("seed", seed), *(("block", part) for part in block)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be an integer >= 0, got {value!r}")
        key = np.random.SeedSequence(seed, spawn_key=block).generate_state(2, np.uint64)
        self._philox = np.random.Philox(key=key)

    def _raw(self, n_bytes: int) -> NDArray[np.uint64]:
        # Little-endian everywhere, since the callers below cut the words into pieces.
        return self._philox.random_raw(-(-n_bytes // 8)).astype("<u8", copy=False)

    def bytes(self, n: int) -> NDArray[np.uint8]:
        """`n` bytes (n,)."""
        return self._raw(n).view(np.uint8)[:n]

    def below(self, limit: int | NDArray[np.integer], shape: int | tuple[int, ...]) -> NDArray[np.int64]:
        """Integers of 0 … limit - 1 of `shape`, to which an array of limits is broadcast; limits below 2^31.

        The largest probability is above the smallest by limit / 2^32 of it: no test of a data set can see that.
        """
        words = self._raw(4 * int(np.prod(shape, dtype=np.int64))).view("<u4")[: int(np.prod(shape, dtype=np.int64))]
        products = words.reshape(shape).astype(np.uint64) * np.asarray(limit).astype(np.uint64)
        return (products >> np.uint64(32)).astype(np.int64)
