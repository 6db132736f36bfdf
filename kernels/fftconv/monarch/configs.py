"""Which tile a convolution takes: a choice by what the device has, never by its name."""

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

import torch

KB = 1024
ALIGN = 16  # samples: what starts at a multiple is loaded in vectors


@dataclass(frozen=True)
class Tile:
    """R rows of N = N1 N2 points each, and the warps that work on them.

    Attributes:
        shared: bytes of shared memory that the kernels need with it, at most (the tests compile them and see).
        one_pass: whether the kernel of all gradients at once has registers enough; else it is run for one at a time.
    """

    N1: int
    R: int
    N2: int
    warps: int
    shared: int
    one_pass: bool = True

    @property
    def N(self) -> int:
        """Points of a transform."""
        return self.N1 * self.N2

    @property
    def name(self) -> str:
        """Its sizes and warps, e.g. "64x2x32 w4"."""
        return f"{self.N1}x{self.R}x{self.N2} w{self.warps}"


# For each element size in bytes, from small to large transforms; of one size the first that fits is taken. A thread has
# registers for about sixteen samples: 2,048 for four warps. What each compiles to is in docs/kernels.md.
TILES = {
    2: (
        Tile(16, 8, 16, 4, 16 * KB),
        Tile(16, 4, 32, 4, 24 * KB),
        Tile(32, 2, 32, 4, 32 * KB),
        Tile(64, 1, 32, 4, 56 * KB),
        Tile(128, 1, 32, 8, 150 * KB),  # 128 rows for two groups of four warps, where there is room
        Tile(32, 1, 128, 8, 98 * KB, one_pass=False),
        Tile(64, 1, 64, 4, 64 * KB, one_pass=False),
        Tile(128, 1, 64, 8, 180 * KB, one_pass=False),
    ),
    4: (
        Tile(16, 4, 16, 4, 24 * KB),
        Tile(16, 2, 32, 4, 40 * KB),
        Tile(32, 1, 32, 8, 64 * KB, one_pass=False),
    ),
}


# For the inner transforms of longer ones, which are complex on both sides; the small ones for sparse spectra only.
INNER_TILES = {
    2: (
        Tile(16, 8, 16, 4, 24 * KB),
        Tile(16, 4, 32, 4, 24 * KB),
        Tile(32, 2, 32, 4, 32 * KB),
        Tile(64, 1, 32, 4, 200 * KB),
        Tile(64, 1, 32, 4, 56 * KB, one_pass=False),  # without wgmma, matrices take registers
        Tile(128, 1, 32, 8, 200 * KB),
    ),
    4: (
        Tile(16, 4, 16, 4, 24 * KB),
        Tile(16, 2, 32, 4, 40 * KB),
        Tile(32, 1, 32, 8, 64 * KB, one_pass=False),
    ),
}


# For rows of P tiles that stay on the chip: the tile and P. A thread keeps what has been summed of a row besides.
NESTED = {
    2: (
        (Tile(64, 1, 32, 4, 40 * KB), 4),
        (Tile(64, 1, 32, 8, 72 * KB), 8),
        (Tile(64, 1, 32, 4, 40 * KB), 8),  # AMD's threads have 512 registers
        (Tile(64, 1, 32, 8, 96 * KB), 16),
    ),
    4: (
        (Tile(16, 1, 32, 4, 32 * KB), 4),
        (Tile(16, 1, 32, 4, 32 * KB), 8),
        (Tile(16, 1, 32, 4, 32 * KB), 16),
    ),
}


def tiles(dtype: torch.dtype, shared_limit: int, table: dict[int, tuple[Tile, ...]] = TILES) -> tuple[Tile, ...]:
    """The tiles that fit a device, one for each size of transform, by size."""
    fitting: dict[int, Tile] = {}
    for tile in table[dtype.itemsize]:
        if tile.shared <= shared_limit:
            fitting.setdefault(tile.N, tile)
    return tuple(fitting[n] for n in sorted(fitting))


@dataclass(frozen=True)
class Frames:
    """Rows cut into frames that one tile transforms, for a filter with lags -K' ... K - 1; see `triton_fused.py`.

    `hop` outputs a frame, of which the first is its sample `left` (`right` for the filter reversed in time). If there
    are several pieces, each has `hop` lags, the first from lag `shift` on.
    """

    tile: Tile
    hop: int
    left: int
    right: int
    count: int
    pieces: int = 1
    shift: int = 0

    @property
    def name(self) -> str:
        """What kind of cut it is, without the numbers that follow from the length of a row."""
        return f"{'whole' if self.whole else 'frames'} {self.tile.name}"

    @property
    def whole(self) -> bool:
        """Whether a row is one frame."""
        return self.count == 1 and self.hop == self.tile.N


