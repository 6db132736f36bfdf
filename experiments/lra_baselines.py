"""What a task of the Long Range Arena gives away to a linear classifier: the accuracies to be beaten.

Logistic regressions on features that take no reading of a sequence as a whole: how often each token is there, pixels
one by one, the distance of Pathfinder's discs; and the most frequent class. What a model adds begins above these. For
any task whose batches are tokens or images (docs/lra.md), in the size it is given.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from longconv.tasks.extras import require
from longconv.tasks.lra import listops

#: Inverse strengths of the L2 penalty; the validation split chooses.
STRENGTHS = (1e-4, 1e-2, 1.0)
#: Images are averaged to at most so many pixels a side.
MAX_SIDE = 32
#: Of the normal distribution: two-sided, 95%.
Z = 1.959963984540054

_ROWS_AT_ONCE = 256
# Bigrams are counted where there are at most so many.
_MOST_BIGRAMS = 4096
_DISTANCE_BINS, _LEVELS = 16, 8
_SPLITS = ("train", "validation", "test")

Features = Callable[[Mapping[str, Tensor]], NDArray[np.float32]]


@dataclass(frozen=True)
class Baseline:
    """What a classifier that is no sequence model reaches.

    Attributes:
        features: what it sees, in words.
        dimensions: how many numbers that is.
        strength: inverse of the L2 penalty that was best on the validation split; None where nothing is fitted.
        train_rows: that it was fitted on; `validation_rows` and `test_rows` likewise.
        train: accuracy on these, 0 ... 1; `validation` and `test` likewise.
        test_low: lower end of the 95% confidence interval of the test accuracy; `test_high` likewise. The interval is
            Wilson's, and says what the number of test rows leaves open, not what other training rows would change.
        seconds: to fit.
    """

    features: str
    dimensions: int
    strength: float | None
    train_rows: int
    validation_rows: int
    test_rows: int
    train: float
    validation: float
    test: float
    test_low: float
    test_high: float
    seconds: float


def baselines(task: Any, progress: Callable[[str], None] = lambda line: None) -> list[Baseline]:
    """Fit every baseline of a task on its train split.

    Args:
        task: as `longconv.tasks.get("lra/listops")` gives it; of any size.
        progress: called with a line on what is being done.

    Returns:
        The most frequent class, and one for each of `features_of(task)`.

    Raises:
        ImportError: without scikit-learn.
        ValueError: the task's batches are neither tokens nor images.
    """
    require("sklearn", "lra")
    kinds = features_of(task)
    splits = task.splits()
    data: dict[str, tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]] = {}
    for split in _SPLITS:
        progress(f"reads {len(splits[split]):,} rows of {split}")
        data[split] = _read(task, splits[split], kinds)
    labels = {split: found[1] for split, found in data.items()}
    common = np.bincount(labels["train"]).argmax()
    guesses = {split: np.full_like(of_split, common) for split, of_split in labels.items()}
    results = [_baseline("most frequent class", 0, None, guesses, labels, 0.0)]
    for kind in kinds:
        progress(f"fits {kind}")
        begin = time.perf_counter()
        x = {split: data[split][0].pop(kind) for split in _SPLITS}
        if kind == "distance of the discs":
            x = _binned(x)
        guesses, strength = _fit(x, labels)
        seconds = time.perf_counter() - begin
        results.append(_baseline(kind, x["train"].shape[1], strength, guesses, labels, seconds))
    return results


def features_of(task: Any) -> dict[str, Features]:
    """What is tried on a task: name -> function of a batch of `task.collate` to features (B, N).

    Raises:
        ValueError: its batches are neither tokens nor images.
    """
    if task.input_size is None:
        n = task.vocab_size

        def bag(batch: Mapping[str, Tensor]) -> NDArray[np.float32]:
            return _of_pair(token_counts(batch["input_ids"], batch["attention_mask"], n))

        found: dict[str, Features] = {"counts of tokens": bag}
        if task.name == "lra/listops":
            found = {
                "root operator": _roots,
                **found,
                "counts of tokens, root operator": lambda batch: np.hstack([_roots(batch), bag(batch)]),
                "root operator and its digits": root_digits,
            }
        if n * n <= _MOST_BIGRAMS:
            found["counts of bigrams"] = lambda batch: _of_pair(
                bigram_counts(batch["input_ids"], batch["attention_mask"], n)
            )
        return found
    side = math.isqrt(task.length)
    if side * side != task.length:
        raise ValueError(f"baselines: {task.name} has {task.length} steps, which are no square image")
    found = {
        "pixel statistics": pixel_statistics,
        f"pixels, {min(side, MAX_SIDE)} x {min(side, MAX_SIDE)}": lambda batch: pixels(batch, side),
    }
    if task.name.startswith("lra/path"):
        radius = task.config.marker_radius
        found["distance of the discs"] = lambda batch: disc_distances(batch["input_values"], side, radius)
    return found


# --- Tokens -----------------------------------------------------------------------------------------------------------


def token_counts(ids: Tensor, mask: Tensor, vocab_size: int) -> NDArray[np.float32]:
    """Count tokens: ids and mask (..., L) to (..., vocab_size). What is masked is not counted."""
    counts = torch.zeros(*ids.shape[:-1], vocab_size)
    return counts.scatter_add_(-1, ids, mask.float()).numpy()


def bigram_counts(ids: Tensor, mask: Tensor, vocab_size: int) -> NDArray[np.float32]:
    """Count pairs of neighbouring tokens: ids and mask (..., L) to (..., vocab_size^2), the first token major."""
    pairs = ids[..., :-1] * vocab_size + ids[..., 1:]
    return token_counts(pairs, mask[..., :-1] * mask[..., 1:], vocab_size**2)


def root_digits(batch: Mapping[str, Tensor]) -> NDArray[np.float32]:
    """How often each digit, and an operator, is a direct argument of ListOps' root, for each root apart: (B, 4 * 12).

    The twelfth number of a root is that it is there. A model can reach what this gives by reading one level.
    """
    ids = batch["input_ids"]
    first, close, digit = listops.VOCABULARY.index(listops.OPERATORS[0]), *map(listops.VOCABULARY.index, "]0")
    opens = (ids >= first) & (ids < close)
    depth = opens.int().cumsum(1) - (ids == close).int().cumsum(1)  # behind a token
    below = torch.zeros(len(ids), len(listops.OPERATORS), 12)
    kind = torch.where(opens, 10, ids - digit)
    direct = ((depth == 1) & (ids >= digit)) | ((depth == 2) & opens)
    counts = torch.zeros(len(ids), 12).scatter_add_(1, kind.clamp(0, 10), direct.float())
    counts[:, 11] = 1
    below[torch.arange(len(ids)), ids[:, 0] - first] = counts
    return below.flatten(1).numpy()


def _roots(batch: Mapping[str, Tensor]) -> NDArray[np.float32]:
    first = listops.VOCABULARY.index(listops.OPERATORS[0])
    return F.one_hot(batch["input_ids"][:, 0] - first, len(listops.OPERATORS)).float().numpy()


def _of_pair(counts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Counts as they are, (B, V); those of a pair, (B, 2, V), to what both have in common and what they have not."""
    if counts.ndim == 2:
        return counts
    frequencies = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    one, other = frequencies[:, 0], frequencies[:, 1]
    return np.hstack([np.abs(one - other), np.sqrt(one * other)])


