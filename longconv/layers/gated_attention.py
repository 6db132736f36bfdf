"""What MEGA and TCNCA share: gated attention in chunks over a summary of the sequence (Ma et al. 2022, section 3).

With mx the summary of x (a moving average, or a convolutional network), the layer is

    z = silu(W_z mx),  q = kappa_q z + mu_q,  k = kappa_k z + mu_k,  v = silu(W_v x)
    o = attention(q, k, v)                                           in chunks
    h = silu(W_h mx + U_h (r o) + b),  r = silu(W_r mx),  u = sigmoid(W_u mx)
    y = u (h - x)

The published layer returns x + y, as a gated residual connection. Here the residual is the model's, so the mixer
returns y. The published layer normalises inside: all but the residual sees norm(x). With `norm` the mixer does that
too, and `x + mixer(x)` is the published layer. Without, it is the published layer without its norm; in a block
`x + mixer(norm(x))` what u takes away of is then norm(x) instead of x.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longconv.state import LayerState

from .base import Mixer, packed_lengths
from .chunked_attention import ChunkedAttention, ChunkState
from .micro_tcn_stack import BatchNorm

EPS = 1e-5


class ScaleNorm(nn.Module):
    """`weight x / rms(x)` with one weight for all channels (Nguyen and Salazar 2019, as MEGA has it)."""

    def __init__(self, channels: int, eps: float = EPS) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        self.weight = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x, (self.channels,), eps=self.eps) * self.weight


class FeatureDropout(nn.Module):
    """Dropout of whole channels, (B, L, C): the published `--feature-dropout`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop channels, in training."""
        return F.dropout1d(x.mT, self.p, self.training).mT


@dataclass
class GatedAttentionState(LayerState):
    """`summary`: of the moving average, or the convolutions. `attention`: the current chunk."""

    summary: Any
    attention: ChunkState


class GatedAttention(Mixer):
    """The layer above for a summary that a subclass defines, in `_summarise`, `_summary_state` and `_summary_step`.

    Args:
        channels: D.
        max_length: the longest sequence; None for no limit. Needed by `rel_pos_bias="simple"` without chunks.
        zdim: Z, of queries and keys; default D / 4, or the next smaller even number.
        hdim: H, of values; default 2 D.
        chunk_size: C; None for attention over the whole sequence.
        attention_activation: `"softmax"`, `"laplace"` or `"relu2"`; see `ChunkedAttention`.
        rel_pos_bias: `"rotary"` or `"simple"`.
        norm: `"layernorm"`, `"rmsnorm"`, `"scalenorm"` or `"batchnorm"` inside the mixer, or None; see above. The
            statistics of batch norm are those of real samples; in training a state does not make chunks the whole.
        dropout: probability of dropping an element of mx and of h.
        attention_dropout: of an attention weight.
        hidden_dropout: of an element of v.
        feature_dropout: `dropout` and `hidden_dropout` drop whole channels of a sequence.
        bidirectional: attention sees the whole chunk, and the summary both sides.

    Raises:
        ValueError: a size or a name that does not fit.
    """

    def __init__(
        self,
        channels: int,
        max_length: int | None,
        *,
        zdim: int | None,
        hdim: int | None,
        chunk_size: int | None,
        attention_activation: str,
        rel_pos_bias: str,
        norm: str | None,
        dropout: float,
        attention_dropout: float,
        hidden_dropout: float,
        feature_dropout: bool,
        bidirectional: bool,
    ) -> None:
        super().__init__(channels, max_length)
        self.zdim = 2 * max(1, channels // 8) if zdim is None else zdim
        self.hdim = 2 * channels if hdim is None else hdim
        for name, size in (("zdim", self.zdim), ("hdim", self.hdim)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.causal = not bidirectional
        norms: dict[str, Callable[[], nn.Module]] = {
            "layernorm": lambda: nn.LayerNorm(channels, eps=EPS),
            "rmsnorm": lambda: nn.RMSNorm(channels, eps=EPS),
            "scalenorm": lambda: ScaleNorm(channels),
            "batchnorm": lambda: BatchNorm(channels, affine=True),
        }
        if norm is not None and norm not in norms:
            raise ValueError(f"norm must be one of {', '.join(norms)} or None, got {norm!r}")
        self.norm = None if norm is None else norms[norm]()
        self.v_proj = nn.Linear(channels, self.hdim)
        self.mx_proj = nn.Linear(channels, 2 * channels + self.zdim + self.hdim)
        self.h_proj = nn.Linear(self.hdim, channels)
        self.qk_weight = nn.Parameter(torch.empty(2, self.zdim))
        self.qk_bias = nn.Parameter(torch.empty(2, self.zdim))
        self.attention = ChunkedAttention(
            self.zdim,
            chunk_size,
            max_length,
            activation=attention_activation,
            positions=rel_pos_bias,
            causal=self.causal,
            dropout=attention_dropout,
        )
        drop = FeatureDropout if feature_dropout else nn.Dropout
        self.dropout, self.hidden_dropout = drop(dropout), drop(hidden_dropout)

    def reset_parameters(self) -> None:
        """Initialise as published: weights ~ N(0, 0.02^2), those of the queries and keys too; biases zero."""
        for linear in (self.v_proj, self.mx_proj, self.h_proj):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        nn.init.normal_(self.qk_weight, std=0.02)
        nn.init.zeros_(self.qk_bias)

    def _summarise(
        self, x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, state: Any, return_state: bool
    ) -> tuple[Tensor, Any]:
        """Summarise x (B, L, D), zero where it is padded, to mx (B, L, D), and make the state if asked to."""
        raise NotImplementedError

    def _summary_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Any:
        """Return the summary's state before the first sample."""
        raise NotImplementedError

    def _summary_step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Summarise one sample x_t (B, D)."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        state: GatedAttentionState | None = None,
        return_state: bool = False,
    ) -> Any:
        """Mix a sequence or the next chunk of one; see `Mixer.forward`."""
        mask = self.check_forward(x, mask, cu_seqlens, state, return_state)
        inner = self._normalise(x, mask)
        summed = inner if mask is None else inner * mask[..., None]
        summary = None if state is None else state.summary
        mx, summary = self._summarise(summed, mask, cu_seqlens, summary, return_state)
        base, q, k, v = self._queries(self.dropout(mx), inner)
        attention = None if state is None else state.attention
        if cu_seqlens is None:
            o, attention = self.attention(q, k, v, mask=mask, state=attention, return_state=return_state)
        else:
            lengths = packed_lengths(cu_seqlens, x.shape[1])
            pieces = zip(*(t.split(lengths, dim=1) for t in (q, k, v)), strict=True)
            out = [self.attention(*piece, return_state=False)[0] for piece in pieces if piece[0].shape[1]]
            o = torch.cat(out, dim=1)
        y = self._output(x, base, o)
        if not return_state:
            return y
        assert attention is not None
        return y, GatedAttentionState((0 if state is None else state.position) + x.shape[1], summary, attention)

    def _normalise(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.norm is None:
            return x
        if isinstance(self.norm, BatchNorm):
            scale, shift = self.norm(x.mT, mask)
            return (x * scale + shift).to(x.dtype)
        normalised: Tensor = self.norm(x)
        return normalised

    def _queries(self, mx: Tensor, x: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor, Tensor]:
        """The three parts of W mx that gate the output, (u, r, W_h mx), then q, k and v."""
        D = self.channels
        u, z, r, hx = self.mx_proj(mx).split([D, self.zdim, self.hdim, D], dim=-1)
        q, k = (F.silu(z)[..., None, :] * self.qk_weight + self.qk_bias).unbind(-2)
        v = self.hidden_dropout(F.silu(self.v_proj(x)))
        return (u.sigmoid(), F.silu(r), hx), q, k, v

    def _output(self, x: Tensor, base: tuple[Tensor, Tensor, Tensor], o: Tensor) -> Tensor:
        u, r, hx = base
        return u * (self.dropout(F.silu(hx + self.h_proj(r * o))) - x)

    def init_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> GatedAttentionState:
        """Return the state before the first sample; see `Mixer.init_state`."""
        self.check_causal()
        weight = self.v_proj.weight
        dtype, device = dtype or weight.dtype, torch.device(device or weight.device)
        summary = self._summary_state(batch_size, dtype, device)
        return GatedAttentionState(
            0, summary, self.attention.init_state(batch_size, self.zdim, self.hdim, dtype, device)
        )

    def step(self, x_t: Tensor, state: GatedAttentionState) -> tuple[Tensor, GatedAttentionState]:
        """Mix one sample; see `Mixer.step`. O(C) in the chunk size, or O(T) in the context without one."""
        self.check_step(x_t, state)
        x = x_t[:, None]
        inner = self._normalise(x, None)
        mx, summary = self._summary_step(inner[:, 0], state.summary)
        base, q, k, v = self._queries(self.dropout(mx[:, None]), inner)
        o, attention = self.attention(q, k, v, state=state.attention)
        y = self._output(x, base, o)
        return y[:, 0], GatedAttentionState(state.position + 1, summary, attention)

    def _field(self, behind: int, ahead: int) -> int | None:
        """The receptive field for a summary that sees so far behind and ahead: of an output at the end of a chunk."""
        C = self.attention.chunk_size
        return None if C is None else C + behind + ahead

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        sizes = f"channels={self.channels}, zdim={self.zdim}, hdim={self.hdim}, max_length={self.max_length}"
        return sizes if self.causal else f"{sizes}, bidirectional=True"
