"""Dilated convolution with learnable spacings, 1-D (Khalfaoui-Hassani et al. 2023, "Dilated convolution with learnable
spacings", and "... beyond bilinear interpolation", arXiv 2306.00817), as in K-H-Ismail/DCLS, `construct/modules.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Filter, check_choice, check_sizes, clamp_straight_through, filter_dtype, without_autocast

VERSIONS = ("nearest", "linear", "triangle", "gauss")
# Smallest widths, as published: a triangle reaches its neighbours, a Gaussian is no narrower than this.
MIN_WIDTH = {"triangle": 1.0, "gauss": 0.27}


class DCLSFilter(Filter):
    """K = `dilated_kernel_size` taps made of a few weights at learned positions, each spread over the taps near it.

    With positions P_i counted from the middle, c = K // 2, and i < `kernel_count`, at index j = 0 .. K-1:

        k_j = sum_i w_i s(j - c - P_i) / (sum_j s(j - c - P_i) + 1e-7)
        linear:     s(x) = relu(1 - |x|)                        published as "v1" (and "v0", see below)
        triangle:   s(x) = relu(1 + |SIG_i| - |x|)                       "max"
        gauss:      s(x) = exp(-x^2 / 2 / (|SIG_i| + 0.27)^2)            "gauss"
        nearest:    s(x) = 1 at the tap nearest to c + P_i, else 0: positions as they are after rounding; no gradient

    Index j is that of a `Conv1d`, which is a correlation: lag s has the tap of index j = K - 1 - s. Positions are held
    within [-c, c]. For even K that is one tap beyond the last; a weight that "nearest" or "linear" puts there vanishes.
    "v0" is the same as "linear" between the first and the last tap.

    Parameters, all (D, kernel_count): weight, P, and SIG with the versions that have a width. P and SIG are marked with
    no weight decay.

    Args:
        channels: D.
        kernel_count: weights of a channel.
        dilated_kernel_size: K.
        version: how a weight is spread.

    Raises:
        ValueError: a size below 1, or an unknown version.
    """

    def __init__(self, channels: int, kernel_count: int, dilated_kernel_size: int, *, version: str = "gauss") -> None:
        super().__init__()
        check_sizes(channels=channels, kernel_count=kernel_count, dilated_kernel_size=dilated_kernel_size)
        check_choice("version", version, VERSIONS)
        self.channels, self.kernel_count, self.version = channels, kernel_count, version
        self.dilated_kernel_size = dilated_kernel_size
        dtype = filter_dtype()
        self.weight = nn.Parameter(torch.empty(channels, kernel_count, dtype=dtype))
        self.P = nn.Parameter(torch.empty(channels, kernel_count, dtype=dtype))
        if version in MIN_WIDTH:
            self.SIG: nn.Parameter | None = nn.Parameter(torch.empty(channels, kernel_count, dtype=dtype))
        else:
            self.register_parameter("SIG", None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as published: w uniform within +-1/sqrt(kernel_count), P ~ N(0, 0.5^2), SIG 0.23 or 0."""
        bound = self.kernel_count**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.normal_(self.P, std=0.5).clamp_(-self._limit, self._limit)
        self.mark("P", weight_decay=0.0)
        if self.SIG is not None:
            nn.init.constant_(self.SIG, 0.23 if self.version == "gauss" else 0.0)
            self.mark("SIG", weight_decay=0.0)

    @property
    def support(self) -> int:
        """K: taps from there on are zero."""
        return self.dilated_kernel_size

    def forward(self, L: int) -> Tensor:
        """Return the first `L` taps, (channels, L), zeros from lag K on.

        Raises:
            ValueError: `L` is below 1.
        """
        self.check_length(L)
        K = self.dilated_kernel_size
        with without_autocast(self.weight.device):
            P = clamp_straight_through(self.P, -self._limit, self._limit)
            # Lag 0 is index K - 1. Offsets from the middle first: they are exact, c + P would be rounded.
            offset = torch.arange(K - 1, -1, -1, dtype=P.dtype, device=P.device) - K // 2
            if self.version == "nearest":
                spread = (offset == (P + 0.5).floor()[..., None]).to(P.dtype)
            else:
                spread = self._spread(offset - P[..., None])
                spread = spread / (spread.sum(-1, keepdim=True) + 1e-7)
            k = (self.weight[..., None] * spread).sum(dim=1)
        return F.pad(k, (0, L - K)) if L > K else k[:, :L].contiguous()

    def _spread(self, x: Tensor) -> Tensor:
        """s at distances x (D, kernel_count, K)."""
        if self.version == "linear":
            return torch.relu(1 - x.abs())
        assert self.SIG is not None
        width = self.SIG.abs()[..., None] + MIN_WIDTH[self.version]
        return torch.relu(width - x.abs()) if self.version == "triangle" else torch.exp(-0.5 * (x / width) ** 2)

    @property
    def _limit(self) -> int:
        return self.dilated_kernel_size // 2

    def extra_repr(self) -> str:
        """The sizes and the version, for `print(model)`."""
        return (
            f"channels={self.channels}, kernel_count={self.kernel_count}, "
            f"dilated_kernel_size={self.dilated_kernel_size}, version={self.version}"
        )
