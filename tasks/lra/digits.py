"""scikit-learn's digits pixel by pixel: real images that need no network."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longconv.tasks.extras import require
from longconv.tasks.lra.classification import SPLITS
from longconv.tasks.lra.images import Images, pixel_batches

_HELD_OUT = 300


class Digits(Images):
    """Digits: 1,797 handwritten digits of 8 x 8 pixels (UCI, Alpaydin and Kaynak 1998); 1,197, 300 and 300 rows.

    scale: every pixel is repeated so many times in both directions: 4 makes 32 x 32 pixels, 1,024 steps.
    seed: of the splits, which have as many rows of each class as the whole has, but for rounding.
    Other options: see `Images`.

    Brightness, 0 … 16 in scikit-learn, is 0 … 240 in ``pixels`` and -1 to 1 in ``input_values``.
    Raises ValueError for wrong options, and ImportError that names the extra if scikit-learn is missing.
    """

    name = "lra/digits"
    n_classes = 10
    # 240 is white.
    mean, std = (120 / 255,), (120 / 255,)

    def __init__(self, *, scale: int = 1, seed: int = 0, **options: Any) -> None:
        super().__init__(**options)
        for option, value, least in (("scale", scale, 1), ("seed", seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{option} must be an integer, {least} or more, got {value!r}")
        self.scale, self.seed = scale, seed

    @property
    def length(self) -> int:
        """64 pixels, or scale² times that."""
        return 64 * self.scale**2

    @property
    def source(self) -> str:
        """scikit-learn, and the seed."""
        return f"scikit-learn's load_digits, split with seed {self.seed}"

    def prepare(self, *, verify: bool = False) -> dict[str, list[Path]]:
        """See `Classification`."""
        return {
            split: [self._stored(f"digits-{split}", [self.scale, self.seed], partial(self._batches, split), verify)]
            for split in SPLITS
        }

    def _batches(self, split: str) -> Iterator[Any]:
        digits = require("sklearn.datasets", extra="lra").load_digits()
        images = np.repeat(np.repeat(digits.images * 15, self.scale, 1), self.scale, 2).astype(np.uint8)
        order = stratified(digits.target, self.seed)
        n_train = len(order) - 2 * _HELD_OUT
        part = np.split(order, [n_train, n_train + _HELD_OUT])[SPLITS.index(split)]
        yield from pixel_batches(images[part], digits.target[part])


def stratified(labels: NDArray[np.integer], seed: int) -> NDArray[np.int64]:
    """Rows in an order drawn with `seed`, in which every stretch has about the same share of each class."""
    random = np.random.RandomState(seed)
    place = random.random_sample(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        # The rows of a class are spread evenly over 0 … 1, in an order of their own.
        place[rows] = (random.permutation(len(rows)) + random.random_sample()) / len(rows)
    return np.argsort(place, kind="stable")
