"""Multi-head softmax attention with rotary positions: the baseline, and the other half of hybrid models."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longconv.state import GrowingBuffer, LayerState

from .base import LayerCard, Mixer, for_each_sequence


@dataclass
class AttentionState(LayerState):
    """The key-value cache: `keys` and `values` (B, H, T, D/H), growing along T.

    `real` (B, T) bool says which of them are not padding, `padding` (B,) int64 how many are; None if none is.
    """

    keys: GrowingBuffer
    values: GrowingBuffer
    real: GrowingBuffer | None = None
    padding: Tensor | None = None


class Attention(Mixer):
    """Multi-head attention (Vaswani et al. 2017), causal or not, with rotary position embeddings (Su et al. 2021).

    Computed by `torch.nn.functional.scaled_dot_product_attention`. Positions count real samples only, so that a padded
    row is the same as the row alone. Packed sequences are attended to one after the other: the sum of their squared
    lengths, where a block-diagonal mask over the packed row would cost the square of the sum, and a call for each.

    Args:
        channels: D.
        max_length: the longest sequence; None for no limit.
        num_heads: H; D/H must be even.
        rope_theta: base of the rotary frequencies `theta^(-2i H/D)`.
        dropout: probability of dropping an attention weight.
        bidirectional: every sample attends to all samples, as in an encoder; there is no state then.

    Raises:
        ValueError: the channels do not split into heads of even size.
    """

    card = LayerCard(
        title="Multi-head attention",
        paper="Vaswani et al. 2017, Attention Is All You Need; Su et al. 2021, RoFormer",
        url="https://arxiv.org/abs/1706.03762",
        equation="y = softmax(q k^T / sqrt(d)) v, with rotary positions",
        cost="O(L^2)",
    )

    def __init__(
        self,
        channels: int,
        max_length: int | None = None,
        *,
        num_heads: int = 8,
        rope_theta: float = 10000.0,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(channels, max_length)
        if num_heads < 1 or channels % (2 * num_heads):
            raise ValueError(f"num_heads must split {channels} channels into heads of even size, got {num_heads}")
        self.num_heads, self.rope_theta, self.dropout = num_heads, rope_theta, dropout
        self.causal = not bidirectional
        self.in_proj = nn.Linear(channels, 3 * channels, bias=False)
        self.out_proj = nn.Linear(channels, channels, bias=False)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        state: AttentionState | None = None,
        return_state: bool = False,
    ) -> Any:
        """Mix a sequence or the next chunk of one; see `Mixer.forward`."""
        mask = self.check_forward(x, mask, cu_seqlens, state, return_state)
        if cu_seqlens is not None:
            return for_each_sequence(self.forward, x, cu_seqlens)
        if not self.causal:
            return self._attend_both_sides(x, mask)
        state = self.init_state(x.shape[0], dtype=x.dtype, device=x.device) if state is None else state
        y, after = self._attend(x, mask, state)
        return (y, after) if return_state else y

    def init_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> AttentionState:
        """Return the empty cache; see `Mixer.init_state`."""
        self.check_causal()
        weight = self.in_proj.weight
        shape = (batch_size, self.num_heads, 0, self.channels // self.num_heads)
        empty = torch.zeros(shape, dtype=dtype or weight.dtype, device=device or weight.device)
        return AttentionState(0, GrowingBuffer(empty, 2), GrowingBuffer(empty, 2))

    def step(self, x_t: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """Mix one sample; see `Mixer.step`. O(T) in the context."""
        self.check_step(x_t, state)
        y, state = self._attend(x_t[:, None], None, state)
        return y[:, 0], state

    def _attend(self, x: Tensor, mask: Tensor | None, state: AttentionState) -> tuple[Tensor, AttentionState]:
        B, L, D = x.shape
        T = state.position  # samples before this chunk
        real, padding = state.real, state.padding
        if mask is not None and real is None:  # the first mask: everything before it was real
            real = GrowingBuffer(mask.new_ones(B, T), 1)
            padding = torch.zeros(B, dtype=torch.int64, device=x.device)
        positions = torch.arange(T, T + L, device=x.device)[None]  # (1, L) or (B, L)
        if real is not None and padding is not None:
            mask = x.new_ones(B, L, dtype=torch.bool) if mask is None else mask
            real = real.append(mask)
            positions = mask.cumsum(1) - 1 + (T - padding)[:, None]
            padding = padding + L - mask.sum(1)
        q, k, v = self._project(x, positions)
        if T == 0:  # nothing to carry over, so no copy
            keys, values = GrowingBuffer(k, 2), GrowingBuffer(v, 2)
        else:
            keys, values = state.keys.append(k), state.values.append(v)
        y = F.scaled_dot_product_attention(
            q,
            keys.view.to(q.dtype),
            values.view.to(q.dtype),
            attn_mask=_allowed(T, L, None if real is None else real.view, x.device),
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=T == 0 and L > 1 and real is None,
        )
        y = self.out_proj(y.transpose(1, 2).reshape(B, L, D))
        return y, AttentionState(T + L, keys, values, real, padding)

    def _attend_both_sides(self, x: Tensor, mask: Tensor | None) -> Tensor:
        B, L, D = x.shape
        if mask is None:
            positions, allowed = torch.arange(L, device=x.device)[None], None
        else:
            positions = mask.cumsum(1) - 1
            # A softmax over nothing is NaN: a row without a real sample attends to its padding.
            allowed = (mask | ~mask.any(1, keepdim=True))[:, None, None]
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(*self._project(x, positions), attn_mask=allowed, dropout_p=dropout)
        return self.out_proj(y.transpose(1, 2).reshape(B, L, D))

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, turned by `positions` (B or 1, L), and values: (B, H, L, D/H) each."""
        q, k, v = self.in_proj(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return *self._rotate(q, k, positions), v

    def _rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Turn each pair (x_i, x_{i + half}) of q and k by positions * theta^(-i / half), angles in float32."""
        half = q.shape[-1] // 2
        exponents = torch.arange(half, device=q.device, dtype=torch.float32) / half
        angles = (positions[..., None] * self.rope_theta**-exponents)[:, None]  # (B or 1, 1, L, half)
        cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)

        def turn(x: Tensor) -> Tensor:
            a, b = x.chunk(2, dim=-1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

        return turn(q), turn(k)

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        sizes = f"channels={self.channels}, num_heads={self.num_heads}, max_length={self.max_length}"
        return sizes if self.causal else f"{sizes}, bidirectional=True"


def _allowed(T: int, L: int, real: Tensor | None, device: torch.device) -> Tensor | None:
    """Which of the T+L keys each of the last L queries may see: bool (L, T+L) or (B, 1, L, T+L); None if implied."""
    if real is None and (T == 0 or L == 1):
        return None
    if L == 1 and real is not None:
        return real[:, None, None, :]
    causal = torch.ones(L, T + L, dtype=torch.bool, device=device).tril(T)
    if real is None:
        return causal
    # A padded query may see itself, because a softmax over nothing is NaN; real queries never see a padded key.
    itself = torch.ones_like(causal).triu(T) & causal
    return (causal & real[:, None, :] | itself)[:, None]
