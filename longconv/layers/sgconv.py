"""The SGConv layer (Li et al. 2022, section 3; the authors' `gconv_standalone.py`)."""

from typing import Any

import torch

from longconv.filters import SGConvFilter

from .base import LayerCard
from .global_conv import GlobalConv


class SGConv(GlobalConv):
    """Structured global convolution (Li et al. 2022): multi-scale taps, GELU, dropout of channels, linear or GLU.

    As the authors' code has it: D ~ N(0, 1), the output projection with PyTorch's initialisation and no weight decay of
    its bias, dropout tied over time. With `kernel_init="cos"` the kernels of both directions begin as the same one. (A
    `"learnable"` decay is one for both directions in their code, and one for each here; no published recipe has it.)

    Args:
        channels: D.
        max_length: the longest sequence, which sets the number of scales.
        filter: `"sgconv"`, or `{"name": "sgconv", ...}` with its options.
        bidirectional: a second kernel of the same form has the taps at lags -1, -2, ...
        dropout: probability of dropping a channel of a sequence after the GELU.
        tie_dropout: false to drop single elements instead.
        output: `"linear"`, or `"glu"` (the code's `postact="glu"`).

    Raises:
        ValueError: see `GlobalConv`.
    """

    card = LayerCard(
        title="SGConv",
        paper="Li et al. 2022, What Makes Convolutional Models Great on Long Sequence Modeling?",
        url="https://arxiv.org/abs/2210.09298",
        equation="y = W gelu(h * x + D x), h = cat_i(alpha^i interpolate(w_i)) / Z",
        cost="O(L log L)",
    )

    def __init__(
        self,
        channels: int,
        max_length: int | None = None,
        *,
        filter: str | dict[str, Any] = "sgconv",
        bidirectional: bool = False,
        dropout: float = 0.0,
        tie_dropout: bool = True,
        output: str = "linear",
    ) -> None:
        super().__init__(
            channels,
            max_length,
            filter=filter,
            bidirectional=bidirectional,
            dropout=dropout,
            tie_dropout=tie_dropout,
            output=output,
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """See `GlobalConv.reset_parameters`."""
        super().reset_parameters()
        behind, *ahead = self.long_filters
        for filter in ahead:
            if isinstance(behind, SGConvFilter) and isinstance(filter, SGConvFilter) and behind.kernel_init == "cos":
                filter.kernels.copy_(behind.kernels)
        if self.out_proj is not None:
            self.out_proj.bias._optim = {"weight_decay": 0.0}  # type: ignore[attr-defined]
