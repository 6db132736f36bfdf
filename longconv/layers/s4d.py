"""The S4D layer (Gu et al. 2022, "S4D"; the authors' `models/s4/s4d.py`)."""

from typing import Any

from longconv.filters import S4DFilter, S4DReadout

from .base import LayerCard
from .global_conv import GlobalConv


class S4D(GlobalConv):
    """Diagonal state space layer (Gu et al. 2022): a sum of damped exponentials, GELU, dropout of channels, GLU.

    Streams as a recurrence, with a state of N real numbers a channel, whatever the context.

    With `bidirectional` the kernel of the lags -1, -2, ... is one of the same A and dt with a C of its own, as in the
    authors' experiments on the Long Range Arena (`src/models/sequence/kernels/fftconv.py`). For a system of its own in
    each direction, or another filter than S4D, `GlobalConv(..., filter="s4d", bidirectional=True)`.

    Args:
        channels: D.
        max_length: the longest sequence, or None.
        filter: `"s4d"`, or `{"name": "s4d", ...}` with its options.
        bidirectional: see above; the second filter, `long_filters[1]`, is an `S4DReadout`.
        dropout: probability of dropping a channel of a sequence after the GELU.
        tie_dropout: false to drop single elements instead.
        output: `"glu"` or `"linear"`.

    Raises:
        ValueError: see `GlobalConv`.
    """

    card = LayerCard(
        title="S4D",
        paper="Gu et al. 2022, On the Parameterization and Initialization of Diagonal State Space Models",
        url="https://arxiv.org/abs/2206.11893",
        equation="y = glu(W gelu(h * x + D x)), h_t = 2 Re sum_n C_n B_n exp(t dt A_n)",
        cost="O(L log L + N L)",
    )

    def __init__(
        self,
        channels: int,
        max_length: int | None = None,
        *,
        filter: str | dict[str, Any] = "s4d",
        bidirectional: bool = False,
        dropout: float = 0.0,
        tie_dropout: bool = True,
        output: str = "glu",
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
        system = self.long_filters[0]
        if bidirectional and isinstance(system, S4DFilter):
            self.long_filters[1] = S4DReadout(system)
