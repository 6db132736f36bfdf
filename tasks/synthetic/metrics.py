"""Accuracy of answers, by where they are and by how far back what they need is."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longconv.tasks.synthetic.rows import IGNORE


@dataclass(frozen=True)
class Cell:
    """Answers of one kind.

    low, high: the positions, or distances, from the first to the last of the kind.
    count: how many there were.
    accuracy: the share that was right.
    """

    low: int
    high: int
    count: int
    accuracy: float


def predictions(logits: Tensor) -> Tensor:
    """The likeliest of every token but the first: logits (B, L, V) to ids (B, L - 1), those of token t from t - 1."""
    return logits[:, :-1].argmax(-1)


class AnswerMetrics:
    """Counts over batches; what is predicted of token t is compared with its label."""

    def __init__(self) -> None:
        self.rows = self.rows_right = 0
        self._positions = np.zeros((2, 0), np.int64)  # how many, and how many right, for each position
        self._distances = np.zeros((2, 0), np.int64)

    def update(self, predicted: Tensor | NDArray[Any], labels: Tensor | NDArray[Any], distances: Any = None) -> None:
        """Add a batch.

        Args:
            predicted: (B, L - 1) ids, as `predictions` gives them.
            labels: (B, L), not shifted, -100 where nothing is asked.
            distances: (B, L) integers, positive where `labels` are answers, or None to count by position alone.

        Raises:
            ValueError: the shapes do not fit.
        """
        guess, label = np.asarray(torch.as_tensor(predicted).cpu()), np.asarray(torch.as_tensor(labels).cpu())
        if guess.ndim != 2 or label.shape != (guess.shape[0], guess.shape[1] + 1):
            raise ValueError(f"expected predicted (B, L - 1) and labels (B, L), not {guess.shape} and {label.shape}")
        distance = None if distances is None else np.asarray(torch.as_tensor(distances).cpu())
        if distance is not None and distance.shape != label.shape:
            raise ValueError(f"expected distances like labels, {label.shape}, not {distance.shape}")
        asked = label[:, 1:] != IGNORE
        right = (guess == label[:, 1:]) & asked
        self.rows += len(label)
        self.rows_right += int((right == asked).all(1).sum())
        positions = np.broadcast_to(np.arange(1, label.shape[1]), asked.shape)
        self._positions = _add(self._positions, positions[asked], right[asked])
        if distance is not None:
            self._distances = _add(self._distances, distance[:, 1:][asked], right[asked])

    def compute(self) -> dict[str, float]:
        """``accuracy``, the share of answers that are right, and ``row_accuracy``, that of rows with no wrong answer.

        Raises:
            ValueError: nothing was asked.
        """
        asked, right = (int(count) for count in self._positions.sum(1))
        if not asked:
            raise ValueError(f"no answers in {self.rows} rows")
        return {"accuracy": right / asked, "row_accuracy": self.rows_right / self.rows}

    def by_position(self) -> list[Cell]:
        """Accuracy at each position that was asked for: low = high = t, of token t."""
        asked, right = self._positions
        return [Cell(int(t), int(t), int(asked[t]), int(right[t]) / int(asked[t])) for t in np.flatnonzero(asked)]

    def by_distance(self) -> list[Cell]:
        """Accuracy at distances 1, 2 … 3, 4 … 7, 8 … 15 and so on; those that never occurred are left out."""
        asked, right = self._distances
        cells = []
        for bits in range(max(1, asked.shape[0]).bit_length()):
            low, high = 1 << bits, (2 << bits) - 1
            count = int(asked[low : high + 1].sum())
            if count:
                cells.append(Cell(low, high, count, int(right[low : high + 1].sum()) / count))
        return cells


def _add(table: NDArray[np.int64], where: NDArray[Any], right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The table (2, size) with more counted at the indices `where`, as long as it has to be."""
    size = max(table.shape[1], int(where.max(initial=-1)) + 1)
    new = np.stack([np.bincount(where, minlength=size), np.bincount(where[right], minlength=size)])
    new[:, : table.shape[1]] += table
    return new
