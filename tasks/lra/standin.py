"""Tiny files in the published formats, for tests and trials: each task's reader reads them as it reads the real ones.

They can be learned: labels follow from the contents, more simply than in the real data, but for ListOps and Pathfinder,
which are the real thing in small.
"""

import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longconv.tasks.extras import require
from longconv.tasks.lra import cifar, listops, listops_task, mnist, pathfinder, pathfinder_files, retrieval, text
from longconv.tasks.lra.settings import pathfinder_config

Rows = tuple[int, int, int]

_WORDS = b"the film a scene of it and its plot with that who was story an actor camera in one this".split()
_OPINIONS = ((b"dull", b"awful", b"a mess", b"boring"), (b"superb", b"moving", b"a joy", b"brilliant"))


def write(name: str, folder: str | os.PathLike[str], *, rows: Sequence[int] = (64, 32, 32), seed: int = 0) -> Path:
    """Write a stand-in for the data of the task called `name`, and return `folder`, for ``data_dir``.

    rows: of train, validation and test. Where the published files have no validation split, those for training have the
        rows of both; and Pathfinder's reader deals all of them, 80, 10 and 10%.
    seed: the same gives the same files.

    Raises ValueError for a task that reads no files, and for rows that are no three numbers of 10 or more.
    """
    if name not in _WRITERS:
        raise ValueError(f"no stand-in for {name!r}, there are for: {', '.join(sorted(_WRITERS))}")
    if len(rows) != 3 or min(rows) < 10:
        raise ValueError(f"rows must be three numbers, 10 or more, got {tuple(rows)}")
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    _WRITERS[name](root, (rows[0], rows[1], rows[2]), np.random.RandomState(seed))
    return root


def _listops(root: Path, rows: Rows, random: np.random.RandomState) -> None:
    config = listops.ListOpsConfig(max_depth=5, max_args=5, min_length=10, max_length=80)
    made = listops.generate(sum(rows), int(random.randint(1 << 30)), config=config, workers=1)
    folder = root / "lra_release" / "lra_release" / "listops-1000"
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for n, file in zip(rows, listops_task.FILES.values(), strict=True):
        lines = [f"{_brackets(made[i][0])}\t{made[i][1]}\n" for i in range(first, first + n)]
        (folder / file).write_text("Source\tTarget\n" + "".join(lines))
        first += n


def _brackets(ids: NDArray[np.uint8]) -> str:
    """An expression with the parentheses of the published files: ``( ( ( [MED 1 ) 5 ) ] )``."""
    stack: list[str] = []
    for token in (listops.VOCABULARY[i] for i in ids):
        if token in listops.OPERATORS:
            stack.append(token)
            continue
        node = token
        if token == "]":
            node = f"( {stack.pop()} ] )"
        if not stack:
            return node
        stack[-1] = f"( {stack[-1]} {node} )"
    raise AssertionError("an operator that is not closed")


def _pathfinder(size: int) -> Callable[[Path, Rows, np.random.RandomState], None]:
    def write_images(root: Path, rows: Rows, random: np.random.RandomState) -> None:
        image_module = require("PIL.Image", extra="lra")
        config = pathfinder_config(size, "hard")
        scenes = pathfinder.generate(sum(rows), int(random.randint(1 << 30)), config=config, workers=1)
        folder = root / "lra_release" / "lra_release" / f"pathfinder{size}" / pathfinder_files.FOLDERS["hard"]
        # Two folders of images, and a file of metadata for each, as there are 200 in the published data.
        for number, part in enumerate(np.array_split(np.arange(len(scenes)), 2)):
            images, metadata = folder / "imgs" / str(number), folder / "metadata" / f"{number}.npy"
            images.mkdir(parents=True, exist_ok=True)
            metadata.parent.mkdir(exist_ok=True)
            lines = []
            for i, row in enumerate(part):
                image_module.fromarray(scenes.images[row]).save(images / f"sample_{i}.png")
                settings = f"{config.continuity} {config.contour_length} {config.distractor_length}"
                lines.append(f"imgs/{number} sample_{i}.png {i} {scenes.labels[row]} {settings}\n")
            metadata.write_text("".join(lines))

    return write_images


