"""Lengths and tables of the transforms in transform.h, and how a row is cut into frames of such lengths.

Angles are in turns. A block at angle a is a polynomial modulo z^m - exp(2 pi i a); a whole row is at -1/4.
"""

import ctypes
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...native import aligned

MAX_LEVELS = 16

# Cost of a frame of n points: n (log2 n + OTHER), and more for what does not fit the first and the second cache.
# Fitted to timings of one thread: 1.6 ns a point at 4,096 points, 2.2 at 262,144, 2.9 at 1,048,576.
OTHER = 6.0
OUTGROWN = {2**13: 1.07, 2**15: 1.1, 2**19: 1.2}


class PlanStruct(ctypes.Structure):
    """`Plan` of transform.h."""

    _fields_ = (
        ("n", ctypes.c_int64),
        ("levels", ctypes.c_int64),
        ("radix", ctypes.c_int64 * MAX_LEVELS),
        ("twists", ctypes.c_void_p * (MAX_LEVELS + 1)),
        ("leaves", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Plan:
    """A transform of n points: `struct` is for C, and points into `tables`."""

    n: int
    struct: PlanStruct
    tables: tuple[Tensor, ...]


@lru_cache(maxsize=16)
def make_plan(n: int, lanes: int) -> Plan:
    """Tables for n points (one of `lengths`) in vectors of `lanes` numbers."""
    radices = factorise(n // (4 * lanes))
    struct, tables = PlanStruct(n=n, levels=len(radices)), []
    angle = torch.tensor([-0.25], dtype=torch.float64, device="cpu")  # of each block, level by level
    for level, R in enumerate((*radices, 4)):
        if level < len(radices):
            struct.radix[level] = R
        tables.append(_unit_circle(angle[:, None] * _whole(1, R) / R))
        struct.twists[level] = tables[-1].data_ptr()
        angle = ((angle[:, None] + _whole(0, R)) / R).flatten()
    tables.append(_aligned(_leaves(angle.view(-1, 4), lanes)))
    struct.leaves = tables[-1].data_ptr()
    return Plan(n, struct, tuple(tables))


def factorise(m: int) -> list[int]:
    """Radices of the passes whose product is m = 2^a 3^b 5^c, in their order."""
    odd = []
    for p in (5, 3):
        while m % p == 0:
            odd.append(p)
            m //= p
    a = m.bit_length() - 1
    if m != 1 << a:
        raise ValueError(f"no radices for {m}")
    eights, rest = divmod(a, 3)
    twos = {0: [], 1: [4, 4] if eights else [2], 2: [4]}[rest]
    return [*odd, *[8] * (eights - (rest == 1 and eights > 0)), *twos]


@lru_cache(maxsize=4)
def lengths(lanes: int) -> tuple[int, ...]:
    """Lengths there are transforms of, ascending: multiples of a leaf by 2^a 3^b 5^c with b <= 2, c <= 1."""
    leaf = 4 * lanes
    return tuple(sorted(leaf * odd << a for odd in (1, 3, 5, 9, 15) for a in range(27)))


@dataclass(frozen=True)
class Cut:
    """How rows of L samples are cut for a filter that reaches `past` samples back and `future` ahead.

    Frame j holds 2n samples from j * step - origin on and gives `step` results.
    """

    past: int
    future: int
    n: int
    origin: int
    step: int
    frames: int


@lru_cache(maxsize=4096)
def cut_rows(L: int, past: int, future: int, lanes: int) -> Cut:
    """The cheapest way: a row whole, or frames of overlap-save. `past` and `future` are less than L."""

    def shortest(samples: int) -> int:
        return next(n for n in lengths(lanes) if 2 * n >= samples)

    # Whole: what wraps around 2n samples may fall on any of them but the first L.
    best = Cut(past, future, shortest(L + max(past, future)), 0, L, 1)
    for n in lengths(lanes):
        step = 2 * n - past - future
        if step >= L + past + future or n >= best.n:
            break
        if step > 0:
            cut = Cut(past, future, n, past, step, -(-L // step))
            best = min(best, cut, key=cost)
    return best


def cost(cut: Cut) -> float:
    """Cost of a row, in no unit."""
    outgrown = math.prod(factor for n, factor in OUTGROWN.items() if cut.n > n)
    return cut.frames * cut.n * (math.log2(cut.n) + OTHER) * outgrown


def _leaves(angle: Tensor, lanes: int) -> Tensor:
    """Twists of the leaves' second and last steps; `angle` (leaves, 4): of the four blocks after the first step."""
    if lanes == 16:  # block r fills group r of the vectors, and leaves blocks (r, s), s < 4, in lanes 4 r + s
        groups = _rows(angle.repeat_interleave(4, 1) / 4)
        last = ((angle[..., None] + _whole(0, 4)) / 4).flatten(1)
    elif lanes == 8:  # blocks 0 and 1 fill the groups of the first two vectors, 2 and 3 those of the others
        groups = _rows(angle.repeat_interleave(4, 1).view(-1, 2, 8) / 2)
        halves = (angle[..., None] + _whole(0, 2)) / 2  # block (r, s) ends up in lane 2 (r // 2) + s of group r % 2
        last = halves.view(-1, 2, 2, 2).transpose(1, 2).flatten(1)
    else:
        groups, last = angle.new_empty(len(angle), 0), angle
    return torch.cat([groups.flatten(1), _rows(last / 4).flatten(1)], 1)


def _rows(angle: Tensor) -> Tensor:
    """Cosines of angles (..., lanes), then sines: (..., 2, lanes)."""
    return _unit_circle(angle).transpose(-1, -2)


def _whole(first: int, end: int) -> Tensor:
    """Whole numbers, on the CPU whatever the default device is."""
    return torch.arange(first, end, dtype=torch.float64, device="cpu")


def _unit_circle(turns: Tensor) -> Tensor:
    """Cosines and sines, computed in float64: (..., 2)."""
    radians = 2 * math.pi * turns
    return torch.stack([radians.cos(), radians.sin()], -1).float()


def _aligned(table: Tensor) -> Tensor:
    """A copy that starts at a multiple of 64 bytes."""
    return aligned(torch.empty(table.numel() + 15, dtype=torch.float32, device="cpu"))[: table.numel()].copy_(
        table.flatten()
    )
