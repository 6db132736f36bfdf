"""A filter whose taps are its parameters (Fu et al. 2023, "Simple hardware-efficient long convolutions for sequence
modeling"), with that paper's regularisers, as in HazyResearch/safari, `long_conv_kernel.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Filter, check_choice, check_sizes, filter_dtype, without_autocast
from .window import decay_rates, exponential_window

INITIALISATIONS = ("random", "double_exp")


class FreeFormFilter(Filter):
    """M = `max_length` free taps per channel, which pass, in this order, through

        smooth:  k_s <- mean of k_{s-h} .. k_{s+h}, h = (smooth - 1) / 2, with zeros beyond the ends
        squash:  k_s <- sign(k_s) relu(|k_s| - squash), which makes the kernel sparse (soft threshold)
        window:  k_s <- k_s exp(-s/(M-1) |delta_d|), the window of Hyena's filters

    each of which is off by default. The paper's dropout of taps, and its skip weight, are the layer's.

    Parameters: taps (D, M), marked `lr` and no weight decay. Buffer: deltas (D,), with `modulate`.

    Args:
        channels: D.
        max_length: M.
        init: `"random"`, N(0, 0.002^2), or `"double_exp"`, N(0, 0.02^2) exp(-(s/M) (D//2)^(d/D)) in channel d: decaying
            over the lags, and faster with every channel.
        squash: the threshold lambda, >= 0; 0.001 to 0.004 in the paper's runs.
        smooth: taps to average over, odd.
        modulate: use the window.
        fast_decay_pct, slow_decay_pct, target: of the window, see `HyenaFilter`.
        lr: learning rate of the taps.

    Raises:
        ValueError: a size below 1, a negative `squash`, an even `smooth`, a target not in (0, 1), or an unknown `init`.
    """

    max_length: int

    def __init__(
        self,
        channels: int,
        max_length: int,
        *,
        init: str = "random",
        squash: float = 0.0,
        smooth: int = 1,
        modulate: bool = False,
        fast_decay_pct: float = 0.3,
        slow_decay_pct: float = 1.5,
        target: float = 1e-2,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, max_length=max_length)
        check_choice("init", init, INITIALISATIONS)
        if squash < 0:
            raise ValueError(f"squash must not be negative, got {squash}")
        if smooth < 1 or smooth % 2 == 0:
            raise ValueError(f"smooth must be odd and at least 1, got {smooth}")
        if not 0 < target < 1:
            raise ValueError(f"target must be in (0, 1), got {target}")
        self.channels, self.max_length, self.init = channels, max_length, init
        self.squash, self.smooth, self.modulate, self.lr = squash, smooth, modulate, lr
        self.fast_decay_pct, self.slow_decay_pct, self.target = fast_decay_pct, slow_decay_pct, target
        self.taps = nn.Parameter(torch.empty(channels, max_length, dtype=filter_dtype()))
        self.register_buffer("deltas", torch.empty(channels, dtype=filter_dtype()) if modulate else None)
        self.deltas: Tensor | None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as published."""
        nn.init.normal_(self.taps, std=0.002 if self.init == "random" else 0.02)
        if self.init == "double_exp":
            s = torch.arange(self.max_length, dtype=torch.float64, device="cpu") / self.max_length
            d = torch.arange(self.channels, dtype=torch.float64, device="cpu") / self.channels
            rates = torch.pow(torch.tensor(float(self.channels // 2), dtype=d.dtype, device="cpu"), d)
            self.taps.mul_(torch.exp(-rates[:, None] * s).to(self.taps))
        if self.deltas is not None:
            self.deltas.copy_(decay_rates(self.channels, self.fast_decay_pct, self.slow_decay_pct, self.target))
        self.mark("taps", lr=self.lr, weight_decay=0.0)

    def forward(self, L: int) -> Tensor:
        """Return the first `L` taps, (channels, L).

        Raises:
            ValueError: `L` is not in 1..max_length.
        """
        self.check_length(L)
        with without_autocast(self.taps.device):
            k = self.taps[:, : L + self.smooth // 2]
            if self.smooth > 1:
                k = F.avg_pool1d(k, self.smooth, stride=1, padding=self.smooth // 2)[:, :L]
            if self.squash > 0:
                k = torch.sign(k) * torch.relu(k.abs() - self.squash)
            if self.deltas is not None:
                k = k * exponential_window(self.deltas, L, self.max_length)
        return k.contiguous()

    def extra_repr(self) -> str:
        """The sizes and options, for `print(model)`."""
        options = f"init={self.init}, squash={self.squash}, smooth={self.smooth}, modulate={self.modulate}"
        return f"channels={self.channels}, max_length={self.max_length}, {options}"
