"""What stands in place of a self-attention in a model of transformers: a mixer behind the attention's call."""

from typing import Any

import torch
from torch import Tensor, nn

from longconv.layers import Mixer

from .adapter_cache import MixerStateLayer, state_layer


class MixerAttention(nn.Module):
    """A causal mixer that takes what transformers hands to a self-attention, and returns what that returns.

    The mask becomes the mixer's, on either side of the rows; sequences packed in a row, which the attention would keep
    apart by `position_ids`, become `cu_seqlens`. Rotary embeddings and heads mean nothing to a mixer. The state of a
    stream is kept in the model's cache.

    Args:
        mixer: a causal mixer with as many channels as the model's hidden states.
        config: the model's.
        layer_idx: which layer this is, and its place in the cache.
        dropout: of the output, where the model has it inside its attention.
    """

    def __init__(self, mixer: Mixer, config: Any, layer_idx: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.mixer, self.config, self.layer_idx = mixer, config, layer_idx
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        layer_past: Any = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Mix (B, L, D); the second of what is returned stands for attention weights, which there are none of.

        Args:
            hidden_states: (B, L, D).
            attention_mask: None, (B, L) or longer on the left, nonzero for real tokens, or (B or 1, 1, L, T), bool or
                added to scores: causal, with padding, and perhaps with sequences that do not see each other.
            past_key_values, layer_past: the model's cache, under either name.
            position_ids: (B or 1, L); where flash attention would tell packed sequences by them, so does this.
            kwargs: whatever else attentions are given.

        Raises:
            ValueError: a mask of another kind, packed sequences that are padded or come with a cache, tokens behind
                padding on the right, a cache that cannot hold the state, or more tokens than the mixer's `max_length`.
            TypeError: a cache that is none.
        """
        cache = past_key_values if layer_past is None else layer_past
        layer = None if cache is None else state_layer(cache, self.layer_idx)
        if layer is not None and hidden_states.shape[1] == 1 and layer.next_is_real:  # the token loop
            return self.dropout(self._continue(hidden_states, None, layer)), None
        mask, starts = self._read(attention_mask, hidden_states, position_ids)
        if layer is not None:
            if starts is not None:
                raise ValueError("packed sequences are whole, so they go without a cache: set use_cache=False")
            y = self._continue(hidden_states, mask, layer)
        elif starts is not None:
            y = self._packed(hidden_states, mask, starts)
        else:
            y = self.mixer(hidden_states, mask=mask)
        return self.dropout(y), None

    def _read(
        self, attention_mask: Tensor | None, x: Tensor, position_ids: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        flash = "flash" in (self.config._attn_implementation or "")
        if attention_mask is None and flash and position_ids is not None and x.shape[0] == 1:
            starts = torch.diff(position_ids, dim=1) != 1
            return None, starts if bool(starts.any()) else None
        return read_mask(attention_mask, x.shape[0], x.shape[1])

    def _packed(self, x: Tensor, mask: Tensor | None, starts: Tensor) -> Tensor:
        """All rows one behind the other, `starts` (B, L-1) saying where in a row another sequence begins."""
        if mask is not None:
            raise ValueError("attention_mask: sequences packed in a row cannot be padded as well")
        B, L, D = x.shape
        first = torch.cat([starts.new_ones(B, 1), starts], dim=1).flatten()
        ends = first.new_full((1,), B * L, dtype=torch.int64)
        cu_seqlens = torch.cat([first.nonzero()[:, 0], ends])
        return self.mixer(x.reshape(1, B * L, D), cu_seqlens=cu_seqlens).view(B, L, D)

    def _continue(self, x: Tensor, mask: Tensor | None, layer: MixerStateLayer) -> Tensor:
        if layer.closed:
            raise ValueError("the rows before were padded on the right, so nothing can follow them: pad on the left")
        L = x.shape[1]
        x, mask = layer.take(x, mask)
        if mask is not None and layer.ends_before(mask):
            # Models make a cache of every batch; most will never be continued.
            y, state, layer.closed = self.mixer(x, mask=mask, state=layer.state), layer.state, True
        elif mask is None and x.shape[1] == 1 and layer.state is not None:
            y, state = self.mixer.step(x[:, 0], layer.state)
            y = y[:, None]
        else:
            y, state = self.mixer(x, mask=mask, state=layer.state, return_state=True)
        layer.advance(state, x.shape[1], mask, x.device)
        return y[:, -L:]  # without those that were taken back and came again

    def extra_repr(self) -> str:
        """The layer's index, for `print(model)`."""
        return f"layer_idx={self.layer_idx}"


def read_mask(attention_mask: Any, batch: int, length: int) -> tuple[Tensor | None, Tensor | None]:
    """What a mask for attention says about the tokens themselves.

    A token is real if it may see itself. In a causal mask it also sees the real token before it, unless that belongs to
    another sequence.

    Args:
        attention_mask: see `MixerAttention.forward`.
        batch: B.
        length: L, of the new tokens; the mask may be of earlier ones as well.

    Returns:
        (B, L) bool, true for real tokens, or None if all are; and (B, L-1) bool, whether a sequence begins at the token
        behind, or None if none does. While a model is compiled, which cannot look, the first is never None for a mask,
        and a packed row fails when the compiled model runs.

    Raises:
        ValueError: a mask of another kind or shape, or one in which a token sees the next one.
    """
    compiling = torch.compiler.is_compiling()
    if attention_mask is None:
        return None, None
    if not isinstance(attention_mask, Tensor):
        raise ValueError(
            f"attention_mask: a {type(attention_mask).__name__} cannot be read; set attn_implementation to 'sdpa', "
            "'eager' or 'flash_attention_2'"
        )
    shape = tuple(attention_mask.shape)
    if len(shape) == 2 and shape[0] == batch and shape[1] >= length:
        real = attention_mask[:, shape[1] - length :].bool()
        return (real if compiling or not bool(real.all()) else None), None
    if len(shape) != 4 or shape[0] not in (1, batch) or shape[2] != length or shape[3] < length:
        raise ValueError(
            f"attention_mask must be (B, L) or (B, 1, L, T) with B = {batch}, L = {length}, T >= L, got {shape}"
        )
    past = shape[3] - length  # tokens before these
    sees = attention_mask[:, 0].expand(batch, -1, -1)
    real = _allowed(sees.diagonal(past, 1, 2))
    ahead = _allowed(sees[:, :-1].diagonal(past + 1, 1, 2)) & real[:, 1:]
    starts = real[:, 1:] & real[:, :-1] & ~_allowed(sees[:, 1:].diagonal(past, 1, 2))
    if compiling:
        torch._assert_async(~(ahead.any() | starts.any()), "a compiled model cannot take packed sequences")
        return real, None
    padded, not_causal, packed = torch.stack([~real.all(), ahead.any(), starts.any()]).tolist()
    if not_causal:
        raise ValueError("attention_mask: a token sees the next one, and a mixer in place of attention is causal")
    return real if padded else None, starts if packed else None


def _allowed(mask: Tensor) -> Tensor:
    """As bool, of a mask that is bool or is added to scores: there what is not allowed is the least number, or so."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
