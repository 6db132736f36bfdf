"""Pathfinder's released images: where they are, what their labels are, and how one is read."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longconv.tasks.extras import require
from longconv.tasks.lra.sources import RELEASE_URL, StrPath, find, fingerprint

FOLDERS = {"easy": "curv_baseline", "intermediate": "curv_contour_length_9", "hard": "curv_contour_length_14"}


def find_images(data_dir: StrPath, size: int, folder: str) -> Path:
    """The folder ``pathfinder<size>`` that has `folder` with images.

    The released archive has two folders ``pathfinder128``, and a model trained on one of them stays at chance
    (google-research/long-range-arena, issue 38). The inner one is found first, which is the one that S4's instructions
    take; if `data_dir` leads to the outer one, there is a warning.

    Raises FileNotFoundError that says what to fetch.
    """
    fetch = (
        f"fetch {RELEASE_URL}, unpack it, and give the folder it is unpacked in, or its pathfinder{size}, as data_dir; "
        "without data_dir the data are generated here"
    )
    if size == 512:
        raise FileNotFoundError(
            "no images of 512 pixels were released: leave out data_dir, and they are generated here"
        )
    names = (f"pathfinder{size}", f"pathfinder/pathfinder{size}")
    needed = [f"{folder}/metadata", f"{folder}/imgs"]
    found = find(data_dir, names, needed, fetch).resolve()
    inner = found.parent / "lra_release" / found.name
    if inner.is_dir():
        warnings.warn(
            f"{found} is the outer of the two folders of that name, and a model trained on one of them stays "
            f"at chance (issue 38 of google-research/long-range-arena); S4's instructions take the inner one, {inner}",
            stacklevel=2,
        )
    return found


def list_images(root: Path, folder: str) -> tuple[list[tuple[str, int]], str]:
    """(path below `root`, label) of every image, in the order of the metadata, and a hash that tells folders apart.

    The hash is of the metadata, and of size and time of one image for each file of them: to look at all 200,000 would
    take seconds at every opening.

    ``metadata/<number>.npy`` are, in spite of their name, text: ``imgs/0 sample_0.png 0 1 …``, the fourth word is the
    label. They are taken in the order of their numbers.

    Raises ValueError for a line that is not like that, with its file and number; FileNotFoundError if there is none.
    """
    files = sorted((root / folder / "metadata").glob("*.npy"), key=lambda file: (len(file.stem), file.stem))
    if not files:
        raise FileNotFoundError(f"no metadata in {root / folder / 'metadata'}: expected 0.npy, 1.npy, …")
    images: list[tuple[str, int]] = []
    digest = hashlib.sha256()
    for file in files:
        first = len(images)
        raw = file.read_bytes()
        digest.update(raw)
        for number, line in enumerate(raw.splitlines(), start=1):
            words = line.split()
            if len(words) < 4 or words[3] not in (b"0", b"1"):
                raise ValueError(f"{file}, line {number}: expected folder, file, number, label; got {line[:80]!r}")
            images.append((f"{folder}/{words[0].decode()}/{words[1].decode()}", int(words[3])))
        some = [root / image for image, _ in images[first : first + 1]]
        digest.update(fingerprint(root, [image for image in some if image.is_file()]).encode())
    return images, digest.hexdigest()


def read_png(file: Path, size: int) -> NDArray[np.uint8] | str:
    """The grey image (size, size), or what is wrong with it."""
    image_module = require("PIL.Image", extra="lra")
    try:
        if not file.stat().st_size:
            return "empty"
        with image_module.open(file) as image:
            pixels = np.asarray(image.convert("L"))
    except FileNotFoundError:
        return "not there"
    except (OSError, ValueError, SyntaxError) as error:
        return f"damaged: {type(error).__name__}"
    return pixels if pixels.shape == (size, size) else f"{pixels.shape[1]} x {pixels.shape[0]} pixels"
