"""The layer around one long filter: convolution, skip, activation, dropout, output projection.

    y = out(dropout(activation(h * x + skip x)))

Papers that propose a filter put it in this layer, each with its own choices: `SGConv`, `S4D` and `SMPConv` are those.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longconv.filters import build_filter
from longconv.functional import modal_step_
from longconv.kernels.shortconv import short_conv, short_conv_step
from longconv.state import LayerState

from .base import LayerCard, Mixer
from .long_conv import (
    HistoryState,
    RecurrentState,
    dense_kernel,
    init_long_state,
    is_recurrent,
    long_conv,
    long_conv_step,
    long_conv_step_,
    own_state,
    recurrence,
    steps_on_a_copy,
    support,
    takes_fused_step,
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "relu": F.relu,
    "none": lambda x: x,
}
OUTPUTS = ("linear", "glu", "none")


@dataclass
class GlobalConvState(LayerState):
    """`long`: of the long filter. `short`: (B, D, K-1) last inputs of the short one, or None without."""

    long: HistoryState | RecurrentState
    short: Tensor | None = None


class GlobalConv(Mixer):
    """One depthwise long convolution with everything pointwise around it:

        z = h * x + skip x [+ h_short * x] [+ bias]
        y = out(dropout(activation(z)))

    `out` is a linear map of the channels, or one to 2D channels and a gated linear unit (a sigmoid(b)), or nothing.
    The defaults are the long convolution of Fu et al. 2023, section 3: free-form taps, GELU, GLU.

    Args:
        channels: D.
        max_length: the longest sequence; may be None if the filter has no limit of its own.
        filter: as `longconv.filters.build_filter` takes it.
        bidirectional: a second filter of the same kind (`long_filters[1]`) has the taps at lags -1, -2, ...
        skip: whether the input itself has a weight for each channel, ~ N(0, 1).
        bias: whether a trainable constant for each channel is added before the activation.
        short_kernel: taps of a second, short convolution of the input, which is added (centred if bidirectional);
            0 for none.
        activation: `"gelu"`, `"silu"`, `"relu"` or `"none"`.
        dropout: probability of dropping an element after the activation,
        tie_dropout: or of dropping a channel of a sequence at all times.
        output: `"linear"`, `"glu"` or `"none"`.

    Raises:
        ValueError: a value that is none of these, or a filter that does not fit.
    """

    card = LayerCard(
        title="Long convolution",
        paper="Fu et al. 2023, Simple Hardware-Efficient Long Convolutions for Sequence Modeling",
        url="https://arxiv.org/abs/2302.06646",
        equation="y = out(act(h * x + skip x))",
        cost="O(L log L)",
    )

    def __init__(
        self,
        channels: int,
        max_length: int | None = None,
        *,
        filter: str | dict[str, Any] = "freeform",
        bidirectional: bool = False,
        skip: bool = True,
        bias: bool = False,
        short_kernel: int = 0,
        activation: str = "gelu",
        dropout: float = 0.0,
        tie_dropout: bool = False,
        output: str = "glu",
    ) -> None:
        super().__init__(channels, max_length)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {output!r}")
        if short_kernel < 0:
            raise ValueError(f"short_kernel must be at least 0, got {short_kernel}")
        self.causal = not bidirectional
        self.activation, self.tie_dropout, self.output = activation, tie_dropout, output
        self.long_filters = nn.ModuleList(build_filter(filter, channels, max_length) for _ in range(1 + bidirectional))
        self.skip = nn.Parameter(torch.empty(channels)) if skip else None
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.short_weight = nn.Parameter(torch.empty(channels, short_kernel)) if short_kernel else None
        self.dropout = nn.Dropout(dropout)
        self.out_proj = None if output == "none" else nn.Linear(channels, (1 + (output == "glu")) * channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all but the filters: skip ~ N(0, 1), bias 0, short taps ~ N(0, 0.02), `out` as `nn.Linear`."""
        if self.skip is not None:
            nn.init.normal_(self.skip)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if self.short_weight is not None:
            nn.init.trunc_normal_(self.short_weight, std=0.02)
        if self.out_proj is not None:
            self.out_proj.reset_parameters()

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        state: GlobalConvState | None = None,
        return_state: bool = False,
    ) -> Any:
        """Mix a sequence or the next chunk of one; see `Mixer.forward`."""
        mask = self.check_forward(x, mask, cu_seqlens, state, return_state)
        u = (x if mask is None else x * mask[..., None]).mT
        z, long = long_conv(
            self.long_filters[0],
            u,
            self.skip,
            reverse=None if self.causal else self.long_filters[1],
            cu_seqlens=cu_seqlens,
            state=None if state is None else state.long,
            return_state=return_state,
        )
        short = None
        if self.short_weight is not None:
            near, short = self._short(u, cu_seqlens, state, return_state)
            z = z + near
        # Copied before, not by, the output projection: elementwise gradients of mixed strides are slow on a CPU.
        y = self._pointwise(z.mT.contiguous())
        if not return_state:
            return y
        assert long is not None
        return y, GlobalConvState((state.position if state is not None else 0) + x.shape[1], long, short)

    def init_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> GlobalConvState:
        """Return the state before the first sample; see `Mixer.init_state`. Filters stay on their own device."""
        self.check_causal()
        own = next((p for p in (self.skip, self.short_weight) if p is not None), next(self.parameters()))
        dtype, device = dtype or own.dtype, device or own.device
        short = None
        if self.short_weight is not None:
            short = torch.zeros(batch_size, self.channels, self.short_weight.shape[1] - 1, dtype=dtype, device=device)
        return GlobalConvState(0, init_long_state(self.long_filters[0], batch_size, dtype), short)

    def step(self, x_t: Tensor, state: GlobalConvState) -> tuple[Tensor, GlobalConvState]:
        """Mix one sample; see `Mixer.step`.

        O(1) in the context T if the filter is recurrent, else O(log^2 T) amortised, or O(T) with gradients enabled,
        where a filter of K taps has T = K at most.
        """
        self.check_step(x_t, state)
        if steps_on_a_copy(self._fused):
            own = GlobalConvState(state.position, own_state(self.long_filters[0], state.long))
            return self._advance(x_t, own), own
        z, long = long_conv_step(self.long_filters[0], x_t, self.skip, state.long)
        short = state.short
        if self.short_weight is not None:
            assert short is not None
            near, short = short_conv_step(x_t, short, self.short_weight)
            z = z + near
        return self._pointwise(z[:, None])[:, 0], GlobalConvState(state.position + 1, long, short)

    @torch.no_grad()
    def step_(self, x_t: Tensor, state: GlobalConvState) -> Tensor:
        """Mix one sample in place; see `Mixer.step_`. Without a short convolution, `modal_step_` and the projection."""
        self.check_step_(x_t, state)
        return self._advance(x_t, state)

    def _advance(self, x_t: Tensor, state: GlobalConvState) -> Tensor:
        """Mix one sample in place."""
        if self._fused:
            poles, residues, passthrough, inner, layout = recurrence(self.long_filters[0], state.long)
            modes = x_t, poles, residues, passthrough, inner, layout
            activation = None if self.activation == "none" else self.activation
            z = modal_step_(*modes, skip=self.skip, bias=self.bias, activation=activation)
            state.position += 1
            return self._project(z)
        z = long_conv_step_(self.long_filters[0], x_t, self.skip, state.long)
        if self.short_weight is not None:
            assert state.short is not None
            near, short = short_conv_step(x_t, state.short, self.short_weight)
            state.short.copy_(short)
            z = z + near
        state.position += 1
        return self._pointwise(z[:, None])[:, 0]

    def _short(
        self, u: Tensor, cu_seqlens: Tensor | None, state: GlobalConvState | None, return_state: bool
    ) -> tuple[Tensor, Tensor | None]:
        assert self.short_weight is not None
        if not return_state and state is None:
            padding = "causal" if self.causal else "same"
            return short_conv(u, self.short_weight, padding=padding, cu_seqlens=cu_seqlens), None
        return short_conv(u, self.short_weight, state=None if state is None else state.short, return_state=True)

    def _pointwise(self, z: Tensor) -> Tensor:
        """What follows the convolutions: z (B, L, D) -> y (B, L, D)."""
        if self.bias is not None:
            z = z + self.bias.to(z.dtype)
        z = ACTIVATIONS[self.activation](z)
        return self._project(z * self.dropout(torch.ones_like(z[:, :1])) if self.tie_dropout else self.dropout(z))

    def _project(self, z: Tensor) -> Tensor:
        """What follows the dropout: z (..., D) -> y (..., D)."""
        if self.out_proj is None:
            return z
        z = self.out_proj(z)
        return F.glu(z, dim=-1) if self.output == "glu" else z

    @property
    def _fused(self) -> bool:
        """Whether all before the output projection is `modal_step_`."""
        dropping = self.training and self.dropout.p > 0
        alone = self.causal and self.short_weight is None and not dropping
        return alone and takes_fused_step(self.long_filters[0])

    @property
    def _short_sides(self) -> tuple[int, int]:
        """The latest lag of the short convolution and its earliest, as numbers of samples back and ahead."""
        K = 0 if self.short_weight is None else self.short_weight.shape[1]
        ahead = 0 if self.causal else K // 2
        return max(K - 1 - ahead, 0), ahead

    @property
    def receptive_field(self) -> int | None:
        """See `Mixer.receptive_field`: finite if every filter has a fixed number of taps."""
        back, ahead = support(self.long_filters[0]), self.lookahead
        if back is None or ahead is None:
            return None
        return max(back - 1, self._short_sides[0]) + 1 + ahead

    @property
    def lookahead(self) -> int | None:
        """See `Mixer.lookahead`."""
        if self.causal:
            return 0
        ahead = support(self.long_filters[1])
        return None if ahead is None else max(ahead, self._short_sides[1])

    def kernel(self, L: int) -> Tensor:
        """See `Mixer.kernel`: what comes before the bias and the activation."""
        kernel = dense_kernel(self.long_filters[0], L, self.skip, None if self.causal else self.long_filters[1])
        if self.short_weight is None:
            return kernel
        impulse = kernel.new_zeros(1, self.channels, L if self.causal else 2 * L - 1)
        impulse[..., 0 if self.causal else L - 1] = 1
        near = short_conv(impulse, self.short_weight, padding="causal" if self.causal else "same")
        return kernel + near[0].to(kernel.dtype)

    @property
    def is_recurrent(self) -> bool:
        """Whether `step` costs the same however long the context is."""
        return self.causal and is_recurrent(self.long_filters[0])

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        sides = "" if self.causal else ", bidirectional=True"
        shape = f"channels={self.channels}, max_length={self.max_length}"
        return f"{shape}, activation={self.activation!r}, output={self.output!r}{sides}"
