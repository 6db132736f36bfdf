"""The implicit long filter of Hyena N-D (Zimerman and Wolf 2023, "Multi-Dimensional Hyena for Spatial Inductive Bias",
section 3), as in Itamarzimm/HyenaND, `hyena2d.py`.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Filter, check_choice, check_sizes, filter_dtype, without_autocast
from .window import decay_rates

KINDS = ("implicit", "product")


class SineNetwork(nn.Module):
    """Linear layers with `sin(freq * x)` in between, one trainable `freq` for all; the last layer without bias."""

    def __init__(self, inputs: int, width: int, inner_layers: int, outputs: int, w: float) -> None:
        super().__init__()
        dtype, self.w = filter_dtype(), w
        self.freq = nn.Parameter(torch.empty(width, dtype=dtype))
        widths = [inputs] + [width] * (1 + inner_layers)
        self.layers = nn.ModuleList(nn.Linear(i, o, dtype=dtype) for i, o in itertools.pairwise(widths))
        self.layers.append(nn.Linear(width, outputs, bias=False, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: every layer as `torch.nn.Linear` does, every frequency to w."""
        nn.init.constant_(self.freq, self.w)
        for layer in self.layers:
            layer.reset_parameters()  # type: ignore[operator]

    def forward(self, z: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs), the hidden layers in the dtype of z."""
        for layer in self.layers[:-1]:
            assert isinstance(layer, nn.Linear)
            z = torch.sin(self.freq.to(z.dtype) * F.linear(z, layer.weight.to(z.dtype), layer.bias.to(z.dtype)))
        weight: Tensor = self.layers[-1].get_parameter("weight")
        return F.linear(z.to(weight.dtype), weight)


class HyenaFilterND(Filter):
    """A filter of the position in N axes, under a window that decays along each.

    The features of lag t in an axis of n samples are those of `HyenaFilter`,
    `z(t) = [t/(n-1), cos(2 pi f t/n), -sin(2 pi f t/n)]`, and its window is `exp(-|t|/(n-1) |delta_d|)`. For two axes

        implicit:   h[d,i,j] = MLP(z(i), z(j))[d] (window[d,i] window[d,j] + shift)
        product:    h[d,i,j] = (MLP_1(z(i))[d] (window[d,i] + shift)) (MLP_2(z(j))[d] (window[d,j] + shift))

    Lags are 0 ... n-1 in a causal axis and -(n-1) ... n-1 in a two-sided one. Features are trainable; marks are those
    of `HyenaFilter`.

    Args:
        channels: D.
        shape: (n_1, ..., n_N), the samples in each axis.
        two_sided: for each axis.
        kind: `"implicit"`, one network of all positions, or `"product"`, one for each axis.
        emb_dim, order, inner_layers, w, fast_decay_pct, slow_decay_pct, target, shift, lr, lr_pos_emb: see
            `HyenaFilter`.

    Raises:
        ValueError: `emb_dim` even or too small, a size below 1, or an unknown kind.
    """

    def __init__(
        self,
        channels: int,
        shape: Sequence[int],
        two_sided: Sequence[bool],
        *,
        kind: str = "implicit",
        emb_dim: int = 3,
        order: int = 16,
        inner_layers: int = 2,
        w: float = 1.0,
        fast_decay_pct: float = 0.3,
        slow_decay_pct: float = 1.5,
        target: float = 1e-2,
        shift: float = 0.0,
        lr: float = 1e-3,
        lr_pos_emb: float = 1e-5,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, KINDS)
        if emb_dim < 3 or emb_dim % 2 == 0:
            raise ValueError(f"emb_dim must be odd and at least 3, got {emb_dim}")
        check_sizes(channels=channels, order=order, **{f"shape[{axis}]": n for axis, n in enumerate(shape)})
        if inner_layers < 0:
            raise ValueError(f"inner_layers must not be negative, got {inner_layers}")
        self.channels, self.shape, self.two_sided, self.kind = channels, tuple(shape), tuple(two_sided), kind
        self.fast_decay_pct, self.slow_decay_pct, self.target = fast_decay_pct, slow_decay_pct, target
        self.shift, self.lr, self.lr_pos_emb = shift, lr, lr_pos_emb
        dtype, axes = filter_dtype(), len(self.shape)
        sizes = [2 * n - 1 if both else n for n, both in zip(self.shape, self.two_sided, strict=True)]
        self.z = nn.ParameterList(nn.Parameter(torch.empty(size, emb_dim, dtype=dtype)) for size in sizes)
        networks, inputs = (1, axes * emb_dim) if kind == "implicit" else (axes, emb_dim)
        self.mlp = nn.ModuleList(SineNetwork(inputs, order, inner_layers, channels, w) for _ in range(networks))
        self.register_buffer("deltas", torch.empty(axes, channels, dtype=dtype))
        self.deltas: Tensor
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as published."""
        for axis, z in enumerate(self.z):
            n, bands = self.shape[axis], (z.shape[1] - 1) // 2
            t = self._lags(axis).double()[:, None]
            frequencies = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64, device=z.device)
            angle = 2 * math.pi * frequencies * t / n
            z.copy_(torch.cat([t / max(n - 1, 1), angle.cos(), -angle.sin()], dim=1))
        for network in self.mlp:
            network.reset_parameters()  # type: ignore[operator]
        self.deltas.copy_(decay_rates(self.channels, self.fast_decay_pct, self.slow_decay_pct, self.target))
        for name, _ in self.named_parameters():
            self.mark(name, lr=self.lr_pos_emb if name.startswith("z.") else self.lr, weight_decay=0.0)

    @property
    def origin(self) -> tuple[int, ...]:
        """Index of the tap at lag 0, for each axis."""
        return tuple(n - 1 if both else 0 for n, both in zip(self.shape, self.two_sided, strict=True))

    def forward(self) -> Tensor:
        """Return all taps, (channels, K_1, ..., K_N) float32, lag 0 at `origin`."""
        axes = len(self.shape)
        with without_autocast(self.deltas.device):
            # In float64 for the reason that `HyenaFilter` gives.
            wide = self.deltas.dtype if self.deltas.device.type == "mps" else torch.float64
            z = [features.to(wide) for features in self.z]
            if self.kind == "implicit":
                grid = torch.meshgrid(*(torch.arange(len(f), device=f.device) for f in z), indexing="ij")
                h = self.mlp[0](torch.cat([f[index] for f, index in zip(z, grid, strict=True)], dim=-1)).movedim(-1, 0)
                return h * (self._outer([self._window(axis) for axis in range(axes)]) + self.shift)
            taps = [self.mlp[axis](z[axis]).mT * (self._window(axis) + self.shift) for axis in range(axes)]
            return self._outer(taps).contiguous()

    def _lags(self, axis: int) -> Tensor:
        n = self.shape[axis]
        return torch.arange(1 - n if self.two_sided[axis] else 0, n, device=self.deltas.device)

    def _window(self, axis: int) -> Tensor:
        t = self._lags(axis).abs().to(self.deltas.dtype) / max(self.shape[axis] - 1, 1)
        return torch.exp(-t * self.deltas[axis].abs()[:, None])

    @staticmethod
    def _outer(factors: list[Tensor]) -> Tensor:
        """The outer product over the axes of factors (D, K_a), for each channel."""
        product = factors[0]
        for factor in factors[1:]:
            product = product[..., None] * factor.view(factor.shape[0], *[1] * (product.dim() - 1), -1)
        return product

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"channels={self.channels}, shape={self.shape}, two_sided={self.two_sided}, kind={self.kind!r}"
