"""Decoding with a constant state against decoding with a history: `longconv bench decode`.

Models of one width and depth with random weights: Hyena with distilled (modal) filters; the same undistilled, exact and
online, and with a cached history; attention with a cache of keys and values; and GPT-2 of transformers. Measured are
the time of a token and the memory, against the context, with one sequence and with as many as the memory takes.

No context is prefilled: caches and states are filled with random numbers (`decode_states.py`). The gate runs real
prefills, and the run prints how the time of a token after a filled state compares with one after a prefill.
"""

import functools
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from longconv.experiments.decoding import time_in_turns

from .decode_contestants import CONTESTANTS, DISTILLED, SIZES, Decoder, Size, build
from .decode_measure import (
    ATTEMPTS,
    BURST,
    COMPARED_CONTEXT,
    GATE_LIMIT,
    MARGIN,
    SPARE,
    Memory,
    Point,
    admit,
    check,
    filled_over_prefilled,
    measure_memory,
    start,
)
from .decode_report import (
    DecodeRow,
    Outcome,
    Status,
    latest,
    make_row,
    plot_decoding,
    print_table,
    print_targets,
    setting,
    targets,
)
from .harness import DisagreementError, cpu_threads, return_free_memory
from .report import append_rows, check_columns, default_output, read_rows

try:
    from rich.console import Console
except ImportError as error:
    raise ImportError(f"this benchmark needs {error.name}: pip install 'longconv[bench]'") from error

# What `run` takes by default.
CPU_SIZES, GPU_SIZES = ("small",), ("1.3b", "125m", "355m")
CPU_BATCHES, GPU_BATCHES = ("max", "1", "8"), ("max", "1")
CPU_CONTEXTS, GPU_CONTEXTS = (256, 1024, 4096, 16384, 65536), (256, 2048, 16384, 65536)
CPU_MEMORY_GB = 1.0
# The tables need so many columns, which a file has too.
WIDTH = 116
# A turn is about so many seconds long, and there are so many. With the largest batch there are fewer, since to fill the
# memory takes longer than a turn.
CPU_SECONDS, GPU_SECONDS = 0.3, 0.1
CPU_ROUNDS, CPU_ROUNDS_OF_MOST, GPU_ROUNDS = 5, 3, 3