@dataclass(frozen=True)
class Nested:
    """Rows as P tiles in registers, P a power of two; see `triton_nested.py`."""

    tile: Tile
    P: int

    @property
    def name(self) -> str:
        """What kind of cut it is."""
        return f"nested {self.P} x {self.tile.name}"


@dataclass(frozen=True)
class Outer:
    """Rows as P time rows of one tile each; see `triton_long.py`."""

    tile: Tile
    P: int

    @property
    def name(self) -> str:
        """What kind of cut it is, without the numbers that follow from the length of a row."""
        return f"outer {self.tile.name}"


def whole_row(tile: Tile) -> Frames:
    """One frame."""
    return Frames(tile, tile.N, 0, 0, 1)


def frames(tile: Tile, L: int, K: int, K_reverse: int) -> Frames:
    """Frames of a row of L samples for lags -K_reverse ... K - 1."""
    left, right = _up(K - 1), _up(K_reverse)
    if left + right <= tile.N // 2:
        hop = tile.N - left - right
        return Frames(tile, hop, left, right, -(-L // hop))
    hop = tile.N // 2
    return Frames(tile, hop, hop, 0, -(-L // hop), -(-(right + K) // hop), -right)


def _time_rows(L: int, tile: Tile) -> int:
    """Not a power of two, so that lengths between those are not padded to the next; above 16 in blocks of the units."""
    P = -(-L // tile.N)
    return P if P <= 16 else _up(P)


def _up(n: int) -> int:
    return -(-n // ALIGN) * ALIGN


# What a convolution costs, in operations of the matrix units per sample (at the rate they reach, some 500 Tflop/s on an
# H100): reading and writing gated half-precision rows once, or three times with spectra between the kernels of a long
# one; and the preparation of a filter's point, a dozen passes in float32.
ONE_PASS, THREE_PASSES, FILTER_POINT = 1000, 2800, 8000
# Of each tile that a nested outer DFT sums over: eight operations of the ordinary units, 33 T a second.
NESTED_TILE = 130

Way = Frames | Nested | Outer


def _cost(cut: Way, rows: int) -> float:
    """Of one row, when the filter is used for `rows` of them."""
    N1, N2 = cut.tile.N1, cut.tile.N2
    if isinstance(cut, Nested):
        n = cut.P * cut.tile.N
        return n * (NESTED_TILE * cut.P + 16 * (N1 + N2) + ONE_PASS + FILTER_POINT / rows)
    if isinstance(cut, Outer):
        n = cut.P * cut.tile.N
        return n * (8 * cut.P + 16 * (N1 + N2) + THREE_PASSES + FILTER_POINT / rows)
    transform = cut.tile.N * (8 * N1 + 16 * N2 + ONE_PASS)
    return cut.count * (1 + cut.pieces) / 2 * transform + cut.pieces * cut.tile.N * FILTER_POINT / rows


@lru_cache(maxsize=1024)
def ways(rows: int, L: int, K: int, K_reverse: int, dtype: torch.dtype, shared_limit: int) -> tuple[Way, ...]:
    """How `rows` rows of L samples can be convolved with each filter, of K and K_reverse <= L lags; the cheapest first.

    Behind those with the preferred tiles come those with other tiles of the first one's size, for a trial.
    """
    fitting = tiles(dtype, shared_limit)
    found: list[Way] = []
    found += [whole_row(tile) for tile in fitting if tile.N >= L][:1]
    found += [frames(tile, L, K, K_reverse) for tile in fitting if K + K_reverse <= 4 * tile.N and tile.N < L]
    nested = [Nested(*spec) for spec in NESTED[dtype.itemsize] if spec[0].shared <= shared_limit]
    found += [way for way in nested if way.P * way.tile.N // 2 < L <= way.P * way.tile.N][:1]
    if L > fitting[-1].N:
        found += [Outer(t, _time_rows(L, t)) for t in tiles(dtype, shared_limit, INNER_TILES) if t.N >= 1024]
    found.sort(key=lambda way: _cost(way, rows))
    best = found[0]
    if isinstance(best, Nested):
        return tuple(found)
    table = INNER_TILES if isinstance(best, Outer) else TILES
    others = [tile for tile in table[dtype.itemsize] if tile.N == best.tile.N and tile.shared <= shared_limit]
    # By name: a tile may be in the table twice, for devices with different room.
    return (*found, *(dataclasses.replace(best, tile=tile) for tile in others if tile.name != best.tile.name))
