"""What `longconv bench decode` does with its contestants: the gate, memory, the largest batch, time."""

import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longconv.experiments.decoding import time_in_turns, token_times

from .decode_contestants import Decoder
from .decode_report import Outcome, Status
from .decode_states import bytes_of, shapes_of
from .harness import DisagreementError, compare_results, peak_of, return_free_memory

# Room behind a context in caches that grow, and how many tokens of a turn are timed at most.
SPARE, BURST = 32, 24
# The gate: two rows, prefill, steps (over a block of OnlineConv), and how long Hyena's filters are there.
GATE_PREFILL, GATE_STEPS, GATE_LIMIT = 48, 72, 512
# Context at which a synthetic cache is compared with a prefilled one.
COMPARED_CONTEXT = 256
# Sequences that memory is measured with, at most, and sequences that are decoded at most: with so many, on any device,
# another one makes none faster, and a token takes seconds.
TRIAL, MOST_SEQUENCES = 256, 16384
# The largest batch leaves that part of the memory free, and is made smaller so often, by that much, if it does not fit.
MARGIN, ATTEMPTS, SHRINK = 0.05, 6, 0.9


# --- Gate -------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def check(decoder: Decoder, vocabulary: int, device: torch.device) -> None:
    """Compare prefill and steps with the forward pass over everything, in float32.

    Raises:
        DisagreementError: logits differ by more than the tolerance of float32, or a state that is filled is not shaped
            like one that is prefilled.
    """
    L = GATE_PREFILL + GATE_STEPS
    ids = _tokens((2, L), vocabulary, device)
    expected = decoder.forward(ids)[:, GATE_PREFILL:].double()
    state = decoder.prefill(ids[:, :GATE_PREFILL], GATE_STEPS)
    logits = torch.stack([decoder.step(ids[:, t], state) for t in range(GATE_PREFILL, L)], dim=1)
    compare_results(f"{decoder.name}, {GATE_STEPS} steps", (logits,), (expected,), torch.float32)
    real = shapes_of(decoder.prefill(ids[:, :GATE_PREFILL], SPARE))
    filled = shapes_of(decoder.fill(2, GATE_PREFILL, SPARE))
    if real != filled:
        raise DisagreementError(f"{decoder.name}: a filled state has {filled}, a prefilled one {real}")
    if device.type == "cuda" and decoder.fixed_step:
        _check_replay(decoder, ids[:, : GATE_PREFILL + 1], expected[:, 0])


def _check_replay(decoder: Decoder, ids: Tensor, expected: Tensor) -> None:
    """Compare the logits of the last of ids (B, L), made by a CUDA graph."""
    Token(decoder, decoder.prefill(ids[:, :-1], SPARE), ids[:, -1])()  # so that nothing is loaded while it is recorded
    token = Token(decoder, decoder.prefill(ids[:, :-1], SPARE), ids[:, -1])
    if not token.try_capture():
        return
    token()
    assert token.logits is not None
    compare_results(f"{decoder.name}, replayed", (token.logits,), (expected,), torch.float32)


@torch.inference_mode()
def filled_over_prefilled(decoder: Decoder, vocabulary: int, device: torch.device) -> float:
    """Time of a token after a filled state over that after a real prefill, at `COMPARED_CONTEXT` tokens."""
    ids = _tokens((1, COMPARED_CONTEXT), vocabulary, device)
    makers: dict[str, Callable[[], Any]] = {
        "filled": lambda: decoder.fill(1, COMPARED_CONTEXT, SPARE),
        "prefilled": lambda: decoder.prefill(ids, SPARE),
    }
    turns = {name: lambda make=make: Token(decoder, make(), ids[:, 0]) for name, make in makers.items()}
    times = time_in_turns(turns, 6, BURST, device)
    return statistics.median(times["filled"]) / statistics.median(times["prefilled"])


