"""Self-moving points (Kim & Park 2023, "SMPConv: Self-moving point representations for continuous convolution"), as in
sangnekim/SMPConv, `smp/ckconv/nn/ck/smpkernel.py`.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .base import Filter, check_sizes, clamp_straight_through, filter_dtype, without_autocast

RADII = (1e-4, 1.0)
# Distances held at once where every tap is compared with every point of its channel.
_BLOCK_ELEMENTS = 1 << 22
# Triangles that reach less than this part of the taps are looked up one by one instead.
_SPARSE = 0.25


class SMPConvFilter(Filter):
    """A piecewise linear kernel through points that move: the mean of the triangles that reach a tap.

    Lag s of M = `max_length` is at x = 1 - 2 s / (M - 1), the present at 1 and the past at -1. With points p_i, radii
    r_i and weights w_i, i < n:

        k(x) = sum_i w_i relu(1 - |x - p_i| / r_i) / (#{i: |x - p_i| < r_i} + 1e-6)

    Radii are held within [1e-4, 1], for which the authors clip them after each step of the optimiser. In the published
    networks points are shared by all inputs of an output channel; a depthwise filter has one input.

    Parameters, all (D, n): weight_coord (p), radius (r), weights (w). Points and radii are marked with no weight decay,
    the radius with a tenth of the learning rate.

    Args:
        channels: D.
        max_length: M, the most taps there can be.
        points: n.
        radius: r at first. The authors choose about 2 / M for n = 30: a triangle then reaches a few taps.
        coord_std: how far the points are from the present at first, see `reset_parameters`.
        lr: learning rate of points and weights.

    Raises:
        ValueError: a size below 1, or a radius or standard deviation that is not positive.
    """

    max_length: int
    weight_coord: nn.Parameter
    radius: nn.Parameter
    weights: nn.Parameter

    def __init__(
        self,
        channels: int,
        max_length: int,
        *,
        points: int = 30,
        radius: float = 0.002,
        coord_std: float = 0.1,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, max_length=max_length, points=points)
        if radius <= 0 or coord_std <= 0:
            raise ValueError(f"radius and coord_std must be positive, got {radius} and {coord_std}")
        self.channels, self.max_length, self.points = channels, max_length, points
        self.init_radius, self.coord_std, self.lr = radius, coord_std, lr
        for name in ("weight_coord", "radius", "weights"):
            setattr(self, name, nn.Parameter(torch.empty(channels, points, dtype=filter_dtype())))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as published: p = 1 - 2 |z|, z ~ N(0, coord_std^2) up to 1; w ~ N(0, 0.02^2); r constant."""
        nn.init.trunc_normal_(self.weight_coord, std=self.coord_std, a=-1.0, b=0.0)
        self.weight_coord.mul_(2).add_(1)
        nn.init.constant_(self.radius, self.init_radius)
        nn.init.trunc_normal_(self.weights, std=0.02)
        self.mark("weight_coord", lr=self.lr, weight_decay=0.0)
        self.mark("radius", lr=0.1 * self.lr, weight_decay=0.0)
        self.mark("weights", lr=self.lr)

    def forward(self, L: int) -> Tensor:
        """Return the first `L` taps, (channels, L).

        Raises:
            ValueError: `L` is not in 1..max_length.
        """
        self.check_length(L)
        with without_autocast(self.weights.device):
            # In float64: a coordinate near 1 rounded to float32 is off by a thousandth of a small radius.
            p, w = self.weight_coord.double(), self.weights.double()
            r = clamp_straight_through(self.radius, *RADII).double()
            if not (torch.compiler.is_compiling() or p.is_meta):
                reach = math.floor(r.max().item() * max(self.max_length - 1, 1)) + 1
                if reach < _SPARSE * L:
                    return self._scattered(p, r, w, L, reach).to(self.weights.dtype)
            return self._dense(p, r, w, L).to(self.weights.dtype)

    def _dense(self, p: Tensor, r: Tensor, w: Tensor, L: int) -> Tensor:
        """The taps, each from all points: O(D n L), in blocks of lags that the backward pass computes again."""
        lags = torch.arange(L, dtype=p.dtype, device=p.device)
        blocks = lags.split(max(1, _BLOCK_ELEMENTS // p.numel()))

        def taps(lags: Tensor, p: Tensor, r: Tensor, w: Tensor) -> Tensor:
            triangles = self._triangles(lags, p[..., None], r[..., None])
            reached = (triangles != 0).sum(dim=1, dtype=w.dtype)
            return (w[..., None] * triangles).sum(dim=1) / (reached + 1e-6)

        if len(blocks) > 1 and torch.is_grad_enabled():
            return torch.cat([checkpoint(taps, block, p, r, w, use_reentrant=False) for block in blocks], dim=-1)
        return torch.cat([taps(block, p, r, w) for block in blocks], dim=-1)

    def _scattered(self, p: Tensor, r: Tensor, w: Tensor, L: int, reach: int) -> Tensor:
        """The same taps, from the `reach` lags at most that a triangle covers: O(D n reach)."""
        # A tap to spare at both ends, for rounding; what lies outside the triangle adds nothing.
        first = ((1 - p - r).detach() * (self.max_length - 1) / 2).floor()
        lags = first[..., None] + torch.arange(reach + 3, dtype=p.dtype, device=p.device)
        triangles = self._triangles(lags, p[..., None], r[..., None])
        triangles = torch.where((lags >= 0) & (lags < L), triangles, 0.0)
        index = lags.clamp(0, L - 1).long().flatten(1)
        empty = torch.zeros(len(p), L, dtype=p.dtype, device=p.device)
        reached = empty.scatter_add(1, index, (triangles != 0).to(p.dtype).flatten(1))
        return empty.scatter_add(1, index, (w[..., None] * triangles).flatten(1)) / (reached + 1e-6)

    def _triangles(self, lags: Tensor, p: Tensor, r: Tensor) -> Tensor:
        x = 1 - 2 * lags / max(self.max_length - 1, 1)
        return torch.relu(1 - (x - p).abs() / r)

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"channels={self.channels}, max_length={self.max_length}, points={self.points}"
