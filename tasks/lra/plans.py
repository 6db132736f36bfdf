"""Pathfinder's plan of an image: which pixels are taken, and putting paddles on it. Many images at once."""

import numpy as np
from numpy.typing import NDArray

from longconv.tasks.lra.paddles import ALL, LAST, N_SEEDS, NEAR, TAKEN, TOUCHED, Paddles
from longconv.tasks.lra.random import Stream
from longconv.tasks.lra.settings import PathfinderConfig

_TRIES = 3  # for a paddle
_CONTOUR_TRIES = 5  # for a distractor
_CENTRAL_PLACES = 16  # looked at for the first contour's start
_PLACES = 64  # looked at in one go for the start of a distractor
_PLACES_AT_MOST = 512  # if none of them is free, less than 1 in 100 is: the published generator stops there too


class Plans:
    """Plans of images with the same `paddles`: bits of `longconv.tasks.lra.paddles`, a row of pixels for each image.

    An image has a rim as wide as a paddle's surroundings, so that every paddle with its anchor in the image can be
    looked up. A pixel is a number in the row of `side` * `side` pixels.
    """

    def __init__(self, config: PathfinderConfig, paddles: Paddles) -> None:
        self.config, self.paddles = config, paddles
        self.rim = paddles.radius
        self.side = config.size + 2 * self.rim
        self.n_pixels = self.side**2
        self.next_pivot = self.difference(paddles.next_pivot)
        self.ends = self.difference(paddles.ends)
        self.body = self.difference(paddles.body)
        self.core = self.difference(paddles.core)
        self.zone = self.difference(paddles.zone)

    def pixel(self, yx: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the pixel y, x of the image: (..., 2) to (...)."""
        return self.difference(yx + self.rim)

    def difference(self, yx: NDArray[np.int64]) -> NDArray[np.int64]:
        """A difference of y, x as a difference of numbers: (..., 2) to (...)."""
        return yx[..., 0] * self.side + yx[..., 1]

    def yx(self, pixel: NDArray[np.int64]) -> NDArray[np.int64]:
        """y, x in the image of a pixel: (...) to (..., 2)."""
        return np.stack(np.divmod(pixel, self.side), axis=-1) - self.rim

    def blank(self, n: int) -> NDArray[np.uint8]:
        """Plans of `n` images (n, side * side) without paddles; the rim and the padding are taken."""
        plan = np.full((self.side, self.side), ALL, np.uint8)
        edge = self.rim + self.config.padding
        plan[edge:-edge, edge:-edge] = NEAR
        edge += self.paddles.margin
        plan[edge:-edge, edge:-edge] = 0
        return np.repeat(plan.reshape(1, -1), n, axis=0)

    def targets(self, stream: Stream, n: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """`n` plans with two contours each, their anchors (pixels) and table rows, both (n, 2, contour_length).

        Raises ValueError if there is hardly ever room for them.
        """
        attempts = min(max((1 << 21) // self.n_pixels, 16), 1024)
        found: list[tuple[NDArray, ...]] = []
        for done in range(1000):
            if sum(len(part[0]) for part in found) >= n:
                break
            if done == 200 and not found:
                raise ValueError(
                    f"there is no room for two contours in any of {attempts * done} attempts: {self.config}"
                )
            found.append(self._attempt(stream, attempts))
            if not len(found[-1][0]):
                found.pop()
        taken, anchors, kinds = (np.concatenate(parts)[:n] for parts in zip(*found, strict=True))
        return taken, anchors, kinds

    def _attempt(self, stream: Stream, n: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Grow two contours in `n` images; those images in which there was room for them."""
        length = self.config.contour_length
        kinds = np.zeros((n, 2, length), np.int64)
        anchors = np.zeros((n, 2, length), np.int64)
        kinds[:, :, 0] = stream.below(N_SEEDS, (n, 2))
        first, found = self._central(stream, kinds[:, 0, 0])
        angle = np.deg2rad(stream.below(360, n))
        away = np.round(self.config.seed_distance * np.stack([np.sin(angle), np.cos(angle)], axis=-1), 9)
        anchors[:, 0, 0] = self.pixel(first)
        anchors[:, 1, 0] = self.pixel(first + np.floor(away + 0.5).astype(np.int64))

        taken = self.blank(n)
        rows = np.flatnonzero(found)
        for contour in range(2):
            free = ~self._collides(
                taken, rows, anchors[rows, contour, 0], kinds[rows, contour, 0], self._others(contour)
            )
            rows = rows[free]
            self._stamp_last(taken, rows, anchors[rows, contour, 0], kinds[rows, contour, 0], contour)
        for step in range(1, length):
            for contour in range(2):
                anchor, kind = anchors[rows, contour, step - 1], kinds[rows, contour, step - 1]
                pivot = anchor + self.next_pivot[kind]
                following, fits = self._extend(stream, taken, rows, pivot, kind, self._others(contour))
                rows = rows[fits]
                self._stamp(taken, rows, anchor[fits], kind[fits])
                anchors[rows, contour, step], kinds[rows, contour, step] = pivot[fits], following[fits]
                self._stamp_last(taken, rows, pivot[fits], following[fits], contour)
        for contour in range(2):
            self._stamp(taken, rows, anchors[rows, contour, -1], kinds[rows, contour, -1])
        return taken[rows], anchors[rows], kinds[rows]

    def distractors(self, stream: Stream, taken: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Add distractors to the plans `taken`; their anchors and table rows (n, n_distractors, distractor_length).

        Anchors of a distractor that found no place are -1.
        """
        shape = (len(taken), self.config.n_distractors, self.config.distractor_length)
        anchors, kinds = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
        for which in range(shape[1]):
            rows = np.arange(len(taken))
            for _ in range(_CONTOUR_TRIES):
                anchor, kind, fits = self._distractor(stream, taken, rows)
                anchors[rows[fits], which], kinds[rows[fits], which] = anchor[fits], kind[fits]
                rows = rows[~fits]
        return anchors, kinds

    def _distractor(
        self, stream: Stream, taken: NDArray[np.uint8], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """One more distractor in each of `rows`: anchors and table rows (rows, length), and whether there was room."""
        length = self.config.distractor_length
        anchors, kinds = np.zeros((2, len(rows), length), np.int64)
        kinds[:, 0] = stream.below(N_SEEDS, len(rows))
        anchors[:, 0], fits = self._free_place(stream, taken, rows, kinds[:, 0])
        before = taken[rows]
        here = np.flatnonzero(fits)
        for step in range(1, length):
            anchor, kind = anchors[here, step - 1], kinds[here, step - 1]
            pivot = anchor + self.next_pivot[kind]
            following, found = self._extend(stream, taken, rows[here], pivot, kind, TAKEN)
            here = here[found]
            self._stamp(taken, rows[here], anchor[found], kind[found])
            anchors[here, step], kinds[here, step] = pivot[found], following[found]
        self._stamp(taken, rows[here], anchors[here, -1], kinds[here, -1])
        fits = np.zeros(len(rows), bool)
        fits[here] = True
        taken[rows[~fits]] = before[~fits]
        return anchors, kinds, fits

    def _central(self, stream: Stream, kinds: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Starts y, x for paddles that stay `2 seed_distance` away from the border, and whether one was found."""
        low = 2 * self.config.seed_distance
        high = self.config.size - low
        places = low + stream.below(high - low, (len(kinds), _CENTRAL_PLACES, 2))
        body = self.paddles.body[:N_SEEDS]
        inside = (places + body.min(axis=1)[kinds, None] >= low) & (places + body.max(axis=1)[kinds, None] < high)
        fits = inside.all(axis=-1)
        return places[np.arange(len(kinds)), fits.argmax(axis=1)], fits.any(axis=1)

    def _free_place(
        self, stream: Stream, taken: NDArray[np.uint8], rows: NDArray[np.int64], kinds: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """A pixel for each of `rows`, uniform among those where its first paddle has room, and whether there is one."""
        place, found = np.zeros(len(rows), np.int64), np.zeros(len(rows), bool)
        for _ in range(_PLACES_AT_MOST // _PLACES):
            open_ = np.flatnonzero(~found)
            if not len(open_):
                break
            places = self.pixel(stream.below(self.config.size, (len(open_), _PLACES, 2)))
            pixels = (rows[open_, None] * self.n_pixels + places)[..., None] + self.core[kinds[open_], None]
            free = ~(taken.reshape(-1)[pixels] & TOUCHED).any(axis=-1)
            place[open_] = places[np.arange(len(open_)), free.argmax(axis=1)]
            found[open_] = free.any(axis=1)
        return place, found

    def _extend(
        self,
        stream: Stream,
        taken: NDArray[np.uint8],
        rows: NDArray[np.int64],
        pivots: NDArray[np.int64],
        kinds: NDArray[np.int64],
        forbidden: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Table rows of paddles that follow those of `kinds` at `pivots`, and whether there is one."""
        ends = taken.reshape(-1)[(rows * self.n_pixels + pivots)[:, None] + self.ends]
        sums = np.cumsum(np.where(ends & NEAR, 0, self.paddles.weights[kinds]), axis=1)
        drawn = stream.below(sums[:, -1:], (len(rows), _TRIES))
        choices = N_SEEDS + (sums[:, None, :] <= drawn[:, :, None]).sum(axis=-1)
        blocked = sums[:, -1] == 0
        choices[blocked] = N_SEEDS
        free = ~self._collides(taken, rows[:, None], pivots[:, None], choices, forbidden)
        return choices[np.arange(len(rows)), free.argmax(axis=1)], free.any(axis=1) & ~blocked

    def _collides(
        self,
        taken: NDArray[np.uint8],
        rows: NDArray[np.int64],
        anchors: NDArray[np.int64],
        kinds: NDArray[np.int64],
        bits: int,
    ) -> NDArray[np.bool_]:
        """Whether a paddle would take a pixel that has one of `bits`."""
        pixels = taken.reshape(-1)[(rows * self.n_pixels + anchors)[..., None] + self.body[kinds]]
        return (pixels & bits).any(axis=-1)

    def _stamp(
        self, taken: NDArray[np.uint8], rows: NDArray[np.int64], anchors: NDArray[np.int64], kinds: NDArray[np.int64]
    ) -> None:
        taken.reshape(-1)[(rows * self.n_pixels + anchors)[:, None] + self.zone[kinds]] |= self.paddles.zone_bits[kinds]

    def _stamp_last(
        self,
        taken: NDArray[np.uint8],
        rows: NDArray[np.int64],
        anchors: NDArray[np.int64],
        kinds: NDArray[np.int64],
        contour: int,
    ) -> None:
        """A contour's last paddle is in the way of others only: its next paddle begins right there."""
        taken.reshape(-1)[(rows * self.n_pixels + anchors)[:, None] + self.body[kinds]] |= np.uint8(LAST[contour])

    @staticmethod
    def _others(contour: int) -> int:
        """What is in the way of a target contour."""
        return TAKEN | LAST[1 - contour]
