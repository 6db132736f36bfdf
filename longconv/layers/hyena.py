"""The Hyena operator (Poli et al. 2023, "Hyena Hierarchy: Towards Larger Convolutional Language Models", section 3)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longconv.filters import build_filter
from longconv.functional import hyena_step_
from longconv.kernels.shortconv import short_conv, short_conv_step
from longconv.state import LayerState

from .base import LayerCard, Mixer
from .long_conv import (
    HistoryState,
    RecurrentState,
    init_long_state,
    is_recurrent,
    long_conv,
    long_conv_step,
    long_conv_step_,
    own_state,
    recurrence,
    steps_on_a_copy,
    takes_fused_step,
)


@dataclass
class HyenaState(LayerState):
    """`short`: (B, (n+1) D, K-1) last inputs of the short convolution. `long`: one state per long filter."""

    short: Tensor
    long: tuple[HistoryState | RecurrentState, ...]


class Hyena(Mixer):
    """A recurrence of gates and long convolutions, of order n (equation 4 of the paper):

        x_0, ..., x_{n-1}, v = short_conv(in_proj(x))
        v <- h_i * (x_i v) + skip_i (x_i v)             for i = n-1, ..., 1
        y = out_proj(x_0 v)

    Here `*` is the causal convolution with the long filter of stage i. Stage i = n-1 uses `long_filters[0]`. With
    `bidirectional` every stage has a second filter, of the lags -1, -2, ..., so that lag 0 is counted once; these are
    the second half of `long_filters`, in the same order. The short convolution is centred then (of an even number of
    taps, one more is ahead than behind). The published operator is causal.

    Args:
        channels: D.
        max_length: the longest sequence; may be None if the filter has no limit of its own (`"modal"`).
        order: n >= 2; there are n - 1 long filters.
        filter: of every stage, as `longconv.filters.build_filter` takes it: `"hyena"`, or
            `{"name": "modal", "order": N}` for one that also runs as a recurrence.
        short_kernel: taps of the short depthwise convolution.
        dropout: probability of dropping an element of x_i v.
        bidirectional: see above; there is no state then.

    Raises:
        ValueError: order < 2, short_kernel < 1, or a filter that does not fit.
    """

    card = LayerCard(
        title="Hyena",
        paper="Poli et al. 2023, Hyena Hierarchy: Towards Larger Convolutional Language Models",
        url="https://arxiv.org/abs/2302.10866",
        equation="y = x_0 (h_1 * (x_1 ... (h_(n-1) * (x_(n-1) v))))",
        cost="O(n L log L)",
    )

    def __init__(
        self,
        channels: int,
        max_length: int | None = None,
        *,
        order: int = 2,
        filter: str | dict[str, Any] = "hyena",
        short_kernel: int = 3,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(channels, max_length)
        if order < 2:
            raise ValueError(f"order must be at least 2, got {order}")
        if short_kernel < 1:
            raise ValueError(f"short_kernel must be at least 1, got {short_kernel}")
        self.order, self.causal = order, not bidirectional
        self.in_proj = nn.Linear(channels, (order + 1) * channels)
        self.short_weight = nn.Parameter(torch.empty((order + 1) * channels, short_kernel))
        self.short_bias = nn.Parameter(torch.empty((order + 1) * channels))
        count = (order - 1) * (1 + bidirectional)
        self.long_filters = nn.ModuleList(build_filter(filter, channels, max_length) for _ in range(count))
        self.skip = nn.Parameter(torch.empty(order - 1, channels))
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise this module's own parameters: the short taps as `torch.nn.Conv1d` does, the skip ~ N(0, 1)."""
        bound = self.short_weight.shape[1] ** -0.5
        nn.init.uniform_(self.short_weight, -bound, bound)
        nn.init.uniform_(self.short_bias, -bound, bound)
        nn.init.normal_(self.skip)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        state: HyenaState | None = None,
        return_state: bool = False,
    ) -> Any:
        """Mix a sequence or the next chunk of one; see `Mixer.forward`."""
        mask = self.check_forward(x, mask, cu_seqlens, state, return_state)
        u = self.in_proj(x).mT
        # The projections have biases, so padding is not zero by itself, neither here nor behind the short convolution.
        keep = None if mask is None else mask[:, None]
        u = u if keep is None else u * keep
        short = None if state is None else state.short
        if cu_seqlens is not None or not self.causal:
            padding = "causal" if self.causal else "same"
            u = short_conv(u, self.short_weight, self.short_bias, padding=padding, cu_seqlens=cu_seqlens)
        else:
            u, short = short_conv(u, self.short_weight, self.short_bias, state=short, return_state=True)
        *gates, v = u.chunk(self.order + 1, dim=1)
        dropping = self.training and self.dropout.p > 0
        long: list[Any] = []
        for stage in range(self.order - 1):
            gate = gates[self.order - 1 - stage]
            if keep is not None:
                v = v * keep
            if dropping:
                v = self.dropout(gate * v)
            v, after = long_conv(
                self.long_filters[stage],
                v,
                self.skip[stage],
                reverse=None if self.causal else self.long_filters[self.order - 1 + stage],
                pre_gate=None if dropping else gate,
                post_gate=gates[0] if stage == self.order - 2 else None,
                cu_seqlens=cu_seqlens,
                state=None if state is None else state.long[stage],
                return_state=return_state,
            )
            long.append(after)
        y = self.out_proj(v.mT)
        if not return_state:
            return y
        assert short is not None
        return y, HyenaState((state.position if state is not None else 0) + x.shape[1], short, tuple(long))

    def init_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> HyenaState:
        """Return the state before the first sample; see `Mixer.init_state`. Filters stay on their own device."""
        self.check_causal()
        weight = self.in_proj.weight
        dtype = dtype or weight.dtype
        width, K = self.short_weight.shape
        short = torch.zeros(batch_size, width, K - 1, dtype=dtype, device=device or weight.device)
        return HyenaState(0, short, tuple(init_long_state(filter, batch_size, dtype) for filter in self.long_filters))

    def step(self, x_t: Tensor, state: HyenaState) -> tuple[Tensor, HyenaState]:
        """Mix one sample; see `Mixer.step`.

        O(1) in the context T if the filters are recurrent, else O(log^2 T) amortised, or O(T) with gradients enabled.
        """
        self.check_step(x_t, state)
        if steps_on_a_copy(self._fused):
            inner = own_state(self.long_filters[0], state.long[0])
            own = HyenaState(state.position, state.short.clone(), (inner,))
            return self._advance(x_t, own), own
        u, short = short_conv_step(self.in_proj(x_t), state.short, self.short_weight, self.short_bias)
        *gates, v = u.chunk(self.order + 1, dim=1)
        long = []
        for stage, filter in enumerate(self.long_filters):
            v = self.dropout(gates[self.order - 1 - stage] * v)
            v, after = long_conv_step(filter, v, self.skip[stage], state.long[stage])
            long.append(after)
        return self.out_proj(v * gates[0]), HyenaState(state.position + 1, short, tuple(long))

    @torch.no_grad()
    def step_(self, x_t: Tensor, state: HyenaState) -> Tensor:
        """Mix one sample in place; see `Mixer.step_`. With one filter, all between the projections is `hyena_step_`."""
        self.check_step_(x_t, state)
        return self._advance(x_t, state)

    def _advance(self, x_t: Tensor, state: HyenaState) -> Tensor:
        """Mix one sample in place."""
        u = self.in_proj(x_t)
        if self._fused:
            poles, residues, passthrough, inner, layout = recurrence(self.long_filters[0], state.long[0])
            around = u, state.short, self.short_weight, self.short_bias
            y = hyena_step_(*around, poles, residues, passthrough, self.skip[0], inner, layout)
            state.position += 1
            return self.out_proj(y)
        u, short = short_conv_step(u, state.short, self.short_weight, self.short_bias)
        state.short.copy_(short)
        *gates, v = u.chunk(self.order + 1, dim=1)
        for stage, filter in enumerate(self.long_filters):
            v = self.dropout(gates[self.order - 1 - stage] * v)
            v = long_conv_step_(filter, v, self.skip[stage], state.long[stage])
        state.position += 1
        return self.out_proj(v * gates[0])

    @property
    def _fused(self) -> bool:
        """Whether all between the projections is `hyena_step_`."""
        dropping = self.training and self.dropout.p > 0
        return self.causal and self.order == 2 and not dropping and takes_fused_step(self.long_filters[0])

    @property
    def is_recurrent(self) -> bool:
        """Whether `step` costs the same however long the context is."""
        return self.causal and all(is_recurrent(filter) for filter in self.long_filters)

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        sizes = f"channels={self.channels}, order={self.order}, max_length={self.max_length}"
        return sizes if self.causal else f"{sizes}, bidirectional=True"
