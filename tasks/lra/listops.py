"""ListOps of the Long Range Arena, generated: nested MIN, MAX, MED and SM of digits, and what they evaluate to.

The distribution is that of the published generator (Nangia and Bowman 2018, arXiv:1804.06028, with the settings of Tay
et al. 2021, arXiv:2011.04006, ``lra_benchmarks/data/listops.py``):

- a node at depth 1 … max_depth - 1 is an operator with probability 1/4 and else a digit; at max_depth it is a digit.
  The root is at depth 1;
- an operator is one of four with equal probability and has 2 … max_args arguments, each number as probable;
- digits 0 … 9 are equally probable;
- trees whose length is not strictly between min_length and max_length are thrown away, and so is a tree that was there
  before. The length counts a digit as 1 and an operator as 2, its bracket that opens and the one that closes: it is the
  number of tokens, since the parentheses of the published files are dropped when they are read;
- SM is the sum modulo 10, MED the integer part of the median.

Trees are grown level by level, many at once. A tree's length is known from the numbers of nodes and operators of its
levels, so that what is thrown away, most of it, never gets digits, operators or positions. A root that is a digit is
always too short: roots are operators here, which is the same distribution.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longconv.tasks.lra.blocks import blocks
from longconv.tasks.lra.random import Stream

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
# Padding is 0. "<unk>" is never generated: it is there because the published vocabulary of 18 has it.
VOCABULARY = ("<pad>", "<unk>", "<eos>", *OPERATORS, "]", *"0123456789")
PAD, EOS = 0, 2
N_CLASSES = 10

_MIN, _MAX, _MED, _SM = range(4)
_FIRST_OPERATOR, _CLOSE, _FIRST_DIGIT = 3, 7, 8
_ROOTS = 1024  # of a block: enough for numpy, few enough for the cache
_EMPTY_BLOCKS = 200
_STREAM = 1  # tells the streams of this generator from those of others with the same seed


@dataclass(frozen=True)
class ListOpsConfig:
    """Which trees there are; the defaults are those of the Long Range Arena.

    max_depth: depth of the deepest digits, 2 or more; the root is at 1. max_args: arguments of an operator, at most.
    min_length, max_length: the number of tokens is strictly between them. A root that is a digit has one token, and is
        left out: min_length is at least 1.

    Raises ValueError for settings that make no sense.
    """

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000

    def __post_init__(self) -> None:
        if self.max_depth < 2:
            raise ValueError(f"max_depth must be at least 2, got {self.max_depth}")
        if not 2 <= self.max_args <= 64:
            raise ValueError(f"max_args must be between 2 and 64, got {self.max_args}")
        if not 1 <= self.min_length <= self.max_length - 2:
            raise ValueError(
                f"min_length must be at least 1 and max_length larger by 2 or more, got {self.min_length} and "
                f"{self.max_length}"
            )
        if max(self.min_length + 1, 4) >= self.max_length:
            raise ValueError(f"max_length must be at least 5, since no tree has fewer than 4 tokens: {self.max_length}")


@dataclass(frozen=True)
class Expressions:
    """Expressions one after the other: tokens (sum of lengths,) uint8, offsets (N + 1,) int64, labels (N,) uint8.

    ``expressions[i]`` gives the tokens of one, without padding and end-of-text token, and what it evaluates to.
    """

    tokens: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    labels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        index = range(len(self))[index]
        return self.tokens[self.offsets[index] : self.offsets[index + 1]], int(self.labels[index])


def generate(n: int, seed: int = 0, *, config: ListOpsConfig | None = None, workers: int | None = None) -> Expressions:
    """`n` different expressions. They depend on `seed` and `config`; the first of them are the same for every `n`.

    workers: threads, default one per core; the result is the same, bit for bit, for any number of them.

    Raises ValueError for a negative `n` or `seed`, and if hardly any tree is as long as `config` asks for.
    """
    parts = list(generate_parts(n, seed, config=config, workers=workers))
    lengths = np.concatenate([np.diff(part.offsets) for part in parts] or [np.zeros(0, np.int64)])
    return Expressions(
        np.concatenate([part.tokens for part in parts] or [np.zeros(0, np.uint8)]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([part.labels for part in parts] or [np.zeros(0, np.uint8)]),
    )


def generate_parts(
    n: int, seed: int = 0, *, config: ListOpsConfig | None = None, workers: int | None = None
) -> Iterator[Expressions]:
    """What `generate` returns, in small parts, each as soon as it is there."""
    config = config or ListOpsConfig()
    if n < 0:
        raise ValueError(f"n must be 0 or more, got {n}")
    Stream(seed)  # a wrong seed is an error now, not in a thread
    seen: set[bytes] = set()
    empty = 0
    # Its threads end with the block, also if nobody wants the rest.
    with contextlib.closing(blocks(lambda block: _make_block(config, seed, block), workers)) as made:
        while len(seen) < n:
            part = _without(next(made), seen, n)
            empty = 0 if len(part) else empty + 1
            if empty == _EMPTY_BLOCKS:
                raise ValueError(f"found {len(seen)} of {n} trees in {config}, then none in {empty * _ROOTS} more")
            if len(part):
                yield part


def _without(part: Expressions, seen: set[bytes], n: int) -> Expressions:
    """`part` without what was seen before, and no more than makes `n`; notes what is new in `seen`."""
    new = []
    for i in range(len(part)):
        if len(seen) == n:
            break
        digest = hashlib.blake2b(part[i][0].tobytes(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            new.append(i)
    if new == list(range(len(part))):
        return part
    tokens = [part[i][0] for i in new]
    return Expressions(
        np.concatenate([*tokens, np.zeros(0, np.uint8)]),
        np.concatenate([[0], np.cumsum([len(row) for row in tokens])]).astype(np.int64),
        part.labels[new],
    )


@dataclass
class _Level:
    """The nodes of one depth, tree by tree: `is_op` for each node, `args` for each that is an operator."""

    is_op: NDArray[np.bool_]
    args: NDArray[np.int64]


def _make_block(config: ListOpsConfig, seed: int, block: int) -> Expressions:
    stream = Stream(seed, _STREAM, block)
    levels, lengths = _grow(config, stream)
    # Contents are drawn from the leaves up, positions follow from the root down.
    sizes: list[NDArray[np.int64]] = []
    tokens: list[NDArray[np.uint8]] = []
    values = np.zeros(0, np.uint8)
    for level in reversed(levels):
        n, ops = len(level.is_op), np.flatnonzero(level.is_op)
        size = np.ones(n, np.int64)
        value = stream.below(N_CLASSES, n).astype(np.uint8)
        token = _FIRST_DIGIT + value
        if len(ops):
            kinds = stream.below(len(OPERATORS), len(ops)).astype(np.uint8)
            starts = np.cumsum(level.args) - level.args
            size[ops] = 2 + np.add.reduceat(sizes[-1], starts)
            value[ops] = _evaluate(kinds, values, starts, level.args)
            token[ops] = _FIRST_OPERATOR + kinds
        sizes.append(size)
        tokens.append(token)
        values = value
    sizes.reverse()
    tokens.reverse()

    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    out = np.empty(offsets[-1], np.uint8)
    place = offsets[:-1]
    for depth, level in enumerate(levels):
        out[place] = tokens[depth]
        ops = np.flatnonzero(level.is_op)
        out[place[ops] + sizes[depth][ops] - 1] = _CLOSE
        if depth + 1 < len(levels):
            before = np.cumsum(sizes[depth + 1]) - sizes[depth + 1]
            starts = np.cumsum(level.args) - level.args
            place = before + np.repeat(place[ops] + 1 - before[starts], level.args)
    return Expressions(out, offsets, values)


def _grow(config: ListOpsConfig, stream: Stream) -> tuple[list[_Level], NDArray[np.int64]]:
    """The levels of those of `_ROOTS` trees that have a right length, and their lengths (trees,)."""
    counts = np.ones(_ROOTS, np.int64)  # nodes of each tree at this depth
    lengths = np.zeros(_ROOTS, np.int64)
    grown = []
    for depth in range(1, config.max_depth + 1):
        n = int(counts.sum())
        if depth == 1:
            is_op = np.ones(n, bool)
        elif depth < config.max_depth:
            is_op = stream.bytes(n) < 64  # a quarter of 256
        else:
            is_op = np.zeros(n, bool)
        ops_before = _running(is_op)
        args = 2 + stream.below(config.max_args - 1, int(ops_before[-1]))
        first_op = ops_before[_running(counts)]
        grown.append((counts, np.diff(first_op), is_op, args))
        lengths += counts + np.diff(first_op)
        counts = np.diff(_running(args)[first_op])
        # A child is one token at least. Nothing grows on a tree that is too long.
        lengths[lengths + counts >= config.max_length] = config.max_length
        counts[lengths == config.max_length] = 0
    kept = (lengths > config.min_length) & (lengths < config.max_length)
    levels = [_Level(is_op[np.repeat(kept, nodes)], args[np.repeat(kept, ops)]) for nodes, ops, is_op, args in grown]
    return [level for level in levels if len(level.is_op)], lengths[kept]


def _running(counts: NDArray) -> NDArray[np.int64]:
    """0 and the running sums: (n,) to (n + 1,)."""
    sums = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=sums[1:])
    return sums


def _evaluate(
    kinds: NDArray[np.uint8], values: NDArray[np.uint8], starts: NDArray[np.int64], args: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """What operators give: `kinds` (ops,), their arguments ``values[starts[i] : starts[i] + args[i]]``."""
    sums = np.add.reduceat(values, starts, dtype=np.int64) % 10
    results = np.stack([np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)])
    value = np.where(kinds == _SM, sums, results[np.minimum(kinds, _MAX), np.arange(len(kinds))]).astype(np.uint8)
    medians = np.flatnonzero(kinds == _MED)
    if len(medians):
        number, column = args[medians, None], np.arange(args.max())
        indices = np.minimum(starts[medians, None] + column, len(values) - 1)
        table = np.where(column < number, values[indices], 255)
        table.sort(axis=1)
        row = np.arange(len(medians))
        # Of an even number of arguments, the integer part of the mean of the two in the middle.
        value[medians] = (table[row, (args[medians] - 1) // 2] + table[row, args[medians] // 2]) // 2
    return value
