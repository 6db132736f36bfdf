"""Modes of channels that have different numbers of them, one behind the other and without padding.

Distillation gives each channel its own order. Its parameters may stay in a padded table (D, N), in which a mode whose
residue is 0 is padding; a state should not, because there is one for every sequence and layer. It is flat, (B, P), with
the modes of a channel side by side. Channels are sorted by their number of modes into a few groups of equal width, the
fewest with which at most 10% of the state is padding. So sums over a channel's modes are sums over the last dimension
of a view. On a CPU that is several times faster for large batches than additions by index, sums of segments or products
with a sparse matrix (768 channels of 2 to 32 modes, 64 sequences, busy core: 5-9 ms; the others 24-30); for a few
thousand modes in all, additions by index are three times as fast as a handful of operations for every group.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

# Padding that a state may have: a filter with less than this in its table keeps the table's shape.
MAX_PADDING = 0.1


class ModeLayout(NamedTuple):
    """Where the modes of D channels are in a vector of P.

    Attributes:
        groups: channels and modes of each, in the order of memory.
        order: (D,) int64, the channels in the order of memory.
        place: (D,) int64, its inverse: where in `order` a channel is.
        starts: (D,) int64, the first mode of a channel.
        counts: (D,) int64, the modes of a channel, its group's padding left out.
        owners: (2P,) int64, the channel of each real number in a vector of P modes.
        source: (P,) int64, where each mode is in the flattened table (D, N).
        table: D and N.
    """

    groups: tuple[tuple[int, int], ...]
    order: Tensor
    place: Tensor
    starts: Tensor
    counts: Tensor
    owners: Tensor
    source: Tensor
    table: tuple[int, int]

    @property
    def size(self) -> int:
        """P, complex modes of one sequence."""
        return sum(channels * width for channels, width in self.groups)

    def pack(self, table: Tensor) -> Tensor:
        """(..., D, N) -> (..., P). Differentiable."""
        return table.flatten(-2).index_select(-1, self.source)

    def unpack(self, packed: Tensor) -> Tensor:
        """(..., P) -> (..., D, N), zero where there is no mode. Differentiable."""
        D, N = self.table
        zeros = packed.new_zeros(*packed.shape[:-1], D * N)
        return zeros.index_copy(-1, self.source, packed).unflatten(-1, (D, N))

    def split(self, packed: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each group its channels (n,) and, of (..., P), a view (..., n, width)."""
        pieces = packed.split([channels * width for channels, width in self.groups], -1)
        channels = self.order.split([count for count, _ in self.groups])
        return [
            (which, piece.unflatten(-1, group))
            for which, piece, group in zip(channels, pieces, self.groups, strict=True)
        ]

    def check(self, u_t: Tensor, poles: Tensor, residues: Tensor, passthrough: Tensor, state: Tensor) -> None:
        """Raise ValueError unless the arguments of a step have this layout."""
        D, P = self.table[0], self.size
        expected = {"poles": (P,), "residues": (P,), "passthrough": (D,)}
        given = {"poles": poles, "residues": residues, "passthrough": passthrough}
        for name, shape in expected.items():
            if given[name].shape != shape or given[name].is_complex() != (name != "passthrough"):
                kind = "real" if name == "passthrough" else "complex"
                raise ValueError(f"{name} must be {kind} {shape}, got {given[name].dtype} {tuple(given[name].shape)}")
        if u_t.dim() != 2 or u_t.shape[1] != D:
            raise ValueError(f"u_t must be a real tensor (B, D) with D = {D}, got {u_t.dtype} {tuple(u_t.shape)}")
        if state.shape != (len(u_t), P) or not state.is_complex():
            raise ValueError(
                f"state must be a complex tensor {(len(u_t), P)} of packed modes, got {state.dtype} "
                f"{tuple(state.shape)}"
            )


def mode_layout(used: Tensor) -> ModeLayout | None:
    """The layout of a table of which only some modes are used; None if it is worth none. Reads values: waits for a GPU.

    Args:
        used: (D, N) bool.
    """
    D, N = used.shape
    counts = used.sum(-1)
    histogram = torch.bincount(counts.cpu(), minlength=N + 1).tolist()
    total = sum(n * channels for n, channels in enumerate(histogram))
    if D * N - total <= MAX_PADDING * D * N:
        return None
    groups = _groups(tuple(histogram))
    device = used.device
    order = counts.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(D, device=device)
    widths = torch.tensor([width for channels, width in groups for _ in range(channels)], device=device).long()
    ends = widths.cumsum(0)
    # The used modes of a channel first, in their order; what a group pads them with are unused ones.
    modes = (~used).to(torch.uint8).argsort(dim=-1, stable=True)[order]
    first = torch.arange(N, device=device) < widths[:, None]
    source = (order[:, None] * N + modes)[first]
    owners = (source // N).repeat_interleave(2)
    return ModeLayout(groups, order, place, (ends - widths)[place], counts, owners, source, (D, N))


@functools.lru_cache(maxsize=256)
def _groups(histogram: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The fewest groups, as (channels, width), with which at most `MAX_PADDING` of the modes are padding.

    Of so many groups those with the least padding: a group ends at one of the numbers of modes that occur, and the best
    groups up to there consist of the best up to an earlier one, and one more.
    """
    present = [(n, channels) for n, channels in enumerate(histogram) if channels]
    total = sum(n * channels for n, channels in present)
    below = [0]
    for _, channels in present:
        below.append(below[-1] + channels)
    # best[i]: modes, padding included, of the first i numbers, and where the groups end.
    best: list[tuple[float, tuple[int, ...]]] = [(0, ())] + [(float("inf"), ())] * len(present)
    for _ in present:
        best = [(0, ())] + [
            min((best[j][0] + (below[i] - below[j]) * present[i - 1][0], (*best[j][1], i)) for j in range(i))
            for i in range(1, len(present) + 1)
        ]
        if best[-1][0] - total <= MAX_PADDING * best[-1][0]:
            break
    ends = best[-1][1]
    return tuple((below[end] - below[start], present[end - 1][0]) for start, end in zip((0, *ends), ends, strict=False))
