"""Pathfinder of the Long Range Arena, generated: are the two discs at the ends of one dashed contour?

After Linsley et al. 2018 (arXiv:1805.08315) and Kim et al. 2020, ``drewlinsley/pathfinder``, with the settings of Tay
et al. 2021 (arXiv:2011.04006, ``lra_benchmarks/data/pathfinder.py``):

- two target contours of `contour_length` paddles start in the middle of the image, `seed_distance` apart, and grow in
  turn. A paddle that turns by an angle a follows with a probability ~ cos²(min(continuity |a|, π/2)). No paddle comes
  closer than `margin` pixels to what is there; when one finds no place in three tries, both contours begin anew;
- then distractors of a third of that length, as many as `distractor_paddles` allows, each at a random place with up to
  five tries. What finds no place is left out;
- one disc is at the start of a target contour, drawn by lot. Label 1: the other one is at the end of the same contour.
  Label 0: at the end of the other. Labels are drawn by lot, and apart from that images of both are made alike.

Where this deviates from the published generator, and why, is in docs/lra.md.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longconv.tasks.lra.blocks import blocks
from longconv.tasks.lra.paddles import N_SEEDS, disc, make_paddles
from longconv.tasks.lra.plans import Plans
from longconv.tasks.lra.random import Stream
from longconv.tasks.lra.settings import PathfinderConfig, pathfinder_config

_STREAM = 2  # tells the streams of this generator from those of others with the same seed


@dataclass(frozen=True)
class Scenes:
    """Images and what is in them.

    images (N, size, size) uint8. labels (N,) uint8, 1 for discs on one contour.
    markers (N, 2, 2) int64: y, x of both discs, first the one at a start.
    lines (N, P, 4) float32: y, x of both ends of each paddle, target contours first.
    contours (N, P) int8: which contour a paddle belongs to, 0 and 1 are the targets, -1 for a paddle that is not there.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    markers: NDArray[np.int64]
    lines: NDArray[np.float32]
    contours: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> "Scenes":
        return Scenes(self.images[rows], self.labels[rows], self.markers[rows], self.lines[rows], self.contours[rows])


def generate(n: int, seed: int = 0, *, config: PathfinderConfig | None = None, workers: int | None = None) -> Scenes:
    """`n` images. They depend on `seed` and `config`; the first of them are the same for every `n`.

    config: default 32 pixels, hard. workers: threads, default one per core; the result is the same, bit for bit, for
    any number of them.

    Raises ValueError for a negative `n` or `seed`, and if `config` leaves no room for two contours.
    """
    parts = list(generate_parts(n, seed, config=config, workers=workers))
    if not parts:
        parts = [_make_block(config or pathfinder_config(), seed, 0)[:0]]
    return Scenes(*(np.concatenate([getattr(part, name) for part in parts]) for name in Scenes.__annotations__))


def generate_parts(
    n: int, seed: int = 0, *, config: PathfinderConfig | None = None, workers: int | None = None
) -> Iterator[Scenes]:
    """What `generate` returns, in small parts, each as soon as it is there."""
    config = config or pathfinder_config()
    if n < 0:
        raise ValueError(f"n must be 0 or more, got {n}")
    Stream(seed)  # a wrong seed is an error now, not in a thread
    done = 0
    # Its threads end with the block, also if nobody wants the rest.
    with contextlib.closing(blocks(lambda block: _make_block(config, seed, block), workers)) as made:
        while done < n:
            part = next(made)[: n - done]
            done += len(part)
            yield part


def _make_block(config: PathfinderConfig, seed: int, block: int) -> Scenes:
    """The images of a block; how many depends on their size alone."""
    stream = Stream(seed, _STREAM, block)
    n = min(max((1 << 18) // config.size**2, 8), 256)
    margins = stream.below(len(config.margins), n)
    parts, order = [], []
    for which, margin in enumerate(config.margins):
        rows = np.flatnonzero(margins == which)
        if len(rows):
            parts.append(_make_scenes(config, margin, stream, len(rows)))
            order.append(rows)
    back = np.argsort(np.concatenate(order))
    return Scenes(*(np.concatenate([getattr(part, name) for part in parts])[back] for name in Scenes.__annotations__))


def _make_scenes(config: PathfinderConfig, margin: int, stream: Stream, n: int) -> Scenes:
    paddles = make_paddles(config.paddle_length, config.paddle_thickness, margin, config.continuity)
    plans = Plans(config, paddles)
    taken, anchors, kinds = plans.targets(stream, n)
    more_anchors, more_kinds = plans.distractors(stream, taken)

    row = np.arange(n)
    labels = stream.below(2, n)
    first = stream.below(2, n)
    last = np.where(labels == 1, first, 1 - first)
    start = anchors[row, first, 0]
    end = anchors[row, last, -1] + plans.ends[kinds[row, last, -1] - N_SEEDS]

    anchors = np.concatenate([anchors.reshape(n, -1), more_anchors.reshape(n, -1)], axis=1)
    kinds = np.concatenate([kinds.reshape(n, -1), more_kinds.reshape(n, -1)], axis=1)
    lengths = [config.contour_length] * 2 + [config.distractor_length] * config.n_distractors
    contours = np.where(anchors < 0, -1, np.repeat(np.arange(len(lengths)), lengths)).astype(np.int8)
    lines = paddles.lines[kinds] + np.tile(plans.yx(anchors), 2).astype(np.float32)
    lines[anchors < 0] = 0
    return Scenes(
        images=_draw(config, plans, anchors, kinds, np.stack([start, end], axis=1)),
        labels=labels.astype(np.uint8),
        markers=plans.yx(np.stack([start, end], axis=1)),
        lines=lines,
        contours=contours,
    )


def _draw(
    config: PathfinderConfig,
    plans: Plans,
    anchors: NDArray[np.int64],
    kinds: NDArray[np.int64],
    markers: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """Images (n, size, size): strokes in grey, discs in white, the brighter one where they meet."""
    n = len(anchors)
    images = np.zeros((n, plans.n_pixels), np.uint8)
    flat = images.reshape(-1)
    shifts = plans.difference(plans.paddles.ink)
    values = np.round(np.minimum(plans.paddles.ink_value * config.contrast, 255)).astype(np.uint8)
    for column in range(anchors.shape[1]):
        rows = np.flatnonzero(anchors[:, column] >= 0)
        kind = kinds[rows, column]
        pixels = (rows * plans.n_pixels + anchors[rows, column])[:, None] + shifts[kind]
        flat[pixels] = np.maximum(flat[pixels], values[kind])
    disc_yx, disc_value = disc(config.marker_radius)
    for marker in markers.T:
        pixels = (np.arange(n) * plans.n_pixels + marker)[:, None] + plans.difference(disc_yx)
        flat[pixels] = np.maximum(flat[pixels], disc_value)
    inside = slice(plans.rim, plans.rim + config.size)
    return np.ascontiguousarray(images.reshape(n, plans.side, plans.side)[:, inside, inside])
