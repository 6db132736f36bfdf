"""Where published data are: a local folder in the official layout, or the Hub; and what is said when they are not."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longconv.tasks.extras import require

StrPath = str | os.PathLike[str]

RELEASE_URL = "https://storage.googleapis.com/long-range-arena/lra_release.gz"
# The archive has most of its folders twice nested; S4's instructions move them to the second names of each pair.
_NESTED = ("lra_release/lra_release", "lra_release", "")


def find(data_dir: StrPath, folders: Sequence[str], needed: Sequence[str], fetch: str) -> Path:
    """The folder below `data_dir`, or `data_dir` itself, that has all of `needed`.

    folders: names that it may have. They are looked for in ``lra_release/lra_release/``, ``lra_release/`` and
        `data_dir` itself, in this order: where an archive has a folder twice, the inner one is found.
    fetch: what to say of where to get the data.

    Raises FileNotFoundError that says what is missing, where it was looked for, what to fetch and where to put it.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"data_dir {root} is not a folder; {fetch}")
    candidates = [root / nested / folder for nested in _NESTED for folder in folders] + [root]
    for candidate in candidates:
        if all((candidate / name).exists() for name in needed):
            return candidate
    # The folder that comes closest tells most.
    best = max(candidates, key=lambda folder: sum((folder / name).exists() for name in needed))
    missing = [name for name in needed if not (best / name).exists()]
    if len(missing) == len(needed):
        names = " or ".join(folders)
        raise FileNotFoundError(f"no {', '.join(needed)} in {root} nor in its {names}; {fetch}")
    raise FileNotFoundError(f"{best} has no {', '.join(missing)}; {fetch}")


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """A hash of the names below `root`, sizes and times of `files`: changes when one of them does."""
    digest = hashlib.sha256()
    for file in sorted(files):
        stat = file.stat()
        digest.update(f"{file.relative_to(root).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def hub(repository: str, split: str, task: str, fetch: str) -> Any:
    """A split of a data set of the Hugging Face Hub.

    Raises FileNotFoundError that says what to do if it is neither on this machine nor to be had.
    """
    datasets = require("datasets")
    try:
        return datasets.load_dataset(repository, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{task} needs its data: no data_dir was given, and {repository} could not be had from the Hugging Face "
            f"Hub ({reason}); {fetch}"
        ) from error


def hub_images(repository: str, split: str, column: str, task: str, fetch: str) -> tuple[NDArray[np.uint8], NDArray]:
    """Images (N, height, width[, 3]) and labels (N,) of a split on the Hub. Raises what `hub` raises."""
    require("PIL.Image", extra="lra")  # datasets decodes with it, and would name no extra
    rows = [(np.asarray(row[column]), row["label"]) for row in hub(repository, split, task, fetch)]
    return np.stack([image for image, _ in rows]), np.array([label for _, label in rows])
