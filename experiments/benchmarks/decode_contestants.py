"""Who decodes in `longconv bench decode`: models of one width and depth, each with its state and its step.

All have the same number of weights in their blocks but for the mixers: GELU MLPs of four times the width, embeddings
tied to the head. The three Hyena models share their weights except the filters.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, StaticCache

from longconv.filters import Filter, build_filter, set_state_dtype
from longconv.models import LongConvCache, LongConvConfig, LongConvForCausalLM
from longconv.state import GrowingBuffer

from .decode_states import attention_state, fill_, hyena_state, rare_steps

# The names, as in the results file and in the table.
DISTILLED, ONLINE, CACHED = "distilled", "exact online", "cached history"
ATTENTION, GPT2, GPT2_STATIC = "attention", "GPT-2", "GPT-2, static cache"
CONTESTANTS = (DISTILLED, ONLINE, CACHED, ATTENTION, GPT2, GPT2_STATIC)


@dataclass(frozen=True)
class Size:
    """A shape of model: blocks, channels, heads of the attention, tokens of the vocabulary."""

    name: str
    layers: int
    width: int
    heads: int
    vocabulary: int


#: "small" is for CPUs; the others are the sizes of GPT-3 (Brown et al. 2020, table 2.1), with GPT-2's vocabulary.
SIZES = {
    size.name: size
    for size in (
        Size("tiny", 2, 32, 2, 64),
        Size("small", 4, 256, 4, 1024),
        Size("125m", 12, 768, 12, 50304),
        Size("355m", 24, 1024, 16, 50304),
        Size("1.3b", 24, 2048, 16, 50304),
    )
}


class Decoder:
    """A contestant: a language model and how it decodes.

    Attributes:
        name: one of `CONTESTANTS`.
        model: what `forward` runs.
        fixed_step: whether a step launches the same kernels on the same memory whatever was decoded before, so that a
            GPU can replay it.
        has_rare_steps: whether some steps do much more than others.
    """

    name: str
    model: Any
    fixed_step = True
    has_rare_steps = False

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (B, L, V) of ids (B, L), all at once."""
        return self.model(input_ids=ids, use_cache=False).logits

    def prefill(self, ids: Tensor, spare: int) -> Any:
        """The state after ids (B, L), to be followed by `spare` more tokens at most."""
        raise NotImplementedError

    def fill(self, batch: int, context: int, spare: int) -> Any:
        """A state as `prefill` gives it after `context` tokens, full of random numbers, with room for `spare` more."""
        raise NotImplementedError

    def step(self, ids: Tensor, state: Any) -> Tensor:
        """Logits (B, V) after one more token, ids (B,); `state` goes on in place."""
        raise NotImplementedError

    def rare_steps(self, state: Any, context: int) -> Iterator[float]:
        """Bring a fresh state before each kind of dear and rare step; see `decode_states.rare_steps`."""
        raise NotImplementedError

    def allow_any_length(self) -> None:
        """Drop limits that have no bearing on speed; from then on states come from `fill`."""

    def to(self, dtype: torch.dtype, state_dtype: torch.dtype) -> None:
        """Cast the weights, and choose the dtype of the states of recurrences."""
        self.model.to(dtype)


class OursDecoder(Decoder):
    """A model of `longconv`, block by block."""

    def __init__(self, name: str, model: LongConvForCausalLM) -> None:
        self.name, self.model = name, model
        self.has_rare_steps = name == ONLINE
        self.fixed_step = not self.has_rare_steps

    def prefill(self, ids: Tensor, spare: int) -> list[Any]:
        """One state per block."""
        cache = LongConvCache(self.model.config.num_hidden_layers)
        self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache.states

    def fill(self, batch: int, context: int, spare: int) -> list[Any]:
        """One state per block."""
        fill_state = attention_state if self.name == ATTENTION else hyena_state
        return [fill_state(block.mixer.init_state(batch), context, spare) for block in self.model.model.layers]

    def step(self, ids: Tensor, state: list[Any]) -> Tensor:
        """As the token loop of `LongConvModel`, or for recurrences that of `DecodeEngine`, and nothing around it."""
        x = self.model.model.embed_tokens(ids)
        for i, block in enumerate(self.model.model.layers):
            if self.name == DISTILLED:
                x = block.step_(x, state[i])
            else:
                x, state[i] = block.step(x, state[i])
        return self.model.lm_head(self.model.model.norm(x))

    def rare_steps(self, state: list[Any], context: int) -> Iterator[float]:
        """The pass and the tiles of `OnlineConv`."""
        return rare_steps(state, context)

    def allow_any_length(self) -> None:
        """Without limits; filters are no longer evaluated, since the states that `fill` makes have the taps."""
        for block in self.model.model.layers:
            mixer: Any = block.mixer
            mixer.max_length = None
            if self.name == ONLINE:
                mixer.long_filters[0] = TapsInState(mixer.channels).to(mixer.in_proj.weight.device)

    def to(self, dtype: torch.dtype, state_dtype: torch.dtype) -> None:
        """Cast the weights, and the inputs that a cached history keeps; choose the dtype of modal states."""
        super().to(dtype, state_dtype)
        set_state_dtype(self.model, state_dtype)
        for module in self.model.modules():
            if isinstance(module, CachedHistory):
                module.dtype = dtype