# --- Images -----------------------------------------------------------------------------------------------------------


def pixels(batch: Mapping[str, Tensor], side: int) -> NDArray[np.float32]:
    """The pixels of images (B, side * side, C), averaged to at most `MAX_SIDE` a side: (B, N)."""
    x = batch["input_values"]
    images = x.mT.reshape(len(x), -1, side, side)
    if side > MAX_SIDE:
        images = F.adaptive_avg_pool2d(images, MAX_SIDE)
    return images.flatten(1).numpy()


def pixel_statistics(batch: Mapping[str, Tensor]) -> NDArray[np.float32]:
    """Mean, standard deviation and skew of each channel, and how often it is at each of 8 levels: (B, C * 11)."""
    x = batch["input_values"]
    mean = x.mean(1, keepdim=True)
    centred = x - mean
    variance, third = centred.square().mean(1), centred.pow(3).mean(1)
    deviation = variance.sqrt()
    skew = third / deviation.clamp(min=1e-6).pow(3)
    # Inputs have about unit scale: levels between -2 and 2, the outermost ones open.
    level = ((x + 2) / 4 * _LEVELS).long().clamp(0, _LEVELS - 1)
    shares = F.one_hot(level, _LEVELS).float().mean(1).flatten(1)
    return torch.cat([mean[:, 0], deviation, skew, shares], 1).numpy()