def run(
    shapes: tuple[str, ...] = (),
    contexts: tuple[int, ...] = (),
    batches: tuple[str, ...] = (),
    contestants: tuple[str, ...] = CONTESTANTS,
    modes: int = 16,
    dtype: Literal["float32", "bfloat16"] | None = None,
    state_dtype: Literal["complex128", "complex64"] | None = None,
    memory_gb: float | None = None,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    minutes: float = 9.0,
    resume: bool = False,
    smoke: bool = False,
    output: Path | None = None,
) -> list[DecodeRow]:
    """Time a token, and measure the memory, of distilled Hyena, Hyena with its history, attention and GPT-2.

    Interleaved in one process, in turns of a few tokens. A contestant whose prefill and steps do not give the logits of
    its own forward pass is not timed. On a GPU a token is a CUDA graph, so the time to launch its kernels is left out;
    the exact online one, whose steps differ, has none. Rows are appended to a CSV file as they come, with a table, the
    ratios to reach and a PNG at the end.

    Args:
        shapes: sizes of the models, among tiny, small, 125m, 355m, 1.3b; by default small on a CPU, and on a GPU 1.3b,
            125m and 355m, in that order.
        contexts: tokens before the ones that are timed; by default 256, 1024, 4096, 16384 and 65536 on a CPU, on a GPU
            without 1024 and with 2048 in place of 4096.
        batches: sequences at a time, numbers or "max" for as many as the memory takes, in that order; by default max,
            1 and 8, on a GPU max and 1.
        contestants: who takes part.
        modes: complex modes of each distilled filter.
        dtype: of weights, activations, keys and values; by default float32 on a CPU, bfloat16 on a GPU. The gate is run
            in float32, with states of complex128.
        state_dtype: of the distilled filters' states; by default complex64 with bfloat16, which is far coarser, else
            complex128, the library's own default.
        memory_gb: 10^9 bytes that states, and what a step allocates, may take beside the weights; by default 1 on a
            CPU, on a GPU what is free.
        threads: CPU threads; by default what torch chooses.
        device: "auto" takes a GPU if there is one.
        minutes: begin no size or batch after that.
        resume: leave out what the CSV file has from this device, these versions and this dtype.
        smoke: a run of seconds, of a tiny model, to see whether everything works. Its numbers mean nothing, so they go
            to a temporary folder.
        output: the CSV file. By default experiments/benchmarks/results/decode.csv (on a GPU decode-cuda.csv) of a
            source checkout, elsewhere longconv-bench-decode.csv in the current folder.

    Returns:
        A row for every size, batch, context and contestant.

    Raises:
        ValueError: no such size, contestant or batch, a number below 1, "cuda" without a GPU, or an existing CSV file
            with other columns.
        DisagreementError: the distilled model is wrong; raised at the end.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': torch finds no GPU here")
    on_gpu = device == "cuda"
    if smoke:
        shapes, contexts = shapes or ("tiny",), contexts or (64, 256)
        memory_gb = 0.004 if memory_gb is None else memory_gb
        output = Path(tempfile.mkdtemp(prefix="longconv-bench-"), "decode.csv") if output is None else output
    shapes = shapes or (GPU_SIZES if on_gpu else CPU_SIZES)
    contexts = tuple(sorted(set(contexts or (GPU_CONTEXTS if on_gpu else CPU_CONTEXTS))))
    batches = batches or (GPU_BATCHES if on_gpu else CPU_BATCHES)
    dtype = dtype or ("bfloat16" if on_gpu else "float32")
    state_dtype = state_dtype or ("complex64" if dtype == "bfloat16" else "complex128")
    memory_gb = CPU_MEMORY_GB if memory_gb is None and not on_gpu else memory_gb
    output = default_output("decode-cuda" if on_gpu else "decode") if output is None else output
    _check_arguments(shapes, contexts, batches, contestants, modes, memory_gb, threads)
    check_columns(output, DecodeRow)
    where = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    console = Console()
    console.width = max(console.width, WIDTH)
    gc.collect()
    gc.freeze()  # what is imported by now need not be looked through whenever memory is measured
    try:
        with cpu_threads(threads) as used:
            plan = Plan(contestants, contexts, modes, (dtype, state_dtype), memory_gb, used, where, smoke)
            rows, is_wrong = _measure(plan, shapes, batches, minutes, resume, output, console)
    finally:
        gc.unfreeze()
    together = latest(read_rows(output, DecodeRow), plan.setting(SIZES[shapes[0]]))
    print_table(together, console)
    print_targets(targets(together), console)
    plot_decoding(together, output.with_suffix(".png"))
    console.print(f"{len(rows)} rows appended to {output}; drawn in {output.with_suffix('.png')}", soft_wrap=True)
    if is_wrong:
        raise DisagreementError(f"{DISTILLED}: its steps do not give the logits of its forward pass")
    return rows


@dataclass(frozen=True)
class Plan:
    """What `run` was asked for, of every size."""

    contestants: Sequence[str]
    contexts: Sequence[int]
    modes: int
    dtypes: tuple[str, str]
    memory_gb: float | None
    threads: int
    device: torch.device
    smoke: bool

    def setting(self, size: Size, memory: float = 0.0) -> dict[str, Any]:
        """The columns that rows of one size share."""
        return setting(self.device, self.threads, self.dtypes, size, self.modes, memory / 1e9)


def _measure(
    plan: Plan, shapes: Sequence[str], batches: Sequence[str], minutes: float, resume: bool, output: Path,
    console: Console,
) -> tuple[list[DecodeRow], bool]:  # fmt: skip
    """Measure sizes and batches in order; return the rows, and whether the distilled model was wrong."""
    begin, rows, is_wrong = time.monotonic(), list[DecodeRow](), False

    def is_late(what: str) -> bool:
        late = time.monotonic() - begin > 60 * minutes
        if late:
            console.print(f"{minutes:g} minutes are over; left out: {what}", style="yellow")
        return late

    for name in shapes:
        done = _in_file(output, plan, SIZES[name]) if resume else set()
        due = {
            batch: [(n, c) for c in plan.contexts for n in plan.contestants if (batch, n, c) not in done]
            for batch in batches
        }
        if not any(due.values()) or is_late(name):
            continue
        entrants = Entrants(SIZES[name], plan, console)
        is_wrong = is_wrong or entrants.refused.get(DISTILLED) == "wrong"
        for batch, wanted in due.items():
            if not wanted or is_late(f"{name}, batch {batch}"):
                continue
            new = entrants.measure(batch, wanted)
            append_rows(output, new)
            rows += new
            console.print(f"{name}, batch {batch}: {time.monotonic() - begin:.0f} s", highlight=False)
        del entrants
        return_free_memory()
    return rows, is_wrong


def _in_file(output: Path, plan: Plan, size: Size) -> set[tuple[str, str, int]]:
    """What a file has of this size: batches, contestants and contexts."""
    if not check_columns(output, DecodeRow):
        return set()
    like = plan.setting(size)
    same = ("size", "modes", "state_dtype")
    rows = latest(read_rows(output, DecodeRow), like)
    return {
        (r.batches, r.contestant, r.context) for r in rows if all(getattr(r, column) == like[column] for column in same)
    }


class Entrants:
    """The contestants of one size, and what the gate says of them.

    Attributes:
        refused: the status of those that are not timed, by name.
    """

    def __init__(self, size: Size, plan: Plan, console: Console) -> None:
        self.size, self.plan, self.refused = size, plan, dict[str, Status]()
        self._say = functools.partial(console.print, style="red", markup=False, soft_wrap=True)
        self._memory: dict[Point, Memory] = {}
        device = plan.device
        positions = max(*plan.contexts, GATE_LIMIT) + SPARE
        decoders = build(size, plan.contestants, plan.modes, GATE_LIMIT, positions, device)
        self.parameters = {d.name: sum(p.numel() for p in d.model.parameters()) for d in decoders}
        for decoder in decoders:
            self._check(decoder)
        self.decoders = {d.name: d for d in decoders if d.name not in self.refused}
        ratios = [
            f"{name} {filled_over_prefilled(d, size.vocabulary, device):.2f}" for name, d in self.decoders.items()
        ]
        line = f"{size.name}: a token after a filled state over one after a prefill of {COMPARED_CONTEXT}: "
        console.print(line + ", ".join(ratios), soft_wrap=True, highlight=False)
        for decoder in self.decoders.values():
            decoder.to(*(getattr(torch, dtype) for dtype in plan.dtypes))
            decoder.allow_any_length()
        return_free_memory()
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        self.budget = free if plan.memory_gb is None else 1e9 * plan.memory_gb

    def measure(self, batches: str, wanted: Sequence[tuple[str, int]]) -> list[DecodeRow]:
        """The rows of one number of sequences, of these contestants and contexts."""
        device, vocabulary = self.plan.device, self.size.vocabulary
        outcomes: dict[tuple[str, int], Outcome] = {}
        turns: dict[tuple[str, int], Callable[[], Callable[[], object]]] = {}
        for name, context in wanted:
            if name in self.refused:
                outcomes[name, context] = Outcome(self.refused[name], 0)
                continue
            point = Point(self.decoders[name], context)
            outcomes[name, context] = outcome = self._admit(point, batches)
            if outcome.status == "ok":
                turns[name, context] = functools.partial(start, point, outcome.batch, vocabulary, device)
        on_gpu = device.type == "cuda"
        rounds = GPU_ROUNDS if on_gpu else CPU_ROUNDS_OF_MOST if batches == "max" else CPU_ROUNDS
        seconds = GPU_SECONDS if on_gpu else CPU_SECONDS
        with torch.inference_mode():
            times = time_in_turns(turns, 1 if self.plan.smoke else rounds, BURST, device, seconds=seconds)
        return_free_memory()
        common = self.plan.setting(self.size, self.budget)
        return [
            make_row(common, key[0], self.parameters[key[0]], key[1], batches, outcome, times.get(key, []))
            for key, outcome in outcomes.items()
        ]

    def _check(self, decoder: Decoder) -> None:
        try:
            check(decoder, self.size.vocabulary, self.plan.device)
        except DisagreementError as error:
            self.refused[decoder.name] = "wrong"
            self._say(f"wrong, so not timed: {error}")
        except Exception as error:  # transformers may raise whatever it likes; the others go on without it
            self.refused[decoder.name] = "failed"
            self._say(f"failed, so not timed: {decoder.name}: {type(error).__name__}: {error}")

    def _admit(self, point: Point, batches: str) -> Outcome:
        """Find the batch, and run it once."""
        vocabulary, device = self.size.vocabulary, self.plan.device
        if point not in self._memory:
            self._memory[point] = measure_memory(*point, vocabulary, self.budget, device)
        memory = self._memory[point]
        most = memory.most((1 - MARGIN) * self.budget)
        batch = most if batches == "max" else int(batches)
        if not 1 <= batch <= most:
            return Outcome("does not fit", 0, state_bytes=memory.state, shared_bytes=memory.shared)
        attempts = ATTEMPTS if batches == "max" else 1
        return admit(point, batch, attempts, self.budget, memory, vocabulary, device, self._say)


def _check_arguments(
    shapes: Sequence[str], contexts: Sequence[int], batches: Sequence[str], contestants: Sequence[str], modes: int,
    memory_gb: float | None, threads: int | None,
) -> None:  # fmt: skip
    for what, given, known in (("shapes", shapes, tuple(SIZES)), ("contestants", contestants, CONTESTANTS)):
        if not given or set(given) - set(known):
            raise ValueError(f"{what} must be some of {', '.join(known)}; got {', '.join(given) or 'none'}")
    for batch in batches:
        if batch != "max" and not (batch.isdecimal() and int(batch) >= 1):
            raise ValueError(f"batches must be numbers from 1 up, or max; got {batch}")
    least = {"contexts": min(contexts), "modes": modes, "threads": 1 if threads is None else threads}
    for name, value in least.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if memory_gb is not None and not memory_gb > 0:
        raise ValueError(f"memory_gb must be positive, got {memory_gb}")
