"""The SMPConv layer (Kim and Park 2023, section 3; the authors' `smp/models`)."""

from typing import Any

from .base import LayerCard
from .global_conv import GlobalConv


class SMPConv(GlobalConv):
    """Self-moving point convolution (Kim and Park 2023), with its parallel short one: relu(h * x + h_short * x + b).

    The depthwise form. The authors' code normalises either branch by a batch norm; folded into the taps and the bias,
    as at inference, that is this layer, and the norm in front of it is the block's.

    Args:
        channels: D.
        max_length: the longest sequence, over which the points lie.
        filter: `"smpconv"`, or `{"name": "smpconv", ...}` with its options.
        bidirectional: a second filter has the taps at lags -1, -2, ..., and the short convolution is centred.
        short_kernel: taps of the short convolution; 0 for none.
        activation: see `GlobalConv`.
        dropout: probability of dropping an element after the activation.
        output: `"linear"` (the channels have to be mixed somewhere), `"glu"` or `"none"`.

    Raises:
        ValueError: see `GlobalConv`.
    """

    card = LayerCard(
        title="SMPConv",
        paper="Kim and Park 2023, SMPConv: Self-moving Point Representations for Continuous Convolution",
        url="https://arxiv.org/abs/2304.02330",
        equation="y = W relu(h * x + h_short * x + b), h(t) = mean_i w_i relu(1 - |t - p_i| / r_i)",
        cost="O(L log L)",
    )

    def __init__(
        self,
        channels: int,
        max_length: int | None = None,
        *,
        filter: str | dict[str, Any] = "smpconv",
        bidirectional: bool = False,
        short_kernel: int = 5,
        activation: str = "relu",
        dropout: float = 0.0,
        output: str = "linear",
    ) -> None:
        super().__init__(
            channels,
            max_length,
            filter=filter,
            bidirectional=bidirectional,
            skip=False,
            bias=True,
            short_kernel=short_kernel,
            activation=activation,
            dropout=dropout,
            output=output,
        )
