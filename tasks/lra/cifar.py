"""CIFAR-10 pixel by pixel: grey, the Image task of the Long Range Arena, and in colour."""

import pickle
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from longconv.tasks.lra.images import Published
from longconv.tasks.lra.sources import find, hub_images

ARCHIVE = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_HUB = "uoft-cs/cifar10"
_FETCH = (
    f"fetch https://www.cs.toronto.edu/~kriz/{ARCHIVE}, and give the folder it is in, packed or unpacked, as data_dir"
)
_VALIDATION = 0.1


class Cifar(Published):
    """What both have in common: 45,000, 5,000 and 10,000 images of 32 x 32 pixels in ten classes.

    data_dir: a folder with ``cifar-10-python.tar.gz``, or with what is in it; default the Hub's ``uoft-cs/cifar10``.
    Other options: see `Images`.

    The validation split is a tenth of the published training images, the one of S4's code: drawn with torch's
    ``random_split`` and seed 42, from the images in the order of the files.
    Raises FileNotFoundError, when rows are asked for, if there are no data.
    """

    n_classes = 10
    repository = _HUB

    @property
    def length(self) -> int:
        """1,024 pixels."""
        return 32 * 32

    def _published(self) -> tuple[Path, list[Path]]:
        folder = self._folder()
        names = [ARCHIVE] if (folder / ARCHIVE).is_file() else [file for part in FILES.values() for file in part]
        return folder, [folder / name for name in names]

    def _n_train(self, n: int) -> int:
        return int(n * (1 - _VALIDATION))

    def _folder(self) -> Path:
        assert self.data_dir is not None
        root = Path(self.data_dir).expanduser()
        if (root / ARCHIVE).is_file():
            return root
        return find(root, (FOLDER,), [file for part in FILES.values() for file in part], _FETCH)

    def _load(self, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        if self.data_dir is None:
            return hub_images(_HUB, part, "img", self.name, _FETCH)
        with _files(self._folder()) as opened:
            batches = [_read_batch(opened(name), name) for name in FILES[part]]
        images = np.concatenate([images for images, _ in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return images, np.concatenate([labels for _, labels in batches])


class Image(Cifar):
    """Image of the Long Range Arena: CIFAR-10 in grey, 1,024 steps.

    Grey is what torchvision's ``Grayscale`` makes, 8 bits. ``input_values`` are (x - 122.6 / 255) / (61 / 255), the
    constants of S4's code (``src/dataloaders/basic.py``). Options and splits: see `Cifar`.
    """

    name = "lra/image"
    stored_as = "image"
    channels = 1
    mean, std = (122.6 / 255,), (61.0 / 255,)

    def _channels_of(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return to_grey(images)


class SCifar(Cifar):
    """Sequential CIFAR-10 in colour: 1,024 steps of three channels.

    ``input_values`` have each channel's mean and standard deviation in the training images removed, with the constants
    of S4's code (``src/dataloaders/basic.py``). Options and splits: see `Cifar`.
    """

    name = "lra/scifar"
    stored_as = "scifar"
    channels = 3
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)


def to_grey(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Luma of ITU-R 601-2 (…, 3) uint8 to (…) uint8: .299 R + .587 G + .114 B in Pillow's fixed point, rounded."""
    weights = np.array([19595, 38470, 7471], np.uint32)
    return ((images.astype(np.uint32) @ weights + 0x8000) >> 16).astype(np.uint8)


@contextmanager
def _files(folder: Path) -> Iterator[Any]:
    """A function from the name of a file of CIFAR-10 to a stream of it, from the archive or the folder."""
    if not (folder / ARCHIVE).is_file():
        yield lambda name: (folder / name).open("rb")
        return
    try:
        with tarfile.open(folder / ARCHIVE) as archive:
            yield lambda name: archive.extractfile(f"{FOLDER}/{name}")
    except (tarfile.TarError, zlib.error, EOFError, KeyError) as error:
        raise ValueError(f"{folder / ARCHIVE} is damaged ({error}); {_FETCH}") from error


class _Unpickler(pickle.Unpickler):
    """Arrays only: a pickle can call anything, and this one was fetched from somewhere."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """The class or function, if it is one that arrays need."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _read_batch(stream: IO[bytes], name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels (N, 3072) and labels (N,) of one of the published files."""
    with stream:
        try:
            batch = _Unpickler(stream, encoding="bytes").load()
            pixels, labels = batch[b"data"], np.array(batch[b"labels"], np.int64)
        except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{name} is no batch of CIFAR-10 ({error}); {_FETCH}") from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072):
        raise ValueError(f"{name} must have as many labels as rows of 3,072 bytes; {_FETCH}")
    return pixels, labels