def _sentences(random: np.random.RandomState, marks: Sequence[bytes], n: int) -> bytes:
    """`n` words, every fifth or so one of `marks`."""
    words = [
        marks[random.randint(len(marks))] if random.random_sample() < 0.2 else _WORDS[random.randint(len(_WORDS))]
        for _ in range(n)
    ]
    return b" ".join([marks[random.randint(len(marks))], *words])


def _text(root: Path, rows: Rows, random: np.random.RandomState) -> None:
    for part, n in (("train", rows[0] + rows[1]), ("test", rows[2])):
        for i in range(n):
            label = i % 2
            folder = root / "aclImdb" / part / text.LABELS[label]
            folder.mkdir(parents=True, exist_ok=True)
            review = _sentences(random, _OPINIONS[label], random.randint(5, 30))
            (folder / f"{i // 2}_{9 if label else 2}.txt").write_bytes(review)


def _retrieval(root: Path, rows: Rows, random: np.random.RandomState) -> None:
    folder = root / "lra_release" / "lra_release" / "tsv_data"
    folder.mkdir(parents=True, exist_ok=True)
    topics = (b"parsing", b"translation", b"morphology", b"dialogue")
    for n, file in zip(rows, retrieval.FILES.values(), strict=True):
        lines = []
        for i in range(n):
            first, other = random.permutation(len(topics))[:2]
            second = first if i % 2 else other
            texts = [_sentences(random, [topics[topic]], random.randint(5, 30)) for topic in (first, second)]
            lines.append(b"\t".join([b"%d.0" % (i % 2), b"P%05d" % i, b"Q%05d" % i, *texts]) + b"\n")
        (folder / file).write_bytes(b"".join(lines))


def _cifar(root: Path, rows: Rows, random: np.random.RandomState) -> None:
    folder = root / cifar.FOLDER
    folder.mkdir(exist_ok=True)
    parts = dict(zip(cifar.FILES["train"], np.array_split(np.arange(rows[0] + rows[1]), 5), strict=True))
    for file, part in {**parts, cifar.FILES["test"][0]: np.arange(rows[2])}.items():
        labels = random.randint(10, size=len(part))
        # The class is in how bright the image is; red, green and blue planes follow each other.
        pixels = 20 * labels[:, None] + random.randint(40, size=(len(part), 3072))
        batch = {b"batch_label": b"a stand-in", b"labels": labels.tolist(), b"data": pixels.astype(np.uint8)}
        (folder / file).write_bytes(pickle.dumps(batch, protocol=2))


def _mnist(root: Path, rows: Rows, random: np.random.RandomState) -> None:
    for (images_file, labels_file), n in zip(mnist.FILES.values(), (rows[0] + rows[1], rows[2]), strict=True):
        labels = random.randint(10, size=n)
        images = random.randint(60, size=(n, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 2 : 2 * label + 6] += 180  # a bar as far down as the digit is large
        (root / images_file).write_bytes(_idx(images))
        (root / labels_file).write_bytes(_idx(labels))


def _idx(array: NDArray[np.integer]) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


_WRITERS: dict[str, Callable[[Path, Rows, np.random.RandomState], None]] = {
    "lra/listops": _listops,
    "lra/text": _text,
    "lra/retrieval": _retrieval,
    "lra/image": _cifar,
    "lra/scifar": _cifar,
    "lra/smnist": _mnist,
    "lra/pmnist": _mnist,
    "lra/pathfinder32": _pathfinder(32),
    "lra/pathfinder64": _pathfinder(64),
    "lra/pathx": _pathfinder(128),
    "lra/path256": _pathfinder(256),
}
