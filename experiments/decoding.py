"""How long a token takes to generate: models, and contexts, interleaved in one process.

What a median does not show: filters that are not recurrences do rare and dear work between cheap steps. The largest is
a transform of 2T points or more, before the first token after a prefill of T and whenever the context has doubled
since (`longconv.functional.OnlineConv`). `longconv bench decode` adds it up.
"""

import functools
import gc
import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from longconv.models import LongConvCache

K = TypeVar("K", bound=Hashable)


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
    rounds = -(-steps // burst)
    needed = max(contexts) + (1 + burst) * rounds
    if tokens.numel() < needed:
        raise ValueError(f"tokens must be at least {needed} ids, got {tokens.numel()}")

    def prefilled(model: Any, context: int) -> Callable[[], object]:
        cache = LongConvCache(model.config.num_hidden_layers)
        model(input_ids=tokens[None, :context], past_key_values=cache, use_cache=True, logits_to_keep=1)

        def step() -> None:
            at = cache.get_seq_length()
            model(input_ids=tokens[None, at : at + 1], past_key_values=cache, use_cache=True)

        return step

    turns: dict[tuple[str, int], Callable[[], Callable[[], object]]] = {}
    for name, model in models.items():
        for context in contexts:
            if progress is not None:
                progress(f"prefill {name}, {context:,} tokens")
            turns[name, context] = functools.partial(_itself, prefilled(model, context))
    times = time_in_turns(turns, rounds, burst, tokens.device)
    return [DecodeTiming(*key, statistics.median(ms), min(ms), max(ms)) for key, ms in times.items()]


def _itself(step: Callable[[], object]) -> Callable[[], object]:
    return step


def time_in_turns(
    turns: Mapping[K, Callable[[], Callable[[], object]]],
    rounds: int,
    burst: int,
    device: torch.device,
    *,
    seconds: float = float("inf"),
    tick: Callable[[K], None] = lambda key: None,
) -> dict[K, list[float]]:
    """Time many ways to make the next token, a few tokens of each at a time.

    The order changes from round to round, and the first token of a turn is not timed: a model is slower after one that
    filled the processor's caches, and that must not always meet the same.

    Args:
        turns: by key, what is called at the start of a turn, untimed, and gives the function that makes a token.
            It is let go at the end of the turn, so that the memory of one is there for the next.
        rounds: turns of each; at least 1.
        burst: timed tokens of a turn, at most.
        device: where they run.
        seconds: a turn ends after about that long, and has at least one timed token.
        tick: called before every turn.

    Returns:
        Milliseconds of every timed token, by key, in the order of `turns`. On a GPU from one event of the stream to the
        next, so the time that the CPU takes to launch counts where the GPU waits for it.
    """
    times: dict[K, list[float]] = {key: [] for key in turns}
    order, shuffle = list(turns), random.Random(0).shuffle
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(order)
            for key in order:
                tick(key)
                step = turns[key]()
                step()
                times[key] += token_times(step, burst, device, seconds)
                del step
    finally:
        if collects:
            gc.enable()
    return times


def token_times(
    step: Callable[[], object], count: int, device: torch.device, seconds: float = float("inf")
) -> list[float]:
    """Milliseconds of `count` calls in a row, or of as many, at least one, as are begun within `seconds`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        done = 0
        while done < count and (done == 0 or time.perf_counter() - began < seconds):
            step()
            done += 1
            events[done].record()
            if done >= 2:  # two are under way at most, so that the clock on the wall knows how long they take
                events[done - 1].synchronize()
        torch.cuda.synchronize(device)
        return [events[i].elapsed_time(events[i + 1]) for i in range(done)]
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < count and (not times or time.perf_counter() - began < seconds):
        started = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - started))
    return times
