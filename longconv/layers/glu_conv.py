"""What LightConv and DynamicConv share (Wu et al. 2019, figure 2): projections with a GLU around a convolution."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longconv.state import LayerState

from .base import Mixer


@dataclass
class GLUConvState(LayerState):
    """`inputs` (B, C, K-1): the convolution's last. `real` (B, K-1): which of them are samples, if that matters."""

    inputs: Tensor
    real: Tensor | None = None


class GLUConv(Mixer):
    """`y = out_proj(conv(glu(in_proj(x))))`, for a convolution of K taps shared by the channels of each of H heads.

    A subclass defines `_convolve`. Tap s of K multiplies the input s steps back, or s - K // 2 steps back if
    bidirectional: an odd number of taps is centred, and of an even number the extra one looks ahead.

    Args:
        channels: D.
        max_length: the longest sequence; None for no limit.
        kernel_size: K.
        num_heads: H; head h has channels h C/H ... (h+1) C/H - 1.
        conv_channels: C, of the convolution; default D.
        glu: in_proj has 2C outputs, of which the second half gates the first; otherwise C, without an activation.
        weight_softmax: taps are normalised by a softmax over K.
        weight_dropout: DropConnect, the probability of dropping a (normalised) tap.
        input_dropout: probability of dropping an element of x.
        conv_bias: whether the convolution has a bias (C,).
        bidirectional: see above.

    Raises:
        ValueError: kernel_size < 1, or heads that do not divide the convolution's channels.
    """

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
        super().__init__(channels, max_length)
        C = channels if conv_channels is None else conv_channels
        if kernel_size < 1:
            raise ValueError(f"kernel_size must be at least 1, got {kernel_size}")
        if num_heads < 1 or C < 1 or C % num_heads:
            raise ValueError(f"num_heads must divide the convolution's {C} channels, got {num_heads}")
        self.kernel_size, self.num_heads, self.conv_channels, self.glu = kernel_size, num_heads, C, glu
        self.weight_softmax, self.causal = weight_softmax, not bidirectional
        self.input_dropout, self.weight_dropout = nn.Dropout(input_dropout), nn.Dropout(weight_dropout)
        self.in_proj = nn.Linear(channels, (1 + glu) * C)
        self.conv_bias = nn.Parameter(torch.empty(C)) if conv_bias else None
        self.out_proj = nn.Linear(C, channels)

    def reset_parameters(self) -> None:
        """Initialise as published: projections Xavier-uniform, biases zero."""
        for linear in (self.in_proj, self.out_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        if self.conv_bias is not None:
            nn.init.zeros_(self.conv_bias)

    def _convolve(
        self,
        u: Tensor,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        state: GLUConvState | None,
        return_state: bool,
    ) -> tuple[Tensor, GLUConvState | None]:
        """Convolve u (B, L, C), zero where it is padded, to (B, L, C), and make the state after it if asked to."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        state: GLUConvState | None = None,
        return_state: bool = False,
    ) -> Any:
        """Mix a sequence or the next chunk of one; see `Mixer.forward`."""
        mask = self.check_forward(x, mask, cu_seqlens, state, return_state)
        u = self._project(x)
        if mask is not None:  # the projection has a bias, so padding is not zero by itself
            u = u * mask[..., None]
        u, after = self._convolve(u, mask, cu_seqlens, state, return_state)
        y = self.out_proj(u)
        return (y, after) if return_state else y

    def _project(self, x: Tensor) -> Tensor:
        u = self.in_proj(self.input_dropout(x))
        return F.glu(u) if self.glu else u

    def init_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> GLUConvState:
        """Return the state before the first sample; see `Mixer.init_state`."""
        self.check_causal()
        weight = self.in_proj.weight
        shape = (batch_size, self.conv_channels, self.kernel_size - 1)
        return GLUConvState(0, torch.zeros(shape, dtype=dtype or weight.dtype, device=device or weight.device))

    @property
    def ahead(self) -> int:
        """How many of the K taps are later than the output."""
        return 0 if self.causal else self.kernel_size // 2

    @property
    def receptive_field(self) -> int:
        """K."""
        return self.kernel_size

    @property
    def lookahead(self) -> int:
        """0, or K // 2 if bidirectional."""
        return self.ahead

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        sizes = f"channels={self.channels}, kernel_size={self.kernel_size}, num_heads={self.num_heads}"
        return sizes if self.causal else f"{sizes}, bidirectional=True"
