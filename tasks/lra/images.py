"""Tasks whose rows are images, read pixel by pixel: how they are stored, scaled and batched."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longconv.tasks.extras import require
from longconv.tasks.lra.classification import SPLITS, Classification, permutation
from longconv.tasks.lra.sources import StrPath, fingerprint

ROWS_AT_ONCE = 1024


class Images(Classification):
    """A classification task of images, row by row from the upper left: ``length`` pixels of one or three channels.

    tokens: give pixels of one channel as ``input_ids``, 0 … 255, as the Long Range Arena's own code feeds them to an
        embedding, and not as ``input_values``. 0 is black then, not padding: the mask is 1 everywhere.
    Other options: see `Classification`.

    Rows have ``pixels``, length * channels numbers of 0 … 255, and ``label``. ``input_values`` are
    (pixels / 255 - mean) / std for each channel.

    Raises ValueError for tokens of more than one channel.
    """

    channels: ClassVar[int] = 1
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __init__(self, *, tokens: bool = False, **options: Any) -> None:
        super().__init__(**options)
        if tokens and self.channels != 1:
            raise ValueError(f"tokens=True needs images of one channel, {self.name} has {self.channels}")
        self.tokens = tokens
        self.input_size = None if tokens else self.channels
        self.vocab_size = 256 if tokens else None

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """``input_values`` (B, length, channels) float32 and ``labels`` (B,) int64.

        With `tokens`, ``input_ids`` and ``attention_mask`` (B, length) int64 instead.
        """
        pixels = np.stack([np.asarray(row["pixels"], np.uint8) for row in rows])
        pixels = self._arrange(pixels.reshape(len(rows), self.length, self.channels))
        labels = torch.tensor([int(row["label"]) for row in rows])
        if self.tokens:
            ids = torch.from_numpy(pixels[..., 0].astype(np.int64))
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        # In the order in which torchvision's ToTensor and Normalize do it, so that results are the same to the bit.
        values = torch.from_numpy(pixels).float().div_(255)
        values.sub_(torch.tensor(self.mean)).div_(torch.tensor(self.std))
        return {"input_values": values, "labels": labels}

    def _arrange(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """`pixels` (B, length, channels) in the order in which they are read."""
        return pixels

    def lengths(self, split: str) -> NDArray[np.int64]:
        """`length` for each row of `split` (rows,). Raises ValueError for a split that does not exist."""
        self._require_split(split)
        return np.full(len(self.splits()[split]), self.length, np.int64)


class Published(Images):
    """Images published as a train and a test part, in files or on the Hub. Some of the former are for validation.

    data_dir: the folder of the files; default the Hub's `repository`. Other options: see `Images`.
    """

    repository: ClassVar[str]
    #: Beginning of the names in the cache. Tasks of one name share their files.
    stored_as: ClassVar[str]

    def __init__(self, *, data_dir: StrPath | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.data_dir = None if data_dir is None else Path(data_dir)

    @property
    def source(self) -> str:
        """The folder or the data set."""
        return f"the Hub's {self.repository}" if self.data_dir is None else str(self.data_dir)

    def prepare(self, *, verify: bool = False) -> dict[str, list[Path]]:
        """See `Classification`."""
        key: list[Any] = ["hub", self.repository]
        if self.data_dir is not None:
            key = ["folder", fingerprint(*self._published())]
        return {
            split: [self._stored(f"{self.stored_as}-{split}", key, partial(self._batches, split), verify)]
            for split in SPLITS
        }

    @abstractmethod
    def _published(self) -> tuple[Path, list[Path]]:
        """The folder of the files, and the files."""

    @abstractmethod
    def _load(self, part: str) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        """Images (N, height, width[, channels]) and labels (N,) of ``"train"`` or ``"test"``."""

    @abstractmethod
    def _n_train(self, n: int) -> int:
        """How many of the `n` images of ``"train"`` are the train split."""

    def _batches(self, split: str) -> Iterator[Any]:
        images, labels = self._load("test" if split == "test" else "train")
        if split != "test":
            order, n_train = permutation(len(images)), self._n_train(len(images))
            kept = order[:n_train] if split == "train" else order[n_train:]
            images, labels = images[kept], labels[kept]
        with self._bar(split, len(images)) as bar:
            yield from pixel_batches(self._channels_of(images), labels)
            bar.update(len(images))

    def _channels_of(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return images


def pixel_batches(images: NDArray[np.uint8], labels: NDArray[np.integer]) -> Iterator[Any]:
    """Record batches of images (N, …) uint8 and labels (N,)."""
    for first in range(0, len(images), ROWS_AT_ONCE):
        yield pixel_batch(images[first : first + ROWS_AT_ONCE], labels[first : first + ROWS_AT_ONCE])


def pixel_batch(images: NDArray[np.uint8], labels: NDArray[np.integer]) -> Any:
    """One record batch of images (N, …) uint8 and labels (N,)."""
    pa = require("pyarrow")
    flat = np.ascontiguousarray(images).reshape(-1)
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(flat), images[0].size)
    return pa.record_batch([pixels, pa.array(np.asarray(labels, np.uint8))], names=["pixels", "label"])
