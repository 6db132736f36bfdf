"""The multi-dimensional damped exponential moving average of MEGA (Ma et al. 2022, "Mega: Moving average equipped gated
attention", section 3.1), as in facebookresearch/mega, `fairseq/modules/exponential_moving_average.py`.
"""

import math

import torch
from torch import Tensor, nn

from .base import check_sizes, filter_dtype, without_autocast
from .recurrent import Modes, RecurrentFilter


class DampedEMA(RecurrentFilter):
    """A sum of N decaying exponentials per channel:

        p = sigmoid(delta),  q = 1 - p sigmoid(alpha),     k_t = sum_n gamma_n beta_n p_n q_n^t / sqrt(N).

    delta is the paper's alpha and alpha its delta: the names are those of the published code. The poles q are real and
    in (0, 1). (The state keeps them as complex numbers all the same, the recurrence being shared with other filters.)

    With `bidirectional` there are 2D rows: the first D look back, the last D ahead. MEGA adds the two moving averages,
    both of which contain the present: lag 0 has taps of both. `two_sided` gives them as `fft_conv` takes them.

    The weight omega of MEGA's residual is the layer's (a skip weight). The published code gives these parameters no
    optimiser options of their own, so neither are they marked here.

    Parameters, for D' = D or 2D rows: delta, alpha, beta, gamma, all (D', N).

    Args:
        channels: D.
        order: N, the dimensions of the moving average.
        bidirectional: see above.

    Attributes:
        channels: the rows of the kernel, 2D with `bidirectional`.

    Raises:
        ValueError: a size below 1.
    """

    delta: nn.Parameter
    alpha: nn.Parameter
    beta: nn.Parameter
    gamma: nn.Parameter

    def __init__(self, channels: int, order: int = 16, *, bidirectional: bool = False) -> None:
        super().__init__()
        check_sizes(channels=channels, order=order)
        self.channels, self.order, self.bidirectional = (1 + bidirectional) * channels, order, bidirectional
        for name in ("delta", "alpha", "beta", "gamma"):
            setattr(self, name, nn.Parameter(torch.empty(self.channels, order, dtype=filter_dtype())))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as published: delta, alpha ~ N(0, 0.2^2); beta ~ N(+-1, 0.02^2), alternating; gamma ~ N(0, 1)."""
        nn.init.normal_(self.delta, std=0.2)
        nn.init.normal_(self.alpha, std=0.2)
        nn.init.normal_(self.beta, std=0.02)
        self.beta[:, ::2] += 1
        self.beta[:, 1::2] -= 1
        nn.init.normal_(self.gamma)

    def prepare_step(self) -> Modes:
        """Return the modes, complex128 with real values."""
        with without_autocast(self.delta.device):
            p = self.delta.double().sigmoid()
            q = 1 - p * self.alpha.double().sigmoid()
            weight = self.gamma.double() * self.beta.double() * p / math.sqrt(self.order)
            zero = torch.zeros_like(q)
            return Modes(torch.complex(q, zero), torch.complex(weight * q, zero), weight.sum(-1))

    def two_sided(self, L: int) -> tuple[Tensor, Tensor]:
        """Return the kernels k (D, L), lags 0 .. L-1, and k_reverse (D, L-1), lags -1 .. -(L-1), of `fft_conv`.

        Raises:
            ValueError: L < 1, or the filter is not bidirectional.
        """
        if not self.bidirectional:
            raise ValueError("two_sided needs a filter made with bidirectional=True")
        back, ahead = self(L).chunk(2, dim=0)
        return torch.cat([back[:, :1] + ahead[:, :1], back[:, 1:]], dim=1), ahead[:, 1:]

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"channels={self.channels}, order={self.order}, bidirectional={self.bidirectional}"