# --- Memory -----------------------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """Bytes that decoding takes beside the weights.

    Attributes:
        state: of one sequence's state; None where not even one fits.
        shared: of what all sequences share; None likewise.
        each: of one sequence, with what a step allocates for it; infinite where not even one fits.
    """

    state: float | None
    shared: float | None
    each: float

    def most(self, budget: float) -> int:
        """Sequences that fit into so many bytes."""
        return max(0, min(MOST_SEQUENCES, int((budget - (self.shared or 0)) / self.each)))


@torch.inference_mode()
def measure_memory(decoder: Decoder, context: int, vocabulary: int, budget: float, device: torch.device) -> Memory:
    """Measure what decoding after `context` tokens takes, on as many sequences as a quarter of the budget holds.

    The state by its tensors' memory; the rest as the growth, at its peak, of what the device has allocated (on a GPU)
    or of the resident set (on a CPU), while a state is filled and two tokens are made.
    """
    try:
        state, shared = bytes_of(decoder.fill(1, context, SPARE), 1)
    except torch.OutOfMemoryError:
        return Memory(None, None, math.inf)
    trial = int(max(1, min(TRIAL, (budget - shared) / state // 4)))
    if shared + trial * state > budget:
        return Memory(state, shared, state)
    ids = _tokens((trial,), vocabulary, device)
    try:
        _two_tokens(decoder, ids[:1], context)  # what is loaded and built on the first call is not the batch's
        peak = peak_of(lambda: _two_tokens(decoder, ids, context), device)
    except torch.OutOfMemoryError:
        return Memory(state, shared, math.inf)
    each = state if peak is None else max(state, (1e6 * peak - shared) / trial)
    return Memory(state, shared, each)


def _two_tokens(decoder: Decoder, ids: Tensor, context: int) -> None:
    token = Token(decoder, decoder.fill(len(ids), context, SPARE), ids)
    token()
    token()


# --- Time -------------------------------------------------------------------------------------------------------------


class Point(NamedTuple):
    """Who decodes after how many tokens."""

    decoder: Decoder
    context: int


def admit(
    point: Point, batch: int, attempts: int, budget: float, memory: Memory, vocabulary: int, device: torch.device,
    say: Callable[[str], None],
) -> Outcome:  # fmt: skip
    """Decode with that batch for the first time: peak memory and rare steps; or what is wrong with it.

    A batch that takes more bytes than the budget after all, or than there are, is made smaller `attempts` - 1 times.
    """
    status: Status = "out of memory"
    for _ in range(attempts):
        try:
            return _admitted(point, batch, budget, memory, vocabulary, device)
        except torch.OutOfMemoryError as error:
            message, batch = str(error).splitlines()[0], int(batch * SHRINK)
        except Exception as error:  # transformers may raise whatever it likes; the others go on without it
            status, message = "failed", f"{type(error).__name__}: {error}"
            break
        finally:
            return_free_memory()
        if batch == 0:
            break
    say(f"{status}: {point.decoder.name}, context {point.context:,}: {message[:300]}")
    return Outcome(status, 0, state_bytes=memory.state, shared_bytes=memory.shared)


@torch.inference_mode()
def _admitted(
    point: Point, batch: int, budget: float, memory: Memory, vocabulary: int, device: torch.device
) -> Outcome:
    decoder, context = point
    ids = _tokens((batch,), vocabulary, device)
    peak = peak_of(lambda: _two_tokens(decoder, ids, context), device)
    if peak is not None and 1e6 * peak > budget:
        raise torch.OutOfMemoryError(f"{batch} sequences take {peak:,.1f} MB, and {budget / 1e6:,.1f} MB are allowed")
    launches = start(point, batch, vocabulary, device).launches if device.type == "cuda" else "eager"
    rare = _ms_rare(point, ids, device) if decoder.has_rare_steps else 0.0
    return Outcome("ok", batch, launches, memory.state, memory.shared, peak, rare)


def _ms_rare(point: Point, ids: Tensor, device: torch.device) -> float:
    """What rare steps add to the milliseconds of a token on average."""
    decoder, context = point
    token = Token(decoder, decoder.fill(len(ids), context, SPARE), ids)
    shares, times, plain = [], [], 0.0
    for share in decoder.rare_steps(token.state, context):
        shares.append(share)
        times += token_times(token, 1, device)
        if len(times) == 1:
            plain = statistics.median(token_times(token, 5, device))
    return sum(share * (ms - plain) for share, ms in zip(shares, times, strict=True))


class Token:
    """Greedy decoding: a token of every sequence for each call. What `time_in_turns` times.

    Args:
        decoder: who decodes.
        state: where from; it goes on in place.
        ids: (B,) the first tokens; copied.
    """

    def __init__(self, decoder: Decoder, state: Any, ids: Tensor) -> None:
        self.decoder, self.state, self.ids = decoder, state, ids.clone()
        self.logits: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    @torch.inference_mode()
    def __call__(self) -> None:
        """Make a token."""
        if self._graph is not None:
            self._graph.replay()
            return
        self.logits = self.decoder.step(self.ids, self.state)
        self.ids.copy_(self.logits.argmax(-1))

    @property
    def launches(self) -> str:
        """As in the results file."""
        return "eager" if self._graph is None else "replayed"

    def try_capture(self) -> bool:
        """Record a token into a CUDA graph, without making it; whether that could be done.

        A call then makes it, and `logits` are its. If it is called again it makes the token at the same position of a
        cache, which takes the same time. After a failure the state is of no use.
        """
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # something in it cannot be recorded
            return False
        self._graph = graph
        return True


@torch.inference_mode()
def start(point: Point, batch: int, vocabulary: int, device: torch.device) -> Token:
    """Fill a state; return what makes a token of every sequence, as a CUDA graph where that can be."""
    decoder, context = point
    if device.type == "cuda":
        return_free_memory()
    ids = _tokens((batch,), vocabulary, device)
    token = Token(decoder, decoder.fill(batch, context, SPARE), ids)
    if device.type != "cuda" or not decoder.fixed_step:
        return token
    token()  # libraries are loaded, and kernels chosen, before anything is recorded
    if not token.try_capture():
        del token
        return_free_memory()
        token = Token(decoder, decoder.fill(batch, context, SPARE), ids)
    return token


def _tokens(shape: tuple[int, ...], vocabulary: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, shape, generator=generator).to(device)
