"""The backbone: embedding of tokens or of continuous inputs, blocks, final norm. Heads are in files of their own."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from longconv.layers import stack_lookahead, stack_receptive_field

from .blocks import LongConvBlock, build_dropout
from .cache import Chunk, LongConvCache
from .configuration import LongConvConfig
from .initialisation import KEPT_IN_FLOAT32, KeepsMarks, init_module
from .norms import build_norm, normalise


class LongConvPreTrainedModel(KeepsMarks, PreTrainedModel):
    """Initialisation and loading, common to the backbone and the heads."""

    config: LongConvConfig
    config_class = LongConvConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LongConvBlock"]  # noqa: RUF012 (the type transformers declares)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = KEPT_IN_FLOAT32
    _supports_sdpa = True

    def __init__(self, config: LongConvConfig) -> None:
        super().__init__(config)
        # Where transformers' Trainer counts tokens, and gradient checkpointing looks for an embedding.
        self.main_input_name = "input_ids" if config.input_size is None else "input_values"

    def post_init(self) -> None:
        """Initialise, and remember the optimiser options that modules marked on their parameters."""
        super().post_init()
        self.remember_marks()

    @property
    def receptive_field(self) -> int | None:
        """How many tokens in a row one hidden state can depend on; None if unbounded. See `stack_receptive_field`."""
        return stack_receptive_field(block.mixer for block in self.base_model.layers)  # type: ignore[union-attr]

    @property
    def lookahead(self) -> int | None:
        """How many of these are later than the hidden state's own: 0 if causal, None if unbounded."""
        return stack_lookahead(block.mixer for block in self.base_model.layers)  # type: ignore[union-attr]

    def _initialize_weights(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        # transformers takes a module without tensors of its own for a loaded one, if the class is not its own: a mixer
        # that initialises its parts would be left out. `_init_weights` keeps what was loaded.
        super()._initialize_weights(module)

    def _init_weights(self, module: nn.Module) -> None:
        init_module(module, self.config.initializer_range)


class LongConvModel(LongConvPreTrainedModel):
    """The backbone: (B, L) token ids, or (B, L, C) continuous inputs -> (B, L, D) hidden states."""

    def __init__(self, config: LongConvConfig) -> None:
        super().__init__(config)
        if config.input_size is None:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        else:
            self.input_proj = nn.Linear(config.input_size, config.hidden_size)
        self.layers = nn.ModuleList(LongConvBlock(config, i) for i in range(config.num_hidden_layers))
        pre_norm = config.norm_position == "pre"  # else every block ends with one
        self.norm = build_norm(config.norm, config.hidden_size, config.norm_eps) if pre_norm else nn.Identity()
        dropout = config.dropout if config.embedding_dropout is None else config.embedding_dropout
        self.dropout = build_dropout(dropout, config.tie_dropout)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: LongConvCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        cu_seqlens: Tensor | None = None,
        input_values: Tensor | None = None,
    ) -> BaseModelOutputWithPast:
        """Run the stack over a sequence, or over the next tokens of one.

        Args:
            input_ids: (B, L) integers; or else `inputs_embeds`.
            attention_mask: (B, L), or (B, seen + L) with a cache; nonzero for real tokens.
            past_key_values: the cache of the tokens before, updated in place.
            inputs_embeds: (B, L, D).
            use_cache: return a cache, `past_key_values` or a new one. Default: if `past_key_values` is given.
            output_hidden_states: also return the input of every block and the final output, (B, L, D) each.
            cu_seqlens: (N+1,) int32 or int64, boundaries of N sequences packed in one row (B = 1) that do not see each
                other; without attention mask and cache.
            input_values: (B, L, C) floats, in place of `input_ids` for a model with `input_size` C.

        Raises:
            ValueError: not exactly one input is given, or one that the model does not take, a wrong shape, more tokens
                than a mixer's `max_length`, padding on the right with a cache, a cache of another kind, a cache with
                gradient checkpointing or with batch norms in training, `cu_seqlens` that do not fit or come with a mask
                or a cache, or fewer than two real positions for a batch norm in training.
            TypeError: `input_ids` that are no integers, or `input_values` that are no floats.
        """
        x = self._embed(input_ids, input_values, inputs_embeds)
        L = x.shape[1]
        use_cache = past_key_values is not None if use_cache is None else use_cache
        if past_key_values is not None and (not use_cache or not isinstance(past_key_values, LongConvCache)):
            raise ValueError("past_key_values must be a LongConvCache, and use_cache not False")
        cache = LongConvCache(len(self.layers)) if use_cache and past_key_values is None else past_key_values
        if cache is not None and self.gradient_checkpointing and self.training:
            raise ValueError("use_cache needs gradient checkpointing to be off")
        if cu_seqlens is not None and (attention_mask is not None or cache is not None):
            raise ValueError("cu_seqlens goes with neither attention_mask nor a cache: its sequences are whole")
        mask = self._chunk_mask(attention_mask, x, cache)
        self._check_statistics(x, mask)
        chunk = Chunk(self.dropout(x), mask)
        pieces = [chunk] if cache is None else cache.take(chunk)
        outputs = [self._run(piece, cu_seqlens, cache, output_hidden_states) for piece in pieces]
        # Tokens that `crop` left pending come out again, before those that were asked for.
        hidden = outputs[0] if len(outputs) == 1 else [torch.cat(parts, dim=1) for parts in zip(*outputs, strict=True)]
        if hidden[-1].shape[1] != L:
            hidden = [h[:, -L:] for h in hidden]
        return BaseModelOutputWithPast(
            last_hidden_state=hidden[-1],
            past_key_values=cache,
            hidden_states=tuple(hidden) if output_hidden_states else None,
        )

    def _run(
        self, chunk: Chunk, cu_seqlens: Tensor | None, cache: LongConvCache | None, all_hidden: bool | None
    ) -> list[Tensor]:
        """Run the blocks over a chunk; return the final hidden states, or every block's inputs before them."""
        x, mask = chunk
        L = x.shape[1]
        if cache is not None:
            cache.record(chunk)
        # The token loop: nothing here grows with the context, and the mask of a new token is known to be one.
        step = cache is not None and L == 1 and cache.seen_tokens > 0 and not cache.may_be_padding
        x = x[:, 0] if step else x
        hidden: list[Tensor] = []
        for i, block in enumerate(self.layers):
            if all_hidden:
                hidden.append(x)
            if cache is None:
                x = block(x, mask=mask, cu_seqlens=cu_seqlens)
            elif step:
                x, cache.states[i] = block.step(x, cache.states[i])  # type: ignore[operator]
            else:
                x, cache.states[i] = block(x, mask=mask, state=cache.states[i], return_state=True)
        hidden.append(normalise(self.norm, x, mask))
        if cache is not None:
            cache.seen_tokens += L
            cache.may_be_padding = cache.may_be_padding and mask is not None and not bool(mask[:, -1].all())
        return [h[:, None] for h in hidden] if step else hidden

    def _embed(self, input_ids: Tensor | None, input_values: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """The input of the first block, x (B, L, D), from the one input that is given."""
        C = self.config.input_size
        if C is None and input_values is not None:
            raise ValueError("this model takes input_ids, not input_values: its configuration has no input_size")
        if C is not None and input_ids is not None:
            raise ValueError(f"this model takes input_values (B, L, {C}), not input_ids: it has input_size = {C}")
        if sum(given is not None for given in (input_ids, input_values, inputs_embeds)) != 1:
            raise ValueError(f"give exactly one of {self.main_input_name} and inputs_embeds")
        if input_ids is not None:
            if input_ids.is_floating_point():
                raise TypeError(f"input_ids must be integers, got {input_ids.dtype}")
            if input_ids.ndim != 2:
                raise ValueError(f"input_ids must be (B, L), got shape {tuple(input_ids.shape)}")
            return self.embed_tokens(input_ids)
        if input_values is not None:
            if not input_values.is_floating_point():
                raise TypeError(f"input_values must be floats, got {input_values.dtype}")
            if input_values.ndim != 3 or input_values.shape[-1] != C:
                raise ValueError(f"input_values must be (B, L, {C}), got shape {tuple(input_values.shape)}")
            return self.input_proj(input_values.to(self.input_proj.weight.dtype))
        assert inputs_embeds is not None
        return inputs_embeds

    def _check_statistics(self, x: Tensor, mask: Tensor | None) -> None:
        """Raise ValueError if batch norms have nothing to take a variance of."""
        if self.config.norm != "batch" or not self.training or torch.compiler.is_compiling():
            return
        real = x.shape[0] * x.shape[1] if mask is None else int(mask.sum())
        if real < 2:
            raise ValueError(f"batch norms in training need at least two real positions in a batch, got {real}")

    def _chunk_mask(self, attention_mask: Tensor | None, x: Tensor, cache: LongConvCache | None) -> Tensor | None:
        """The mask of these tokens, (B, L) bool, or None if it masks nothing."""
        seen = 0 if cache is None else cache.seen_tokens
        # In the token loop, once all rows are past their padding, a new token is real: not even a look at the mask.
        known = cache is not None and x.shape[1] == 1 and seen > 0 and not cache.may_be_padding
        if attention_mask is None or known:
            return None
        B, L = x.shape[:2]
        if tuple(attention_mask.shape) not in ((B, L), (B, seen + L)):  # no set: symbolic sizes have no hash
            raise ValueError(f"attention_mask must be {(B, seen + L)}, got {tuple(attention_mask.shape)}")
        mask = attention_mask[:, -L:].bool()
        # One look here spares every layer the multiplications, and attention its explicit mask.
        return mask if torch.compiler.is_compiling() or not bool(mask.all()) else None
