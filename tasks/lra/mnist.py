"""MNIST pixel by pixel: in order, and permuted."""

import gzip
import os
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from longconv.tasks.lra.images import Published
from longconv.tasks.lra.sources import StrPath, find, hub_images

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_HUB = "ylecun/mnist"
_FETCH = (
    "fetch the four files {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz from "
    "https://ossci-datasets.s3.amazonaws.com/mnist/, and give their folder as data_dir"
)


class SMNIST(Published):
    """Sequential MNIST: digits of 28 x 28 pixels, 784 steps; 55,000, 5,000 and 10,000 images.

    data_dir: a folder with the four idx files, packed (.gz) or not, or with one called ``MNIST/raw`` that has them, as
        torchvision's; default the Hub's ``ylecun/mnist``.
    Other options: see `Images`.

    ``input_values`` are 0 to 1, as in S4's code. The validation split is a twelfth of the published training images,
    drawn with torch's ``random_split`` and seed 42; S4's is a tenth.
    Raises FileNotFoundError, when rows are asked for, if there are no data.
    """

    name = "lra/smnist"
    n_classes = 10
    repository, stored_as = _HUB, "mnist"
    mean, std = (0.0,), (1.0,)

    @property
    def length(self) -> int:
        """784 pixels."""
        return 28 * 28

    def _published(self) -> tuple[Path, list[Path]]:
        files = [file for part in self._files().values() for file in part]
        return files[0].parent, files

    def _n_train(self, n: int) -> int:
        return n - n // 12

    def _load(self, part: str) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        if self.data_dir is None:
            images, labels = hub_images(_HUB, part, "image", self.name, _FETCH)
        else:
            images, labels = (read_idx(file) for file in self._files()[part])
        if images.shape != (len(labels), 28, 28):
            raise ValueError(f"MNIST has images of 28 x 28 and a label for each, got {images.shape} and {labels.shape}")
        return images, labels

    def _files(self) -> dict[str, list[Path]]:
        assert self.data_dir is not None
        root = Path(self.data_dir).expanduser()
        raw = root / "MNIST" / "raw" if (root / "MNIST" / "raw").is_dir() else root
        packed = ".gz" if any((raw / f"{file}.gz").is_file() for file in FILES["train"]) else ""
        needed = [f"{file}{packed}" for part in FILES.values() for file in part]
        folder = find(raw, ("MNIST/raw",), needed, _FETCH)
        return {part: [folder / f"{file}{packed}" for file in files] for part, files in FILES.items()}


class PMNIST(SMNIST):
    """Permuted sequential MNIST: as `SMNIST`, but the 784 pixels come in another order, the same for all images.

    permutation: ``"bitreversal"``, S4's: pixels in the order of their numbers with the ten bits reversed. Or a seed:
        numpy's ``RandomState(seed).permutation(784)``; 92916 is that of earlier works (S4's code names it).
    Other options: see `SMNIST`.
    """

    name = "lra/pmnist"

    def __init__(self, *, permutation: Literal["bitreversal"] | int = "bitreversal", **options: Any) -> None:
        super().__init__(**options)
        if permutation == "bitreversal":
            self.order = bit_reversal(self.length)
        elif isinstance(permutation, int) and not isinstance(permutation, bool) and 0 <= permutation < 2**32:
            self.order = np.random.RandomState(permutation).permutation(self.length)
        else:
            raise ValueError(f'permutation must be "bitreversal" or a seed, 0 … 2^32 - 1, got {permutation!r}')

    def _arrange(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return pixels[:, self.order]


def bit_reversal(n: int) -> NDArray[np.int64]:
    """0 … n - 1 in the order in which the reversed bits of 0, 1, 2, … name them, with as many bits as n - 1 has."""
    bits = (n - 1).bit_length()
    reversed_ = np.zeros(1 << bits, np.int64)
    for bit in range(bits):
        reversed_ |= ((np.arange(1 << bits) >> bit) & 1) << (bits - 1 - bit)
    return reversed_[reversed_ < n]


def read_idx(file: StrPath) -> NDArray[np.uint8]:
    """The array of bytes of an idx file, or of one packed with gzip: (N,) or (N, height, width).

    Raises ValueError for a file that is none, or is damaged.
    """
    path = Path(file)
    raw = path.read_bytes()
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{os.fspath(file)} is damaged ({error}); {_FETCH}") from error
    # Two zero bytes, 8 for bytes, the number of dimensions; then these, 32 bits each, the first byte the highest.
    n_dimensions = raw[3] if len(raw) > 3 and raw[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(raw[4 : 4 + 4 * n_dimensions], ">u4").astype(int)
    body = raw[4 + 4 * n_dimensions :]
    if n_dimensions not in (1, 3) or len(shape) != n_dimensions or len(body) != shape.prod():
        raise ValueError(f"{os.fspath(file)} is no idx file of bytes, or is damaged; {_FETCH}")
    return np.frombuffer(body, np.uint8).reshape(shape)
