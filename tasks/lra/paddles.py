"""The paddles of Pathfinder: where one may follow another, which pixels it takes and how bright it makes them.

All that depends on angles is in tables, one row for each direction a paddle can have: 360 for the first of a contour
and, for the others, one for each pixel of the circle on which its far end lies. Weights and brightness are rounded to
integers here, so that what is made from the tables is the same on every machine.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Bits of a pixel in the plan of an image.
TAKEN = 1  # all of it is within `margin` of a paddle: no other paddle may take it
TOUCHED = 2  # more than 30% of it is: no contour may begin there
NEAR = 4  # within twice `margin`: no paddle may end there
LAST = (8, 16)  # taken by the last paddle of the first or second contour, whose next paddle may take it too
ALL = TAKEN | TOUCHED | NEAR

N_SEEDS = 360
_WEIGHT = 1 << 16
_DECIMALS = 9


@dataclass(frozen=True)
class Paddles:
    """Tables for one paddle length, thickness and margin, and one continuity.

    Row k < 360 is the first paddle of a contour: its direction is k - 180 degrees and its anchor is where it starts.
    Row 360 + j is a later one: its anchor is the pivot, from which it is `margin` away, and its far end is the pixel
    ``ends[j]`` of the circle of radius length + margin around the pivot.

    margin: as given. radius: no pixel of a paddle's surroundings is further from its anchor, in y or in x.
    ends (K, 2): pixels y, x of the circle. lines (360 + K, 4): y, x of both ends of the stroke, float32.
    next_pivot (360 + K, 2): where the next paddle's pivot is. All relative to the anchor.
    weights (360 + K, K): how probable it is that the paddle of row 360 + j follows, in 1 / 65536.
    body (360 + K, n, 2): pixels that the paddle takes. core (360, c, 2): those of a first paddle that must be untouched
    when a distractor begins with it. zone (360 + K, m, 2), zone_bits (360 + K, m): pixels with bits.
    ink (360 + K, p, 2), ink_value (360 + K, p): pixels of the stroke, 255 where it covers the whole pixel.
    Rows with fewer pixels than others name one of them repeatedly.
    """

    margin: int
    radius: int
    ends: NDArray[np.int64]
    lines: NDArray[np.float32]
    next_pivot: NDArray[np.int64]
    weights: NDArray[np.int64]
    body: NDArray[np.int64]
    core: NDArray[np.int64]
    zone: NDArray[np.int64]
    zone_bits: NDArray[np.uint8]
    ink: NDArray[np.int64]
    ink_value: NDArray[np.uint8]


@lru_cache(maxsize=16)
def make_paddles(length: int, thickness: float, margin: int, continuity: float) -> Paddles:
    """The tables. A paddle that turns by an angle a follows with a weight of cos²(min(continuity |a|, π/2))."""
    ends = circle(length + margin)
    seeds = np.deg2rad(np.arange(N_SEEDS) - 180.0)
    angles = np.concatenate([seeds, np.arctan2(ends[:, 0], ends[:, 1])])
    directions = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    # Processors differ in the last bit, and many a distance is a whole or a half number: hence all the rounding below.
    directions = np.round(directions, _DECIMALS)

    far = np.concatenate([length * directions[:N_SEEDS], ends])
    lines = np.concatenate([far - length * directions, far], axis=1)
    # A first paddle's own pivot lies behind its start, counted from its far end.
    pivots = _ceil(length * directions) + _ceil(-(length + margin) * directions)
    pivots[N_SEEDS:] = 0

    turn = np.abs(angles[:, None] - angles[None, N_SEEDS:])
    turn = np.minimum(turn, 2 * np.pi - turn)
    weights = np.cos(np.minimum(continuity * turn, np.pi / 2)) ** 2

    radius = int(np.ceil(length + 3 * margin + thickness)) + 2
    pixels = np.moveaxis(np.mgrid[-radius : radius + 1, -radius : radius + 1], 0, -1).reshape(-1, 2)
    body, core, zone, bits, ink, value = [], [], [], [], [], []
    for line, direction in zip(lines, directions, strict=True):
        offset = pixels - line[:2]
        along = np.round(offset[:, 0] * direction[0] + offset[:, 1] * direction[1], _DECIMALS)
        across = np.round(offset[:, 0] * direction[1] - offset[:, 1] * direction[0], _DECIMALS)
        outside = np.maximum(np.maximum(-along, along - length), 0), np.maximum(np.abs(across) - thickness / 2, 0)
        distance = np.round(np.hypot(*outside), _DECIMALS)
        # A pixel's centre at distance d: the part of it within m is about m - d + 1/2.
        bit = TAKEN * (distance <= margin - 0.5) + TOUCHED * (distance < margin + 0.2) + NEAR * (distance <= 2 * margin)
        body.append(np.flatnonzero(bit & TAKEN))
        core.append(np.flatnonzero(distance <= margin / 3))
        zone.append(np.flatnonzero(bit))
        bits.append(bit[zone[-1]].astype(np.uint8))
        # Coverage by a stroke, with a pixel turned like it.
        covered = _overlap(along - length / 2, length) * _overlap(across, thickness)
        brightness = np.round(np.round(255 * covered, _DECIMALS)).astype(np.uint8)
        ink.append(np.flatnonzero(brightness))
        value.append(brightness[ink[-1]])
    return Paddles(
        margin=margin,
        radius=radius,
        ends=ends,
        lines=lines.astype(np.float32),
        next_pivot=pivots + _ceil((length + 2 * margin) * directions),
        weights=np.round(np.round(weights * _WEIGHT, _DECIMALS)).astype(np.int64),
        body=pixels[_rectangular(body)],
        core=pixels[_rectangular(core[:N_SEEDS])],
        zone=pixels[_rectangular(zone)],
        zone_bits=_rectangular(bits),
        ink=pixels[_rectangular(ink)],
        ink_value=_rectangular(value),
    )


def circle(radius: int) -> NDArray[np.int64]:
    """Pixels y, x (K, 2) of a circle around (0, 0): those in which the points lie that divide it into arcs of a pixel.

    They are half a pixel up and to the left of the circle on average, as in the published generator (docs/lra.md).
    """
    angles = np.deg2rad(np.arange(0, 360, 360 / (2 * np.pi * radius)))
    return np.unique(_floor(radius * np.stack([np.sin(angles), np.cos(angles)], axis=1)), axis=0)


def disc(radius: float) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Pixels y, x of a disc around (0, 0) (n, 2), and how bright: 255 inside, less at the rim."""
    reach = int(np.ceil(radius)) + 1
    pixels = np.moveaxis(np.mgrid[-reach : reach + 1, -reach : reach + 1], 0, -1).reshape(-1, 2)
    value = np.round(np.round(255 * np.clip(radius - np.hypot(*pixels.T) + 0.5, 0, 1), _DECIMALS)).astype(np.uint8)
    return pixels[value > 0], value[value > 0]


def _overlap(centre: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """How much of the unit interval around `centre` is in the one of `width` around 0."""
    return np.maximum(np.minimum(centre + 0.5, width / 2) - np.maximum(centre - 0.5, -width / 2), 0)


def _floor(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor(np.round(values, _DECIMALS)).astype(np.int64)


def _ceil(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return -_floor(-values)


def _rectangular(rows: list[NDArray]) -> NDArray:
    """Rows of unequal length as one array; the shorter ones repeat their first element."""
    width = max(map(len, rows))
    return np.stack([np.concatenate([row, np.repeat(row[:1], width - len(row))]) for row in rows])
