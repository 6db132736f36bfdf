"""The generated tasks of the Long Range Arena: splits kept on disk as Arrow files, batches, loss and metrics."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from longconv.tasks import cache
from longconv.tasks.extras import require
from longconv.tasks.lra import listops, pathfinder
from longconv.tasks.lra.random import Stream, child_seed
from longconv.tasks.lra.settings import pathfinder_config

# Part of every cache key: raise it when a seed gives other data than before.
_FORMAT = 1
_SPLITS = ("train", "validation", "test")
_ROWS_AT_ONCE = 1024


class Generated(ABC):
    """What the tasks below have in common.

    sizes: rows of train, validation and test; the default is that of the published data.
    seed: what is generated depends on it and on the settings, on nothing else.
    cache_dir: where the splits are kept; default ``$LONGCONV_CACHE`` or ``~/.cache/longconv``.
    workers: threads that generate, default one per core; the data are the same for any number.

    Raises ValueError for a size below 1 or a negative seed. Data are generated when they are first asked for.
    """

    name: ClassVar[str]
    n_classes: ClassVar[int]
    default_sizes: ClassVar[tuple[int, int, int]]

    def __init__(
        self,
        *,
        sizes: Sequence[int] | None = None,
        seed: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
        workers: int | None = None,
    ) -> None:
        self.sizes = dict(zip(_SPLITS, sizes or self.default_sizes, strict=False))
        if len(sizes or _SPLITS) != 3 or min(self.sizes.values()) < 1:
            raise ValueError(f"sizes must be three numbers of rows, 1 or more, for {', '.join(_SPLITS)}; got {sizes}")
        Stream(seed)  # raises for a seed that is none
        self.seed, self.workers = seed, workers
        self.cache_dir = cache.cache_root(cache_dir) / "lra"

    @property
    @abstractmethod
    def length(self) -> int:
        """The longest sequence."""

    @abstractmethod
    def prepare(self) -> dict[str, list[Path]]:
        """Generate what is not yet in the cache, with a progress bar; the Arrow files of each split.

        Whole files are kept when a run is ended, so that the next one goes on from there, and their checksums are
        read at every call: a damaged file is generated again.
        """

    @abstractmethod
    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Rows of a split to a batch."""

    def splits(self) -> dict[str, Any]:
        """``train``, ``validation``, ``test``: each a `datasets.Dataset` of rows for `collate`, memory-mapped."""
        datasets = require("datasets")
        return {
            split: datasets.concatenate_datasets([datasets.Dataset.from_file(os.fspath(file)) for file in files])
            for split, files in self.prepare().items()
        }

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats, a scalar: logits (B, n_classes), labels (B,)."""
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    def compute_metrics(self, prediction: Any) -> dict[str, float]:
        """For `transformers.Trainer`: ``accuracy``, the share of rows whose largest logit is the label's."""
        logits = prediction.predictions
        logits = logits[0] if isinstance(logits, tuple) else logits
        return {"accuracy": float((np.asarray(logits).argmax(-1) == np.asarray(prediction.label_ids)).mean())}

    def _bar(self, split: str, total: int) -> Any:
        return require("tqdm").tqdm(total=total, desc=f"{self.name} {split}", unit=" rows", disable=None, leave=False)