def disc_distances(x: Tensor, side: int, radius: float) -> NDArray[np.float32]:
    """Pixels between the two white discs of Pathfinder's images x (B, side * side, 1): (B, 1).

    The discs are where a disc of their radius is whitest, and whitest again outside of that place.
    """
    discs = find_discs(x.reshape(-1, 1, side, side), radius)
    return torch.linalg.vector_norm((discs[:, 0] - discs[:, 1]).float(), dim=1)[:, None].numpy()


def find_discs(images: Tensor, radius: float) -> Tensor:
    """Rows and columns of the centres of the two whitest discs in images (B, 1, H, W): (B, 2, 2) int64."""
    size = images.shape[-1]
    reach = math.ceil(radius)
    axis = torch.arange(-reach, reach + 1)
    inside = axis[:, None].square() + axis.square() <= radius**2
    images = F.pad(images, (reach,) * 4, value=float(images.min()))
    whiteness = F.conv2d(images, inside.float()[None, None])[:, 0]
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centres = []
    for _ in range(2):
        best = whiteness.flatten(1).argmax(1)
        centre = torch.stack([best // size, best % size], 1)
        centres.append(centre)
        near = (y - centre[:, 0, None, None]).square() + (x - centre[:, 1, None, None]).square() <= (2 * radius) ** 2
        whiteness = whiteness.masked_fill(near, -torch.inf)
    return torch.stack(centres, 1)


def _binned(distances: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Distances as one of 16 bins, of which each has as many training rows: what depends on them need not be linear."""
    edges = np.quantile(distances["train"], np.linspace(0, 1, _DISTANCE_BINS + 1)[1:-1])
    bins = np.eye(_DISTANCE_BINS, dtype=np.float32)
    return {split: bins[np.searchsorted(edges, d[:, 0], side="right")] for split, d in distances.items()}


# --- Fits -------------------------------------------------------------------------------------------------------------


def _read(
    task: Any, rows: Any, kinds: Mapping[str, Features]
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    """Every kind of features of a split, (rows, N) each, and the labels (rows,)."""
    found: dict[str, list[NDArray[np.float32]]] = {kind: [] for kind in kinds}
    labels = []
    for batch in DataLoader(rows, _ROWS_AT_ONCE, collate_fn=task.collate):
        for kind, features in kinds.items():
            found[kind].append(features(batch))
        labels.append(batch["labels"].numpy())
    return {kind: np.concatenate(parts) for kind, parts in found.items()}, np.concatenate(labels)


def _fit(
    x: Mapping[str, NDArray[np.float32]], labels: Mapping[str, NDArray[np.int64]]
) -> tuple[dict[str, NDArray[np.int64]], float]:
    """Guesses of a logistic regression for every split, with the penalty that is best on the validation split."""
    linear, preprocessing = require("sklearn.linear_model", "lra"), require("sklearn.preprocessing", "lra")
    scale = preprocessing.StandardScaler().fit(x["train"])
    scaled = {split: scale.transform(of_split) for split, of_split in x.items()}
    best: tuple[float, Any, float] | None = None
    for strength in STRENGTHS:
        model = linear.LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(scaled["train"], labels["train"])
        accuracy = float((model.predict(scaled["validation"]) == labels["validation"]).mean())
        if best is None or accuracy > best[0]:
            best = accuracy, model, strength
    assert best is not None
    return {split: best[1].predict(of_split) for split, of_split in scaled.items()}, best[2]


def _baseline(
    features: str,
    dimensions: int,
    strength: float | None,
    guesses: Mapping[str, NDArray[np.int64]],
    labels: Mapping[str, NDArray[np.int64]],
    seconds: float,
) -> Baseline:
    right = {split: int((guesses[split] == labels[split]).sum()) for split in _SPLITS}
    rows = {split: len(labels[split]) for split in _SPLITS}
    low, high = wilson(right["test"], rows["test"])
    return Baseline(
        features=features,
        dimensions=dimensions,
        strength=strength,
        train_rows=rows["train"],
        validation_rows=rows["validation"],
        test_rows=rows["test"],
        train=right["train"] / rows["train"],
        validation=right["validation"] / rows["validation"],
        test=right["test"] / rows["test"],
        test_low=low,
        test_high=high,
        seconds=round(seconds, 2),
    )


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95% confidence interval of a share, `right` of `n`: Wilson 1927's, which is good near 0 and 1 too."""
    share, z2 = right / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return middle - half, middle + half
