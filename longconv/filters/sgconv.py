"""Structured global convolution (Li et al. 2022, "What makes convolutional models great on long sequence modeling?"),
as in ctlllll/SGConv, `gconv.py`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Filter, check_choice, check_sizes, filter_dtype, without_autocast

COMBINATIONS = ("cat", "sum")
INTERPOLATIONS = ("linear", "nearest")
KERNEL_INITIALISATIONS = ("randn", "cos")
DECAYS = ("geometric", "learnable", "fixed")


class SGConvFilter(Filter):
    """Sub-kernels w_0 .. w_{S-1} of d taps, stretched to ever larger scales that weigh ever less.

    With up_r, interpolation by the factor r, and e = `init_scale`:

        cat:    k = [ a^(S-1) up_{2^e}(w_0), a^(S-2) up_{2^e}(w_1), ..., a^(S-1-i) up_{2^(i-1+e)}(w_i), ... ]
        sum:    k = sum_i a^(S-1-i) up_{2^(i+e)}(w_i),  each starting at lag 0
        taps:   k_t / ||k||

    Both have d 2^(S-1+e) taps. `a` runs linearly over the channels from `decay_min` to `decay_max`. With decay
    `"learnable"` or `"fixed"` (not trained) a power law takes the place of a^(S-1-i): the taps are multiplied by
    (t+1)^-decay, where decay is initialised uniformly between `decay_min` and `decay_max`.

    ||k|| is the L2 norm of all d 2^(S-1+e) taps, per channel, as it was at the first forward pass: from then on it is
    frozen. It is the buffer `kernel_norm` (D,), which is zero until then; whatever L comes first, it is the norm of all
    taps.

    For both directions take two filters (published: twice the channels, the second kernel from lag -1 on).

    Parameters: kernels (S, D, d), marked `lr`; decay (D,), likewise, if it is learnable or fixed.

    Args:
        channels: D.
        max_length: the most taps there can be.
        kernel_dim: d.
        init_scale: e >= 0, so that the finest part is stretched by 2^e.
        num_scales: S; default the fewest that cover `max_length`. With fewer the last taps are zero.
        combine: `"cat"` or `"sum"`.
        interpolation: `"linear"` (between the centres of taps, as align_corners=False) or `"nearest"`.
        kernel_init: `"randn"`, N(0, 1), or `"cos"`, cosines of 0 .. D-1 periods, shuffled over the channels.
        decay: `"geometric"`, `"learnable"` or `"fixed"`.
        decay_min, decay_max: see above.
        lr: learning rate of the parameters.

    Raises:
        ValueError: a size below 1, a negative `init_scale`, or an unknown choice.
    """

    max_length: int

    def __init__(
        self,
        channels: int,
        max_length: int,
        *,
        kernel_dim: int = 64,
        init_scale: int = 0,
        num_scales: int | None = None,
        combine: str = "cat",
        interpolation: str = "linear",
        kernel_init: str = "randn",
        decay: str = "geometric",
        decay_min: float = 2.0,
        decay_max: float = 2.0,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, max_length=max_length, kernel_dim=kernel_dim)
        if init_scale < 0:
            raise ValueError(f"init_scale must not be negative, got {init_scale}")
        check_choice("combine", combine, COMBINATIONS)
        check_choice("interpolation", interpolation, INTERPOLATIONS)
        check_choice("kernel_init", kernel_init, KERNEL_INITIALISATIONS)
        check_choice("decay", decay, DECAYS)
        if num_scales is None:
            doublings = (-(-max_length // kernel_dim) - 1).bit_length()
            num_scales = max(1, 1 + doublings - init_scale)
        check_sizes(num_scales=num_scales)
        self.channels, self.max_length = channels, max_length
        self.kernel_dim, self.init_scale, self.num_scales = kernel_dim, init_scale, num_scales
        self.combine, self.interpolation, self.kernel_init = combine, interpolation, kernel_init
        self.decay_kind, self.decay_min, self.decay_max, self.lr = decay, decay_min, decay_max, lr
        dtype = filter_dtype()
        self.kernels = nn.Parameter(torch.empty(num_scales, channels, kernel_dim, dtype=dtype))
        if decay == "geometric":
            self.register_parameter("decay", None)
            self.register_buffer("multiplier", torch.empty(channels, dtype=dtype))
        else:
            self.decay: nn.Parameter | None = nn.Parameter(torch.empty(channels, dtype=dtype), decay == "learnable")
            self.register_buffer("multiplier", None)
        self.register_buffer("kernel_norm", torch.empty(channels, dtype=dtype))
        self.multiplier: Tensor | None
        self.kernel_norm: Tensor
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as published, with the norm not frozen yet."""
        if self.kernel_init == "randn":
            nn.init.normal_(self.kernels)
        else:
            periods = torch.arange(self.channels, dtype=torch.float64, device="cpu")[:, None]
            phase = torch.linspace(0, 2 * math.pi, self.kernel_dim, dtype=torch.float64, device="cpu")
            for kernel in self.kernels:
                kernel.copy_((periods * phase).cos()[torch.randperm(self.channels, device="cpu")])
        if self.decay is not None:
            nn.init.uniform_(self.decay, self.decay_min, self.decay_max)
        if self.multiplier is not None:
            self.multiplier.copy_(torch.linspace(self.decay_min, self.decay_max, self.channels, device="cpu"))
        self.kernel_norm.zero_()
        self._frozen = False
        for name, _ in self.named_parameters():
            self.mark(name, lr=self.lr)

    @property
    def support(self) -> int:
        """The number of taps."""
        return min(self.max_length, self._taps)

    def forward(self, L: int) -> Tensor:
        """Return the first `L` taps, (channels, L). The first call freezes the norm.

        Raises:
            ValueError: `L` is not in 1..max_length.
        """
        self.check_length(L)
        with without_autocast(self.kernels.device):
            if not self._frozen:
                self._freeze()
            k = self._unnormalised(min(L, self._taps))
            # A kernel of zeros has no norm, and stays zero.
            k = k / torch.where(self.kernel_norm > 0, self.kernel_norm, 1.0)[:, None]
            return F.pad(k, (0, L - k.shape[-1]))

    @property
    def _taps(self) -> int:
        return self.kernel_dim << (self.num_scales - 1 + self.init_scale)

    @torch.no_grad()
    def _freeze(self) -> None:
        """Set the norm if it is not set, without looking at its value: no synchronisation, no break of a graph."""
        norm = torch.linalg.vector_norm(self._unnormalised(self._taps), dim=-1)
        self.kernel_norm.copy_(torch.where(self.kernel_norm > 0, self.kernel_norm, norm))
        self._frozen = True

    def _unnormalised(self, L: int) -> Tensor:
        parts: list[Tensor] = []
        for i in range(self.num_scales):
            doublings = (i if self.combine == "sum" else max(0, i - 1)) + self.init_scale
            part = F.interpolate(self.kernels[i][None], scale_factor=2**doublings, mode=self.interpolation)[0]
            if self.multiplier is not None:
                part = part * self.multiplier[:, None] ** (self.num_scales - 1 - i)
            parts.append(part)
            if self.combine == "cat" and sum(p.shape[-1] for p in parts) >= L:
                break
        if self.combine == "cat":
            k = torch.cat(parts, dim=-1)[:, :L]
        else:
            k = torch.stack([F.pad(part, (0, L - part.shape[-1])) for part in parts]).sum(0)
        if self.decay is not None:
            t = torch.arange(1, L + 1, dtype=k.dtype, device=k.device)
            k = k * torch.exp(-self.decay[:, None] * t.log())
        return k

    # What may bring an unfrozen norm back: the flag only spares forward a look at the buffer.
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._frozen = False
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._frozen = False
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        """The sizes and choices, for `print(model)`."""
        return (
            f"channels={self.channels}, max_length={self.max_length}, kernel_dim={self.kernel_dim}, "
            f"num_scales={self.num_scales}, combine={self.combine}, interpolation={self.interpolation}, "
            f"decay={self.decay_kind}"
        )