class ListOps(Generated):
    """ListOps: what a nested expression of about 1,000 tokens evaluates to, 0 … 9.

    config: which expressions; default those of the Long Range Arena. The other options are those of `Generated`.
    Rows have ``input_ids``, with the end-of-text token at the end, and ``label``; no expression is there twice.
    """

    name = "lra/listops"
    n_classes = listops.N_CLASSES
    vocab_size = len(listops.VOCABULARY)
    default_sizes = (96_000, 2_000, 2_000)

    def __init__(self, *, config: listops.ListOpsConfig | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.config = config or listops.ListOpsConfig()

    @property
    def length(self) -> int:
        """The longest sequence: ``max_length - 1`` tokens and the end-of-text token."""
        return self.config.max_length

    def prepare(self) -> dict[str, list[Path]]:
        """See `Generated`. All splits are one piece of work, of seconds, since no expression may be there twice."""
        key = cache.make_key(_FORMAT, asdict(self.config), self.seed, self.sizes)
        folder = cache.fetch(self.cache_dir / f"listops-{key}", self._write)
        return {split: [folder / f"{split}.arrow"] for split in _SPLITS}

    def _write(self, folder: Path) -> None:
        pa = require("pyarrow")
        schema = pa.schema([("input_ids", pa.list_(pa.uint8())), ("label", pa.uint8())])
        total = sum(self.sizes.values())
        parts = listops.generate_parts(total, self.seed, config=self.config, workers=self.workers)
        rows = ((np.append(part[i][0], np.uint8(listops.EOS)), part[i][1]) for part in parts for i in range(len(part)))
        for split, size in self.sizes.items():
            with (
                self._bar(split, size) as bar,
                pa.OSFile(os.fspath(folder / f"{split}.arrow"), "wb") as file,
                pa.ipc.new_stream(file, schema) as writer,
            ):
                for group in _groups(rows, size):
                    tokens, labels = zip(*group, strict=True)
                    offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int32)
                    column = pa.ListArray.from_arrays(offsets, np.concatenate(tokens))
                    writer.write_batch(pa.record_batch([column, pa.array(labels, pa.uint8())], schema=schema))
                    bar.update(len(group))

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` (B, longest row) int64, padded on the right; ``labels`` (B,) int64."""
        ids = [torch.as_tensor(row["input_ids"], dtype=torch.int64) for row in rows]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=listops.PAD)
        labels = torch.tensor([int(row["label"]) for row in rows])
        return {"input_ids": padded, "attention_mask": (padded != listops.PAD).long(), "labels": labels}


class Pathfinder(Generated):
    """Pathfinder: are two discs at the ends of one contour (1) or of two (0)? The image is read row by row.

    difficulty: ``"easy"``, ``"intermediate"`` or ``"hard"``, the published one. The other options are those of
    `Generated`. Rows have ``pixels``, size * size numbers of 0 … 255, and ``label``.
    """

    size: ClassVar[int]
    n_classes = 2
    default_sizes = (160_000, 20_000, 20_000)

    def __init__(self, *, difficulty: str = "hard", **options: Any) -> None:
        super().__init__(**options)
        self.config = pathfinder_config(self.size, difficulty)

    @property
    def length(self) -> int:
        """Pixels of an image."""
        return self.size**2

    def prepare(self) -> dict[str, list[Path]]:
        """See `Generated`. A file has 16 MB of pixels, or 256 images."""
        at_once = max((1 << 24) // self.length, 256)
        files: dict[str, list[Path]] = {}
        for split_number, (split, size) in enumerate(self.sizes.items()):
            files[split] = []
            with self._bar(split, size) as bar:
                for number, first in enumerate(range(0, size, at_once)):
                    n = min(at_once, size - first)
                    seed = child_seed(self.seed, split_number, number)
                    key = cache.make_key(_FORMAT, asdict(self.config), seed, n)
                    folder = self.cache_dir / f"pathfinder{self.size}-{split}-{number:05}-{key}"
                    files[split].append(cache.fetch(folder, self._writer(n, seed, bar)) / "rows.arrow")
                    bar.update(first + n - bar.n)
        return files

    def _writer(self, n: int, seed: int, bar: Any) -> Any:
        def write(folder: Path) -> None:
            pa = require("pyarrow")
            schema = pa.schema([("pixels", pa.list_(pa.uint8(), self.length)), ("label", pa.uint8())])
            parts = pathfinder.generate_parts(n, seed, config=self.config, workers=self.workers)
            with (
                pa.OSFile(os.fspath(folder / "rows.arrow"), "wb") as file,
                pa.ipc.new_stream(file, schema) as writer,
            ):
                for part in parts:
                    pixels = pa.FixedSizeListArray.from_arrays(pa.array(part.images.reshape(-1)), self.length)
                    writer.write_batch(pa.record_batch([pixels, pa.array(part.labels)], schema=schema))
                    bar.update(len(part))

        return write

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """``pixel_values`` (B, size * size, 1) float32, -1 for black and 1 for white; ``labels`` (B,) int64."""
        pixels = torch.stack([torch.as_tensor(row["pixels"], dtype=torch.float32) for row in rows])
        labels = torch.tensor([int(row["label"]) for row in rows])
        return {"pixel_values": (pixels / 127.5 - 1)[..., None], "labels": labels}


class Pathfinder32(Pathfinder):
    """Pathfinder of the Long Range Arena: 32 px, 1,024 steps."""

    name = "lra/pathfinder32"
    size = 32


class Pathfinder64(Pathfinder):
    """Pathfinder with 64 px, 4,096 steps."""

    name = "lra/pathfinder64"
    size = 64


class PathX(Pathfinder):
    """Path-X of the Long Range Arena: 128 px, 16,384 steps."""

    name = "lra/pathx"
    size = 128


class Path256(Pathfinder):
    """Path-256: 65,536 steps."""

    name = "lra/path256"
    size = 256


class Path512(Pathfinder):
    """Path-512: 262,144 steps."""

    name = "lra/path512"
    size = 512


def _groups(rows: Iterator[Any], n: int) -> Iterable[list[Any]]:
    """The next `n` of `rows`, some at once."""
    while n:
        group = [row for _, row in zip(range(min(n, _ROWS_AT_ONCE)), rows, strict=False)]
        n -= len(group)
        yield group
