"""Tasks whose rows are tokens: how rows are stored, padded and measured."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longconv.tasks.extras import require
from longconv.tasks.lra.classification import Classification

ROWS_AT_ONCE = 1024
COLUMN = "input_ids"
PAIR = ("input_ids_1", "input_ids_2")


class Tokens(Classification):
    """A classification task of tokens.

    Rows have ``input_ids``, or ``input_ids_1`` and ``input_ids_2`` if the task is of pairs; and ``label``.
    """

    input_size = None

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` (B, L) int64, padded on the right to the longest row; ``labels`` (B,).

        For pairs they are (B, 2, L). L is rounded up to `pad_multiple`, if that is not more than `length`.
        """
        columns = PAIR if self.is_pair else (COLUMN,)
        sequences = [np.asarray(row[column]) for row in rows for column in columns]
        longest = max(map(len, sequences))
        padded = min(-(-longest // self.pad_multiple) * self.pad_multiple, max(self.length, longest))
        ids = np.full((len(sequences), padded), self.pad_id, np.int64)
        mask = np.zeros((len(sequences), padded), np.int64)
        for sequence, into, valid in zip(sequences, ids, mask, strict=True):
            into[: len(sequence)] = sequence
            valid[: len(sequence)] = 1
        shape = (len(rows), 2, padded) if self.is_pair else (len(rows), padded)
        return {
            "input_ids": torch.from_numpy(ids).view(shape),
            "attention_mask": torch.from_numpy(mask).view(shape),
            "labels": torch.tensor([int(row["label"]) for row in rows]),
        }

    def lengths(self, split: str) -> NDArray[np.int64]:
        """Tokens of each row of `split` (rows,); of a pair, the longer. Read from offsets, so cheap.

        Raises ValueError for a split that does not exist.
        """
        self._require_split(split)
        length_of = require("pyarrow.compute").list_value_length
        table = self.splits()[split].data.table
        columns = PAIR if self.is_pair else (COLUMN,)
        return np.maximum.reduce([length_of(table.column(name)).to_numpy() for name in columns]).astype(np.int64)


def token_batches(rows: Iterable[tuple[Sequence[Any], int]], pair: bool, dtype: Any, bar: Any) -> Iterator[Any]:
    """Record batches of rows: ((ids,), label), or ((ids, ids), label) for pairs; ids are kept as `dtype`.

    `bar` is moved on by every row.
    """
    pa = require("pyarrow")
    names = PAIR if pair else (COLUMN,)
    for group in groups(rows, ROWS_AT_ONCE):
        arrays = []
        for column in zip(*(ids for ids, _ in group), strict=True):
            offsets = np.cumsum([0, *map(len, column)], dtype=np.int32)
            arrays.append(pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(column).astype(dtype, copy=False))))
        labels = pa.array(np.array([label for _, label in group], np.uint8))
        yield pa.record_batch([*arrays, labels], names=[*names, "label"])
        bar.update(len(group))


def groups(rows: Iterable[Any], n: int) -> Iterator[list[Any]]:
    """Lists of `n` of `rows`; the last may be shorter."""
    group: list[Any] = []
    for row in rows:
        group.append(row)
        if len(group) == n:
            yield group
            group = []
    if group:
        yield group
