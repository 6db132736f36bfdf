"""MEGA (Ma et al. 2022, "Mega: Moving Average Equipped Gated Attention")."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longconv.filters import Filter, build_filter
from longconv.functional import fft_conv

from .base import LayerCard, packed_lengths
from .gated_attention import GatedAttention
from .long_conv import init_long_state, long_conv, long_conv_step, support, taps


class TruncatedFilter(Filter):
    """The first `count` taps of another filter, and no more; so it is no longer a recurrence."""

    def __init__(self, filter: nn.Module, count: int, channels: int) -> None:
        super().__init__()
        self.filter, self.count, self.channels = filter, count, channels
        self.max_length = getattr(filter, "max_length", None)

    @property
    def support(self) -> int:
        """The number of taps."""
        return self.count

    def forward(self, L: int) -> Tensor:
        """Return the first `L` taps, (channels, L)."""
        taps: Tensor = self.filter(min(L, self.count))
        return F.pad(taps, (0, L - taps.shape[1]))

    def extra_repr(self) -> str:
        """The number of taps, for `print(model)`."""
        return f"count={self.count}"


class Mega(GatedAttention):
    """Gated attention in chunks over a damped exponential moving average of the input:

        mx = silu(ema(x) + omega x),    y = u (h - x)    with u and h from mx and x as in `gated_attention`

    ema is the convolution with `long_filters[0]` (`DampedEMA`). With `bidirectional` the moving average of
    the reversed sequence is added, that of `long_filters[1]`; both contain the present.

    Only the current chunk is attended to, the moving average alone carries what was before it. The stream of a causal
    layer is exact for any sizes of the pieces, which have nothing to do with `chunk_size`; so is a sequence that is not
    a multiple of it (the published code pads it).

    The state takes N numbers per channel and at most C - 1 keys and values.

    Options as in `GatedAttention`, and:

    Args:
        ndim: N, the dimensions of the moving average.
        truncation: the taps of the moving average, if it is to be cut off; None for all. The published code cuts it
            off in parallel but not in steps; here both.
        filter: another filter in place of the moving average, as `longconv.filters.build_filter` takes it, and with all
            its taps: in place of a truncated moving average too.

    Raises:
        ValueError: a size or a name that does not fit.
    """

    card = LayerCard(
        title="MEGA",
        paper="Ma et al. 2022, Mega: Moving Average Equipped Gated Attention",
        url="https://arxiv.org/abs/2209.10655",
        equation="y = u (silu(W_h mx + U_h (r attention(mx, x))) - x), mx = silu(ema * x + omega x)",
        cost="O(L log L + C L)",
    )

    def __init__(
        self,
        channels: int,
        max_length: int | None = None,
        *,
        ndim: int = 16,
        filter: str | dict[str, Any] | None = None,
        truncation: int | None = None,
        zdim: int | None = None,
        hdim: int | None = None,
        chunk_size: int | None = None,
        attention_activation: str = "softmax",
        rel_pos_bias: str = "rotary",
        norm: str | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        feature_dropout: bool = False,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(
            channels,
            max_length,
            zdim=zdim,
            hdim=hdim,
            chunk_size=chunk_size,
            attention_activation=attention_activation,
            rel_pos_bias=rel_pos_bias,
            norm=norm,
            dropout=dropout,
            attention_dropout=attention_dropout,
            hidden_dropout=hidden_dropout,
            feature_dropout=feature_dropout,
            bidirectional=bidirectional,
        )
        if truncation is not None and truncation < 1:
            raise ValueError(f"truncation must be at least 1, or None, got {truncation}")
        for _ in range(1 + bidirectional):
            ema = build_filter(filter or {"name": "ema", "order": ndim}, channels, max_length)
            if truncation is not None and filter is None:
                ema = TruncatedFilter(ema, truncation, channels)
            self.long_filters.append(ema)
        self.omega = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: see `GatedAttention`; omega ~ N(0, 1)."""
        super().reset_parameters()
        nn.init.normal_(self.omega)

    def _summarise(
        self, x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, state: Any, return_state: bool
    ) -> tuple[Tensor, Any]:
        filter = self.long_filters[0]
        if self.causal:
            y, state = long_conv(
                filter, x.mT, self.omega, cu_seqlens=cu_seqlens, state=state, return_state=return_state
            )
            return F.silu(y.mT.contiguous()), state
        longest = x.shape[1] if cu_seqlens is None else max(packed_lengths(cu_seqlens, x.shape[1]))
        back, ahead = (taps(each, longest) for each in self.long_filters)
        reverse = F.pad(ahead, (0, 1))[:, 1:]  # never empty, for graphs of every length
        y = fft_conv(x.mT, back, skip=self.omega + ahead[:, 0], k_reverse=reverse, cu_seqlens=cu_seqlens)
        return F.silu(y.mT.contiguous()), None

    def _summary_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Any:
        return init_long_state(self.long_filters[0], batch_size, dtype)

    def _summary_step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = long_conv_step(self.long_filters[0], x_t, self.omega, state)
        return F.silu(y), state

    @property
    def receptive_field(self) -> int | None:
        """What the filters, if they have an end (`truncation`), let the samples of a chunk see; None without chunks."""
        reach = self._reach
        return None if reach is None else self._field(reach, 0 if self.causal else reach)

    @property
    def lookahead(self) -> int | None:
        """0 if causal; else the rest of the chunk and what the filters let its last sample see."""
        if self.causal:
            return 0
        C, reach = self.attention.chunk_size, self._reach
        return None if C is None or reach is None else C - 1 + reach

    @property
    def _reach(self) -> int | None:
        """How far the filters reach, on one side."""
        counts = [support(filter) for filter in self.long_filters]
        return None if None in counts else max(count for count in counts if count is not None) - 1
