"""Choosing the next token for many sequences at once, each with options and a stream of random numbers of its own.

Everything is a tensor operation on (S, V) logits of S slots without a look at their values, so that it can be part of a
CUDA graph. A slot's random numbers depend on its seed and on how many it has drawn, not on what other slots do.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# The generator SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), as int64.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


@dataclass(frozen=True)
class SamplingOptions:
    """How one request is generated.

    Attributes:
        max_new_tokens: stop after so many; None for as many as the model's length allows.
        temperature: logits are divided by it; 0 for the likeliest token each time.
        top_k: sample among so many likeliest tokens; 0 for all.
        top_p: sample among the likeliest tokens that together have at least this probability.
        seed: of the request's random numbers.
        stop_tokens: ids that end it; None for the model's `eos_token_id`, () for none.

    Raises:
        ValueError: a value out of range.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop_tokens: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1 or None, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or positive, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 or positive, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed must be in 0 .. 2^63 - 1, got {self.seed}")
        if self.stop_tokens is not None:
            object.__setattr__(self, "stop_tokens", tuple(map(int, self.stop_tokens)))


def candidates(requests: list[SamplingOptions], vocab_size: int) -> int:
    """How many of the likeliest tokens have to be looked at: 0 if all are greedy, else a power of two or all."""
    drawn = [options for options in requests if options.temperature > 0]
    if not drawn:
        return 0
    if any(options.top_k == 0 for options in drawn):
        return vocab_size
    return min(vocab_size, 1 << (max(options.top_k for options in drawn) - 1).bit_length())


def choose(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seed: Tensor, drawn: Tensor, width: int
) -> Tensor:
    """The next token of every slot.

    As in transformers: first the temperature, then the k likeliest, then of those the smallest set of the likeliest
    whose probabilities add up to top_p. Of tokens with equal logits at the k-th place, exactly k are kept.

    Args:
        logits: (S, V) float32.
        temperature: (S,) float32; 0 for greedy slots.
        top_k: (S,) int64; 0 for all.
        top_p: (S,) float32 in (0, 1].
        seed: (S,) int64.
        drawn: (S,) int64, how many tokens the slot has drawn.
        width: from `candidates`.

    Returns:
        (S,) int64. For a row that is not finite it is some token.
    """
    greedy = logits.argmax(-1)
    if width == 0:
        return greedy
    scores = logits / torch.where(temperature > 0, temperature, 1.0)[:, None]
    scores, tokens = scores.topk(width, dim=-1)
    rank = torch.arange(width, device=logits.device)
    within = (top_k[:, None] == 0) | (rank < top_k[:, None])
    probs = scores.masked_fill(~within, float("-inf")).softmax(-1, dtype=torch.float64)
    keep = within & (probs.cumsum(-1) - probs < top_p[:, None])  # a prefix, never empty
    cdf = torch.where(keep, probs, 0.0).cumsum(-1)
    point = uniform(seed, drawn) * cdf[:, -1]
    place = (cdf <= point[:, None]).sum(-1)
    place = torch.minimum(place, keep.sum(-1) - 1).clamp(min=0)
    return torch.where(temperature > 0, tokens.gather(-1, place[:, None])[:, 0], greedy)


def uniform(seed: Tensor, index: Tensor) -> Tensor:
    """Random number `index` (from 0) of the stream `seed`, both (S,) int64: float64 in [0, 1), 53 random bits."""
    z = seed + (index + 1) * _STEP
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return _shift(z ^ _shift(z, 31), 11).double() * 2.0**-53


def _shift(z: Tensor, bits: int) -> Tensor:
    """z >> bits as if z were unsigned."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
