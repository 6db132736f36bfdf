"""The implicit long filter of Hyena (Poli et al. 2023, "Hyena Hierarchy", section 3.3 and appendix D).

With the windows of the authors' code (HazyResearch/safari and hyena-dna, `src/models/sequence/hyena.py`).
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Filter, check_sizes, filter_dtype, without_autocast
from .window import decay_rates, exponential_window


class HyenaFilter(Filter):
    """`h[d, t] = window[d, t] * MLP(z[t])[d]`: a small network of the position, under an exponential window.

    With M = `max_length`, the features are `z[t] = [t/(M-1), cos(2 pi f t/M), -sin(2 pi f t/M)]` for
    `f = linspace(1e-4, bands-1, bands)`, `bands = (emb_dim-1)/2`; the activations are `sin(freq * x)` with one
    trainable `freq` shared by all of them; the last layer has no bias; the window is
    `exp(-t/(M-1) |delta_d|) + shift`, where `delta` runs linearly over the channels from the slow to the fast decay.
    Positions are relative to `max_length`, so a shorter filter is the beginning of a longer one.

    Parameters carry the published optimiser options: `lr` for the network, `lr_pos_emb` for the features `z`
    (which are trainable), no weight decay.

    Args:
        channels: D.
        max_length: M, the most taps there can be.
        emb_dim: number of features, odd and >= 3.
        order: width of the network.
        inner_layers: hidden layers of the network after the first.
        w: initial frequency of the sine.
        fast_decay_pct, slow_decay_pct: the fraction of `max_length` at which the window of the fastest and slowest
            channel has decayed to `target`.
        target: see above; in (0, 1).
        shift: added to the window, so that it need not vanish.
        modulate: without it there is no window.
        normalized: divide each tap by the sum of its magnitudes over the channels (so in the authors' code).
        lr, lr_pos_emb: learning rates of the network and of the features.
        modulation_lr: learning rate of the window's decay rates `deltas`; 0 leaves them as they are, a buffer.

    Raises:
        ValueError: `emb_dim` even or too small, a size below 1, or a target that is not in (0, 1).
    """

    max_length: int

    def __init__(
        self,
        channels: int,
        max_length: int,
        *,
        emb_dim: int = 3,
        order: int = 64,
        inner_layers: int = 2,
        w: float = 1.0,
        fast_decay_pct: float = 0.3,
        slow_decay_pct: float = 1.5,
        target: float = 1e-2,
        shift: float = 0.0,
        modulate: bool = True,
        normalized: bool = False,
        lr: float = 1e-3,
        lr_pos_emb: float = 1e-5,
        modulation_lr: float = 0.0,
    ) -> None:
        super().__init__()
        if emb_dim < 3 or emb_dim % 2 == 0:
            raise ValueError(f"emb_dim must be odd and at least 3, got {emb_dim}")
        check_sizes(channels=channels, max_length=max_length, order=order)
        if inner_layers < 0:
            raise ValueError(f"inner_layers must not be negative, got {inner_layers}")
        if not 0 < target < 1:
            raise ValueError(f"target must be in (0, 1), got {target}")
        self.channels, self.max_length, self.w = channels, max_length, w
        self.fast_decay_pct, self.slow_decay_pct, self.target = fast_decay_pct, slow_decay_pct, target
        self.shift, self.modulate, self.normalized = shift, modulate, normalized
        self.lr, self.lr_pos_emb, self.modulation_lr = lr, lr_pos_emb, modulation_lr
        dtype = filter_dtype()
        self.z = nn.Parameter(torch.empty(max_length, emb_dim, dtype=dtype))
        self.freq = nn.Parameter(torch.empty(order, dtype=dtype))
        widths = [emb_dim] + [order] * (1 + inner_layers)
        self.mlp = nn.ModuleList(nn.Linear(i, o, dtype=dtype) for i, o in itertools.pairwise(widths))
        self.mlp.append(nn.Linear(order, channels, bias=False, dtype=dtype))
        # A buffer in the checkpoint, not a formula: other implementations spread it over several filters, or train it.
        deltas = torch.empty(channels, dtype=dtype)
        if modulation_lr > 0:
            self.deltas: Tensor = nn.Parameter(deltas)
        else:
            self.register_buffer("deltas", deltas)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as published (the layers of the network as `torch.nn.Linear` does)."""
        M, bands, device = self.max_length, (self.z.shape[1] - 1) // 2, self.z.device
        # In float64, because the network multiplies an error in the angle by w in every layer.
        t = torch.arange(M, dtype=torch.float64, device=device)[:, None]
        frequencies = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64, device=device)
        angle = 2 * math.pi * frequencies * t / M
        self.z.copy_(torch.cat([t / max(M - 1, 1), angle.cos(), -angle.sin()], dim=1))
        nn.init.constant_(self.freq, self.w)
        for linear in self.mlp:
            assert isinstance(linear, nn.Linear)
            linear.reset_parameters()
        self.deltas.copy_(decay_rates(self.channels, self.fast_decay_pct, self.slow_decay_pct, self.target))
        rates = {"z": self.lr_pos_emb, "deltas": self.modulation_lr}
        for name, _ in self.named_parameters():
            self.mark(name, lr=rates.get(name, self.lr), weight_decay=0.0)

    def forward(self, L: int) -> Tensor:
        """Return the first `L` taps, (channels, L) float32.

        Raises:
            ValueError: `L` is not in 1..max_length.
        """
        self.check_length(L)
        # Every sine amplifies rounding errors by about w: in float32 the published w = 14 loses two digits, and a short
        # kernel (another GEMM path) no longer equals the beginning of a longer one. The hidden layers are small.
        wide = self.z.dtype if self.z.device.type == "mps" else torch.float64
        with without_autocast(self.z.device):
            x = self.z[:L].to(wide)
            for hidden in self.mlp[:-1]:
                assert isinstance(hidden, nn.Linear)
                x = torch.sin(self.freq.to(wide) * F.linear(x, hidden.weight.to(wide), hidden.bias.to(wide)))
            h = self.mlp[-1](x.to(self.z.dtype)).mT
            if self.modulate:
                h = h * exponential_window(self.deltas, L, self.max_length, self.shift)
            if self.normalized:
                h = h / h.abs().sum(dim=0)
        return h.contiguous()

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"channels={self.channels}, max_length={self.max_length}, modulate={self.modulate}"
