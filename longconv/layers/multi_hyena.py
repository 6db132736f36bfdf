"""MultiHyena (Massaroli et al. 2023, "Laughing Hyena Distillery", section 4): Hyena of order 2 with heads.

Shapes: B batch, L samples, D channels in M heads of N = D / M; d and e index the channels of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longconv.filters import build_filter
from longconv.functional import multi_hyena_step_
from longconv.kernels.shortconv import short_conv, short_conv_step
from longconv.state import LayerState, map_tensors

from .base import LayerCard, Mixer, for_each_sequence
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
class MultiHyenaState(LayerState):
    """`short`: (B, 3 D, K-1) last inputs of the short convolution. `long`: of the filters, in B N^2 rows (b, d, e)."""

    short: Tensor
    long: HistoryState | RecurrentState
    pairs: int

    def index_select(self, rows: Tensor) -> "MultiHyenaState":
        """See `LayerState.index_select`."""
        return self._by_row(lambda t: t.index_select(0, rows))

    def batch_repeat_interleave(self, repeats: int) -> "MultiHyenaState":
        """See `LayerState.batch_repeat_interleave`."""
        return self._by_row(lambda t: t.repeat_interleave(repeats, 0))

    def _by_row(self, fn: Callable[[Tensor], Tensor]) -> "MultiHyenaState":
        long = map_tensors(self.long, lambda t: fn(t.unflatten(0, (-1, self.pairs))).flatten(0, 1))
        return MultiHyenaState(self.position, fn(self.short), long, self.pairs)


class MultiHyena(Mixer):
    """One long filter for a head of N channels, through which the outer products of keys and values go:

        q, k, v = short_conv(in_proj(x)),   each in M heads of N channels
        z_t = k_t v_t^T                     (N, N), for every head
        y_t = (h * z + skip z)_t^T q_t      i.e. y_e = sum_d q_d (h * (k_d v_e) + skip k_d v_e)
        y = out_proj(y)

    M filters instead of D, so distillation has N times fewer; D N convolutions instead of D. With one channel a head
    (N = 1) it is Hyena of order 2. Memory: the products, B D N L numbers.

    The public codes (the MultiHyena of athms/mad-lab and NVIDIA/NeMo) call N "num_heads", and their projections are
    q, v, k in this order.

    Args:
        channels: D.
        max_length: the longest sequence; may be None if the filter has no limit of its own.
        num_heads: M, which divides D.
        filter: of all heads, as `longconv.filters.build_filter` takes it, with M channels.
        short_kernel: taps of the short depthwise convolution.
        bidirectional: a second filter (`long_filters[1]`) has the lags -1, -2, ..., and the short convolution is
            centred (of an even number of taps, one more is ahead than behind); there is no state then.

    Raises:
        ValueError: the channels do not split into heads, short_kernel < 1, or a filter that does not fit.
    """

    card = LayerCard(
        title="MultiHyena",
        paper="Massaroli et al. 2023, Laughing Hyena Distillery: Extracting Compact Recurrences From Convolutions",
        url="https://arxiv.org/abs/2310.18780",
        equation="y_t = (h_m * (k v^T))_t^T q_t, for every head m of N channels",
        cost="O(N L log L)",
    )

    def __init__(
        self,
        channels: int,
        max_length: int | None = None,
        *,
        num_heads: int = 8,
        filter: str | dict[str, Any] = "hyena",
        short_kernel: int = 3,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(channels, max_length)
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f"num_heads must divide channels = {channels}, got {num_heads}")
        if short_kernel < 1:
            raise ValueError(f"short_kernel must be at least 1, got {short_kernel}")
        self.num_heads, self.head_dim = num_heads, channels // num_heads
        self.causal = not bidirectional
        self.in_proj = nn.Linear(channels, 3 * channels)
        self.short_weight = nn.Parameter(torch.empty(3 * channels, short_kernel))
        self.short_bias = nn.Parameter(torch.empty(3 * channels))
        self.long_filters = nn.ModuleList(build_filter(filter, num_heads, max_length) for _ in range(1 + bidirectional))
        self.skip = nn.Parameter(torch.empty(num_heads))
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
        state: MultiHyenaState | None = None,
        return_state: bool = False,
    ) -> Any:
        """Mix a sequence or the next chunk of one; see `Mixer.forward`. Packed sequences go one after the other."""
        mask = self.check_forward(x, mask, cu_seqlens, state, return_state)
        if cu_seqlens is not None:
            return for_each_sequence(self.forward, x, cu_seqlens)
        u = self.in_proj(x).mT
        # The projections have biases, so padding is not zero by itself, neither here nor behind the short convolution.
        u = u if mask is None else u * mask[:, None]
        short = None if state is None else state.short
        if self.causal:
            u, short = short_conv(u, self.short_weight, self.short_bias, state=short, return_state=True)
        else:
            u = short_conv(u, self.short_weight, self.short_bias, padding="same")
        u = u if mask is None else u * mask[:, None]
        q, z = self._products(u)
        z, long = long_conv(
            self.long_filters[0],
            z,
            self.skip,
            reverse=None if self.causal else self.long_filters[1],
            state=None if state is None else state.long,
            return_state=return_state,
        )
        y = self.out_proj(self._contract(q, z).mT)
        if not return_state:
            return y
        assert long is not None
        assert short is not None
        position = (state.position if state is not None else 0) + x.shape[1]
        return y, MultiHyenaState(position, short, long, self.head_dim**2)

    def init_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> MultiHyenaState:
        """Return the state before the first sample; see `Mixer.init_state`. Filters stay on their own device."""
        self.check_causal()
        weight, pairs = self.in_proj.weight, self.head_dim**2
        dtype = dtype or weight.dtype
        width, K = self.short_weight.shape
        short = torch.zeros(batch_size, width, K - 1, dtype=dtype, device=device or weight.device)
        return MultiHyenaState(0, short, init_long_state(self.long_filters[0], batch_size * pairs, dtype), pairs)

    def step(self, x_t: Tensor, state: MultiHyenaState) -> tuple[Tensor, MultiHyenaState]:
        """Mix one sample; see `Mixer.step`.

        O(1) in the context T if the filter is recurrent, else O(log^2 T) amortised, or O(T) with gradients enabled.
        """
        self.check_step(x_t, state)
        if steps_on_a_copy(self._fused):
            inner = own_state(self.long_filters[0], state.long)
            own = MultiHyenaState(state.position, state.short.clone(), inner, state.pairs)
            return self._advance(x_t, own), own
        u, short = short_conv_step(self.in_proj(x_t), state.short, self.short_weight, self.short_bias)
        q, z = self._products(u[..., None])
        z_t, long = long_conv_step(self.long_filters[0], z[..., 0], self.skip, state.long)
        y = self._contract(q, z_t[..., None])[..., 0]
        return self.out_proj(y), MultiHyenaState(state.position + 1, short, long, state.pairs)

    @torch.no_grad()
    def step_(self, x_t: Tensor, state: MultiHyenaState) -> Tensor:
        """Mix one sample in place; see `Mixer.step_`. All between the projections is `multi_hyena_step_`."""
        self.check_step_(x_t, state)
        return self._advance(x_t, state)

    def _advance(self, x_t: Tensor, state: MultiHyenaState) -> Tensor:
        """Mix one sample in place."""
        u = self.in_proj(x_t)
        if self._fused:
            poles, residues, passthrough, inner, layout = recurrence(self.long_filters[0], state.long)
            around = u, state.short, self.short_weight, self.short_bias
            y = multi_hyena_step_(*around, poles, residues, passthrough, self.skip, inner, layout)
            state.position += 1
            return self.out_proj(y)
        u, short = short_conv_step(u, state.short, self.short_weight, self.short_bias)
        state.short.copy_(short)
        q, z = self._products(u[..., None])
        z_t = long_conv_step_(self.long_filters[0], z[..., 0], self.skip, state.long)
        state.position += 1
        return self.out_proj(self._contract(q, z_t[..., None])[..., 0])

    def _products(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """From u (B, 3 D, L): the queries (B, N, 1, M, L), and k_d v_e in rows (b, d, e): (B N N, M, L)."""
        q, k, v = u.unflatten(1, (3, self.num_heads, self.head_dim)).transpose(2, 3).unbind(1)  # (B, N, M, L) each
        return q[:, :, None], (k[:, :, None] * v[:, None]).flatten(0, 2)

    def _contract(self, q: Tensor, z: Tensor) -> Tensor:
        """Sum over d: q (B, N, 1, M, L), z (B N N, M, L) -> (B, D, L)."""
        z = z.unflatten(0, (-1, self.head_dim, self.head_dim))
        return (q * z).sum(1).transpose(1, 2).flatten(1, 2)

    @property
    def state_copies(self) -> int:
        """See `Mixer.state_copies`: N^2, one for each product of a key's channel and a value's."""
        return self.head_dim**2

    @property
    def _fused(self) -> bool:
        """Whether all between the projections is `multi_hyena_step_`."""
        return self.causal and takes_fused_step(self.long_filters[0])

    @property
    def is_recurrent(self) -> bool:
        """Whether `step` costs the same however long the context is."""
        return self.causal and is_recurrent(self.long_filters[0])

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        sizes = f"channels={self.channels}, num_heads={self.num_heads}, max_length={self.max_length}"
        return sizes if self.causal else f"{sizes}, bidirectional=True"
