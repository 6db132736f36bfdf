"""What every task of spoken words is: clips of one second and which word each is, on disk as 16-bit samples."""

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longconv.tasks import cache
from longconv.tasks.audio.files import resample
from longconv.tasks.extras import require
from longconv.tasks.lra.classification import FORMAT, SPLITS, Classification
from longconv.tasks.lra.tokens import groups

#: Of the clips as they are stored, and their length: one second.
RATE = 16_000
# Added to the standard deviation, in the code of Kidger et al. and all that came after it.
_EPS = 1e-5
_ROWS_AT_ONCE = 256

Clip = tuple[NDArray[np.int16], int]


class Clips(Classification):
    """A classification task of clips of one second: ``input_values`` are 16,000 standardised samples, one by one.

    sample_rate: 16,000, or 8,000 for the same clips at half the rate, on which models trained at 16,000 are tested
        without being trained again ("zero-shot"). They are standardised as those at 16,000 are.
    half_rate: how to get there: ``"drop"`` leaves out every second sample without a filter, so that what is above
        4 kHz folds back, as in S4's code, with which numbers were published; ``"resample"`` has a low-pass (soxr).
    standardise: ``"split"`` takes the mean of all samples of the train split from each and divides by their standard
        deviation + 1e-5; ``"position"`` does so with a mean and a deviation for each of the 16,000 positions, which is
        what S4's and CKConv's code comes to, having the time where it looks for channels; ``"none"`` does neither.
    frame: samples that a model is given at once: ``input_values`` are (B, sample_rate / frame, frame). The sequence is
        shorter by as much, and a model's first linear map reads raw samples `frame` by `frame`.
    cache_dir, workers: see `Classification`.

    Samples are s / 32768 of 16 bits before. Rows have ``samples``, 16,000 int16, and ``label``.

    Raises:
        ValueError: options that are not among these.
    """

    vocab_size = None

    def __init__(
        self,
        *,
        sample_rate: int = RATE,
        half_rate: Literal["drop", "resample"] = "drop",
        standardise: Literal["split", "position", "none"] = "split",
        frame: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if sample_rate not in (RATE, RATE // 2):
            raise ValueError(f"sample_rate must be {RATE} or {RATE // 2}, got {sample_rate!r}")
        if half_rate not in ("drop", "resample"):
            raise ValueError(f'half_rate must be "drop" or "resample", got {half_rate!r}')
        if standardise not in ("split", "position", "none"):
            raise ValueError(f'standardise must be "split", "position" or "none", got {standardise!r}')
        if not isinstance(frame, int) or frame < 1 or sample_rate % frame:
            raise ValueError(f"frame must be a positive divisor of sample_rate, {sample_rate}, got {frame!r}")
        self.sample_rate, self.half_rate, self.standardise = sample_rate, half_rate, standardise
        self.input_size = self.frame = frame
        self.cache_dir = self.cache_dir.parent / "audio"

    words: Sequence[str]
    """What the labels stand for, in order."""
    stored_as: ClassVar[str]
    """Beginning of the names in the cache."""

    @property
    def length(self) -> int:
        """Positions of a clip: 16,000 samples, or 8,000 at half the rate; or as many frames as they are."""
        return self.sample_rate // self.frame

    @property
    @abstractmethod
    def _key(self) -> list[Any]:
        """What the clips depend on."""

    @abstractmethod
    def _clips(self, split: str) -> Iterable[Clip]:
        """Clips of `split`, (16,000,) int16, and their labels, with a progress bar."""

    def prepare(self, *, verify: bool = False) -> dict[str, list[Path]]:
        """See `Classification`."""
        return {
            split: [self._stored(f"{self.stored_as}-{split}", self._key, partial(self._batches, split), verify)]
            for split in SPLITS
        }

    def _batches(self, split: str) -> Iterator[Any]:
        pa = require("pyarrow")
        for group in groups(self._clips(split), _ROWS_AT_ONCE):
            flat = pa.array(np.concatenate([samples for samples, _ in group]))
            labels = pa.array(np.array([label for _, label in group], np.uint8))
            yield pa.record_batch([pa.FixedSizeListArray.from_arrays(flat, RATE), labels], names=["samples", "label"])

    @cached_property
    def statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation (n - 1 degrees of freedom) of the train split, of samples s / 32768: (1,) each,
        or (16,000,) each with ``standardise="position"``.
        """
        folder = self.cache_dir / f"{self.stored_as}-sums-{cache.make_key(FORMAT, *self._key)}"
        folder = cache.fetch(folder, self._write_sums)
        n = json.loads((folder / "clips.json").read_text())
        total, squares = np.load(folder / "sums.npy")
        if self.standardise != "position":
            n, total, squares = n * RATE, total.sum(keepdims=True), squares.sum(keepdims=True)
        # In Python's integers: the difference of two large numbers has to be exact.
        pairs = zip(total.tolist(), squares.tolist(), strict=True)
        variance = np.array([(n * square - sum_ * sum_) / (n * max(n - 1, 1)) for sum_, square in pairs])
        return (total / n / 32768).astype(np.float32), (np.sqrt(variance) / 32768).astype(np.float32)

    def _write_sums(self, folder: Path) -> None:
        sums, train = np.zeros((2, RATE), np.int64), self.splits()["train"]
        for first in range(0, len(train), _ROWS_AT_ONCE):
            samples = np.asarray(train[first : first + _ROWS_AT_ONCE]["samples"]).astype(np.int64)
            sums += np.stack([samples.sum(0), np.square(samples).sum(0)])
        np.save(folder / "sums.npy", sums)
        (folder / "clips.json").write_text(json.dumps(len(train)))

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """``input_values`` (B, length, frame) float32 and ``labels`` (B,) int64."""
        values: NDArray[np.float32] = np.stack([np.asarray(row["samples"], np.float32) for row in rows])
        values /= 32768
        if self.standardise != "none":
            mean, deviation = self.statistics
            values = (values - mean) / (deviation + np.float32(_EPS))
        if self.sample_rate != RATE:
            low = values[:, ::2] if self.half_rate == "drop" else resample(values.T, RATE, self.sample_rate).T
            values = np.ascontiguousarray(low)
        labels = torch.tensor([int(row["label"]) for row in rows])
        return {"input_values": torch.from_numpy(values.reshape(len(rows), -1, self.frame)), "labels": labels}

    def lengths(self, split: str) -> NDArray[np.int64]:
        """`length` for each row of `split` (rows,). Raises ValueError for a split that does not exist."""
        self._require_split(split)
        return np.full(len(self.splits()[split]), self.length, np.int64)
