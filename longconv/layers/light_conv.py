"""LightConv (Wu et al. 2019, "Pay Less Attention with Lightweight and Dynamic Convolutions", section 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longconv.kernels.shortconv import short_conv, short_conv_step

from .base import LayerCard
from .glu_conv import GLUConv, GLUConvState


class LightConv(GLUConv):
    """`y = out_proj(conv(glu(in_proj(x))))` with a depthwise convolution whose H K taps all channels of a head share:

        conv(u)_{c,t} = sum_{s=0}^{K-1} softmax(weight_{h(c)})_s u_{c, t+a-s},    a = 0, or K // 2 if bidirectional

    Near the ends of a sequence taps that fall outside find zeros, and the others are not normalised again. Taps are
    dropped (`weight_dropout`) for a whole call, as in the paper.

    Options as in `GLUConv`; `weight` (H, K) holds the taps before the softmax, lag -a first.
    """

    card = LayerCard(
        title="LightConv",
        paper="Wu et al. 2019, Pay Less Attention with Lightweight and Dynamic Convolutions",
        url="https://arxiv.org/abs/1901.10430",
        equation="y = W_o (softmax(w_head) * GLU(W_i x))",
        cost="O(K L)",
    )

    def __init__(
        self,
        channels: int,
        max_length: int | None = None,
        *,
        kernel_size: int = 31,
        num_heads: int = 8,
        conv_channels: int | None = None,
        glu: bool = True,
        weight_softmax: bool = True,
        weight_dropout: float = 0.0,
        input_dropout: float = 0.0,
        conv_bias: bool = False,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(
            channels,
            max_length,
            kernel_size=kernel_size,
            num_heads=num_heads,
            conv_channels=conv_channels,
            glu=glu,
            weight_softmax=weight_softmax,
            weight_dropout=weight_dropout,
            input_dropout=input_dropout,
            conv_bias=conv_bias,
            bidirectional=bidirectional,
        )
        self.weight = nn.Parameter(torch.empty(num_heads, kernel_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: everything Xavier-uniform (the taps as a (H, 1, K) convolution), biases zero."""
        super().reset_parameters()
        bound = (6 / ((1 + self.num_heads) * self.kernel_size)) ** 0.5
        nn.init.uniform_(self.weight, -bound, bound)

    @property
    def taps(self) -> Tensor:
        """The taps of every head after the softmax (H, K), float32 at least."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        return weight.softmax(-1) if self.weight_softmax else weight

    def kernel(self, L: int) -> Tensor:
        """The convolution between the projections (C, L), or (C, 2L - 1) if bidirectional; see `Mixer.kernel`.

        The layer is `out_proj(kernel * glu(in_proj(x)) + conv_bias)`, when nothing is dropped.
        """
        behind = self.kernel_size - 1 - self.ahead
        before = 0 if self.causal else L - 1 - self.ahead
        return F.pad(self._of_channels(self.taps), (before, L - 1 - behind))  # crops where that is negative

    def _of_channels(self, taps: Tensor) -> Tensor:
        return taps.repeat_interleave(self.conv_channels // self.num_heads, dim=0)

    def _convolve(
        self,
        u: Tensor,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        state: GLUConvState | None,
        return_state: bool,
    ) -> tuple[Tensor, GLUConvState | None]:
        taps, bias = self._of_channels(self.weight_dropout(self.taps)), self.conv_bias
        if not self.causal or cu_seqlens is not None:
            padding = "causal" if self.causal else "same"
            return short_conv(u.mT, taps, bias, padding=padding, cu_seqlens=cu_seqlens).mT, None
        inputs = None if state is None else state.inputs
        y, inputs = short_conv(u.mT, taps, bias, state=inputs, return_state=True)
        return y.mT, GLUConvState((0 if state is None else state.position) + u.shape[1], inputs)

    def step(self, x_t: Tensor, state: GLUConvState) -> tuple[Tensor, GLUConvState]:
        """Mix one sample; see `Mixer.step`. O(K)."""
        self.check_step(x_t, state)
        taps = self._of_channels(self.weight_dropout(self.taps))
        u, inputs = short_conv_step(self._project(x_t), state.inputs, taps, self.conv_bias)
        return self.out_proj(u), GLUConvState(state.position + 1, inputs)
