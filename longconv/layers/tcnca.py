"""TCNCA (Terzic et al. 2023, "TCNCA: Temporal Convolution Network with Chunked Attention for Scalable Sequence
Processing"), of which no code was published.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longconv.functional import DelayLines, dilated_conv

from .base import LayerCard
from .gated_attention import GatedAttention


class TCNCA(GatedAttention):
    """MEGA with a temporal convolutional network in place of its moving average:

        a_0 = x,  a_{i+1} = a_i + silu(conv_i(a_i)),  i < n,    mx = silu(a_n)
        y = u (h - x)    with u and h from mx and x as in `gated_attention`

    conv_i is depthwise, with K taps f^i samples apart and a bias. The paper does not say what is in a block of its
    network; this is the least that makes a TCN of it (Bai et al. 2018), with a residual that also does what omega x
    does in MEGA. mx sees 1 + (K-1) (f^n - 1) / (f - 1) inputs: with f = K, the default, these are K^n, each reached in
    one way; with f > K some lags are left out, since the paths of taps do not reach them.

    Causal, or with `bidirectional` centred: an odd reach (K-1) f^i has one sample more ahead than behind.

    The state takes the (K-1) (f^n - 1) / (f - 1) last samples of each channel and at most C - 1 keys and values.

    Options as in `GatedAttention`, and:

    Args:
        num_layers: n.
        kernel_size: K.
        dilation_factor: f.

    Raises:
        ValueError: a size or a name that does not fit.
    """

    card = LayerCard(
        title="TCNCA",
        paper="Terzic et al. 2023, TCNCA: Temporal Convolution Network with Chunked Attention",
        url="https://arxiv.org/abs/2312.05605",
        equation="y = u (silu(W_h mx + U_h (r attention(mx, x))) - x), mx = silu(TCN(x))",
        cost="O(n K L + C L)",
    )

    def __init__(
        self,
        channels: int,
        max_length: int | None = None,
        *,
        num_layers: int = 4,
        kernel_size: int = 8,
        dilation_factor: int = 8,
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
        for name, size in (
            ("num_layers", num_layers),
            ("kernel_size", kernel_size),
            ("dilation_factor", dilation_factor),
        ):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.kernel_size, self.dilations = kernel_size, [dilation_factor**i for i in range(num_layers)]
        self.weight = nn.Parameter(torch.empty(num_layers, channels, kernel_size))  # lag 0 first
        self.bias = nn.Parameter(torch.empty(num_layers, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as MEGA (see `GatedAttention`), and the convolutions as `torch.nn.Conv1d` does."""
        super().reset_parameters()
        bound = self.kernel_size**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def _summarise(
        self, x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, state: Any, return_state: bool
    ) -> tuple[Tensor, Any]:
        padding = "causal" if self.causal else "same"
        keep = None if mask is None else mask[:, None]
        a, windows = x.mT, []
        for i, dilation in enumerate(self.dilations):
            if state is None and not return_state:
                y = dilated_conv(
                    a, self.weight[i], self.bias[i], dilation=dilation, padding=padding, cu_seqlens=cu_seqlens
                )
            else:
                past = None if state is None else state.window(i)
                y, window = dilated_conv(
                    a, self.weight[i], self.bias[i], dilation=dilation, state=past, return_state=True
                )
                windows.append(window)
            a = a + F.silu(y)
            if keep is not None:  # the convolution has a bias, so padding does not stay zero by itself
                a = a * keep
        return F.silu(a.mT.contiguous()), DelayLines(windows, self.dilations) if return_state else None

    def _summary_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Any:
        reaches = [(self.kernel_size - 1) * d for d in self.dilations]
        windows = [torch.zeros(batch_size, self.channels, reach, dtype=dtype, device=device) for reach in reaches]
        return DelayLines(windows, self.dilations)

    def _summary_step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        # The past under the taps of all layers at once, latest first: only the present has to wait for the layer below.
        past = state.taps().unflatten(1, (len(self.dilations), self.kernel_size - 1))
        a, inputs = x_t, []
        dtype = torch.promote_types(torch.promote_types(x_t.dtype, self.weight.dtype), torch.float32)
        for i in range(len(self.dilations)):
            inputs.append(a)
            seen = torch.cat([a[:, None], past[:, i].to(a.dtype)], 1).to(dtype)
            y = (seen * self.weight[i].mT.to(dtype)).sum(1) + self.bias[i].to(dtype)
            a = a + F.silu(y.to(a.dtype))
        return F.silu(a), state.append(torch.stack(inputs, 1))

    @property
    def _behind(self) -> int:
        """How many earlier inputs mx depends on."""
        reach = (self.kernel_size - 1) * sum(self.dilations)
        return reach if self.causal else reach - self._ahead

    @property
    def _ahead(self) -> int:
        """How many later inputs mx depends on."""
        return 0 if self.causal else sum(-(-(self.kernel_size - 1) * d // 2) for d in self.dilations)

    @property
    def summary_field(self) -> int:
        """The receptive field of mx, the part that the convolutions contribute: 1 + (K-1) (1 + f + ... + f^(n-1))."""
        return self._behind + 1 + self._ahead

    @property
    def receptive_field(self) -> int | None:
        """What mx sees of the samples of a chunk; None without chunks."""
        return self._field(self._behind, self._ahead)

    @property
    def lookahead(self) -> int | None:
        """0 if causal; else the rest of the chunk and what mx sees of its last sample; None without chunks."""
        if self.causal:
            return 0
        C = self.attention.chunk_size
        return None if C is None else C - 1 + self._ahead

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"{super().extra_repr()}, kernel_size={self.kernel_size}, dilations={self.dilations}"
