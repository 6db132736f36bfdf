"""How long a token takes to generate, against the length of the context: models interleaved in one process.

What a median does not show: filters that are not recurrences do rare and dear work between cheap steps. The largest is
a transform of 2T points or more, before the first token after a prefill of T and whenever the context has doubled
since (`longconv.functional.OnlineConv`).
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from longconv.models import LongConvCache


@dataclass(frozen=True)
class DecodeTiming:
    """Milliseconds per token (batch of one) of a model after `context` tokens: median and range over the tokens."""

    model: str
    context: int
    ms: float
    ms_min: float
    ms_max: float

    @property
    def tokens_per_second(self) -> float:
        """From the median."""
        return 1e3 / self.ms


@torch.inference_mode()
def time_decoding(
    models: dict[str, Any],
    contexts: Sequence[int],
    tokens: torch.Tensor,
    *,
    steps: int = 48,
    progress: Callable[[str], None] | None = None,
) -> list[DecodeTiming]:
    """Prefill each model with each context, then time one token at a time, the models and contexts in turn.

    Args:
        models: name -> language model in eval mode.
        contexts: lengths of the prefix.
        tokens: (T,) ids to take prefixes and next tokens from, enough for the longest context.
        steps: tokens that are timed, at least, for each model and context.
        progress: called with a line before each prefill.

    Raises:
        ValueError: too few tokens.
    """
    burst = 4
    needed = max(contexts) + (1 + burst) * -(-steps // burst)
    if tokens.numel() < needed:
        raise ValueError(f"tokens must be at least {needed} ids, got {tokens.numel()}")
    caches = {}
    for name, model in models.items():
        for context in contexts:
            if progress is not None:
                progress(f"prefill {name}, {context:,} tokens")
            cache = LongConvCache(model.config.num_hidden_layers)
            model(input_ids=tokens[None, :context], past_key_values=cache, use_cache=True, logits_to_keep=1)
            caches[name, context] = cache
    times: dict[tuple[str, int], list[float]] = {key: [] for key in caches}
    turns, shuffle = list(caches.items()), random.Random(0).shuffle
    for _ in range(-(-steps // burst)):
        # A few tokens at a time, the first not timed, in changing order: a model is slower after one that filled the
        # processor's caches, and that must not always meet the same.
        shuffle(turns)
        for (name, context), cache in turns:
            for step in range(1 + burst):
                at = cache.get_seq_length()
                started = time.perf_counter()
                models[name](input_ids=tokens[None, at : at + 1], past_key_values=cache, use_cache=True)
                if step > 0:
                    times[name, context].append(1e3 * (time.perf_counter() - started))
    return [DecodeTiming(*key, statistics.median(ms), min(ms), max(ms)) for key, ms in times.items()]