class TransformersDecoder(Decoder):
    """GPT-2 of transformers, with its default cache, which moves every time it grows, or with a static one."""

    def __init__(self, name: str, model: GPT2LMHeadModel) -> None:
        self.name, self.model = name, model

    def prefill(self, ids: Tensor, spare: int) -> Any:
        """Its cache."""
        cache = self._cache(ids.shape[1] + spare)
        self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def fill(self, batch: int, context: int, spare: int) -> Any:
        """Its cache."""
        config, weight = self.model.config, self.model.transformer.wte.weight
        cache, width = self._cache(context + spare), config.n_embd // config.n_head
        one = weight.new_zeros(batch, config.n_head, 1, width)
        if self.name == GPT2:
            for i in range(config.n_layer):
                keys = fill_(one.new_empty(batch, config.n_head, context, width))
                cache.update(keys, keys.clone(), i)
            return cache
        for layer in cache.layers:
            layer.lazy_initialization(one, one)
            fill_(layer.keys)
            fill_(layer.values)
            layer.cumulative_length.fill_(context)
        return cache

    def step(self, ids: Tensor, state: Any) -> Tensor:
        """One token through the model."""
        return self.model(input_ids=ids[:, None], past_key_values=state, use_cache=True).logits[:, 0]

    def _cache(self, room: int) -> Any:
        if self.name == GPT2:
            return DynamicCache(config=self.model.config)
        return StaticCache(config=self.model.config, max_cache_len=room)


class TapsInState(Filter):
    """Stands for a filter of any length that nobody evaluates: a state has its taps already.

    Args:
        channels: D.
    """

    support = 1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.tap = nn.Parameter(torch.zeros(channels, 1), requires_grad=False)

    def forward(self, L: int) -> Tensor:
        """One tap of zero (D, 1)."""
        return self.tap


class CachedHistory(nn.Module):
    """A long filter that decodes by a dot product with all its past inputs: O(T) per token.

    So Hyena decodes where nobody distilled it and a step is not to be a convolution of everything again. To a layer it
    looks like a recurrence whose state, the inputs (B, D, T), grows.

    Args:
        filter: what gives the taps.
        dtype: of the history and the taps while decoding, the model's; products are summed in float32.
    """

    def __init__(self, filter: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.filter, self.dtype = filter, dtype
        self.channels: int = filter.channels
        self.max_length: int = filter.max_length

    def forward(self, L: int) -> Tensor:
        """The filter's taps (D, L)."""
        return self.filter(L)

    def prepare_step(self) -> Tensor:
        """The taps (D, K), the last lag first."""
        return self.filter(self.max_length).flip(-1).to(self.dtype)

    def init_state(self, batch: int) -> GrowingBuffer:
        """The empty history."""
        device = next(self.filter.parameters()).device
        return GrowingBuffer(torch.zeros(batch, self.channels, 0, dtype=self.dtype, device=device), 2)

    def final_state(self, u: Tensor, state: GrowingBuffer, modes: Tensor | None = None) -> GrowingBuffer:
        """The history with u (B, D, L) behind it."""
        return state.append(u)

    def step(self, u_t: Tensor, state: GrowingBuffer, modes: Tensor | None = None) -> tuple[Tensor, GrowingBuffer]:
        """Advance by one input u_t (B, D)."""
        taps = self.prepare_step() if modes is None else modes
        state = state.append(u_t[..., None])
        # As rows times matrices this reads memory at full speed; the other way round it takes five times as long.
        y = torch.bmm(taps[:, None, -state.length :], state.view.permute(1, 2, 0))
        return y[:, 0].T.to(u_t.dtype), state


def build(
    size: Size, names: Sequence[str], order: int, limit: int, positions: int, device: torch.device
) -> list[Decoder]:
    """Models with random weights in float32, in eval mode.

    Args:
        size: their shape.
        names: which of `CONTESTANTS`.
        order: complex modes of each filter of the distilled one.
        limit: tokens that Hyena's filters have taps for, until `Decoder.allow_any_length`.
        positions: tokens that GPT-2 has positions for.
        device: where they are made.
    """
    options: dict[str, Any] = {"filter": {"name": "modal", "order": order}}
    config: dict[str, Any] = {
        "vocab_size": size.vocabulary, "hidden_size": size.width, "num_hidden_layers": size.layers,
        "intermediate_size": 4 * size.width, "activation": "gelu", "max_position_embeddings": limit,
    }  # fmt: skip
    decoders: dict[str, Decoder] = {}
    with torch.device(device):
        if {DISTILLED, ONLINE, CACHED} & set(names):
            hyena = LongConvForCausalLM(LongConvConfig(**config, mixers="hyena", mixer_options={"hyena": options}))
            decoders[DISTILLED] = OursDecoder(DISTILLED, hyena.eval())
            for name in (ONLINE, CACHED):
                decoders[name] = OursDecoder(name, _with_long_filters(hyena, limit, cached=name == CACHED))
        if ATTENTION in names:
            heads = {"attention": {"num_heads": size.heads}}
            attention = LongConvForCausalLM(LongConvConfig(**config, mixers="attention", mixer_options=heads))
            decoders[ATTENTION] = OursDecoder(ATTENTION, attention.eval())
        if {GPT2, GPT2_STATIC} & set(names):
            sizes: dict[str, Any] = {"n_embd": size.width, "n_layer": size.layers, "n_head": size.heads}
            special: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
            gpt2_config = GPT2Config(vocab_size=size.vocabulary, n_positions=positions, **sizes, **special)
            gpt2 = GPT2LMHeadModel(gpt2_config).eval()
            decoders |= {name: TransformersDecoder(name, gpt2) for name in (GPT2, GPT2_STATIC)}
    return [decoders[name] for name in CONTESTANTS if name in names]


def _with_long_filters(model: LongConvForCausalLM, limit: int, cached: bool) -> LongConvForCausalLM:
    """The model with Hyena's implicit filters; the same parameters otherwise."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    other = copy.deepcopy(model, shared)  # what the memo has is not copied
    for block in other.model.layers:
        mixer: Any = block.mixer
        filter = build_filter("hyena", mixer.channels, limit)
        mixer.long_filters[0] = CachedHistory(filter, torch.float32) if cached else filter
    return other
