"""Decoding with a constant state against decoding with a history: `longconv bench decode`.

Models of one width and depth with random weights: Hyena with distilled (modal) filters; the same undistilled, exact and
online, and with a cached history; attention with a cache of keys and values; and GPT-2 of transformers. Measured are
the time of a token and the memory, against the context, with one sequence and with as many as the memory takes.

No context is prefilled: caches and states are filled with random numbers (`decode_states.py`). The gate runs real
prefills, and the run prints how the time of a token after a filled state compares with one after a prefill.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch

from longconv.experiments.decoding import time_in_turns

from .decode_contestants import CONTESTANTS, DISTILLED, SIZES, Size, build
from .decode_measure import (
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
CPU_SIZES, GPU_SIZES = ("small",), ("125m", "355m", "1.3b")
CPU_CONTEXTS, GPU_CONTEXTS = (256, 1024, 4096, 16384, 65536), (256, 2048, 16384, 65536)
# The tables need so many columns, which a file has too.
WIDTH = 110
# A turn is about so many seconds long. With the largest batch filling the memory takes longer than that, so there are
# fewer turns.
SECONDS, ROUNDS, ROUNDS_OF_MOST = 0.3, 7, 3


def run(
    shapes: tuple[str, ...] = (),
    contexts: tuple[int, ...] = (),
    batches: tuple[str, ...] = ("max", "1", "8"),
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
        shapes: sizes of the models, among tiny, small, 125m, 355m, 1.3b; by default small on a CPU, and on a GPU the
            three last.
        contexts: tokens before the ones that are timed; by default 256, 1024, 4096, 16384 and 65536 on a CPU, on a GPU
            without 1024 and with 2048 in place of 4096.
        batches: sequences at a time, numbers or "max" for as many as the memory takes; the most important first.
        contestants: who takes part.
        modes: complex modes of each distilled filter.
        dtype: of weights, activations, keys and values; by default float32 on a CPU, bfloat16 on a GPU. The gate is run
            in float32, with states of complex128.
        state_dtype: of the distilled filters' states; by default complex64 with bfloat16, which is far coarser, else
            complex128, the library's own default.
        memory_gb: 10^9 bytes that states, and what a step allocates, may take beside the weights; by default 2 on a
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
        shapes, contexts, memory_gb = shapes or ("tiny",), contexts or (64, 256), memory_gb or 0.004
        output = Path(tempfile.mkdtemp(prefix="longconv-bench-"), "decode.csv") if output is None else output
    shapes = shapes or (GPU_SIZES if on_gpu else CPU_SIZES)
    contexts = tuple(sorted(set(contexts or (GPU_CONTEXTS if on_gpu else CPU_CONTEXTS))))
    dtype = dtype or ("bfloat16" if on_gpu else "float32")
    state_dtype = state_dtype or ("complex64" if dtype == "bfloat16" else "complex128")
    memory_gb = 2.0 if memory_gb is None and not on_gpu else memory_gb
    output = default_output("decode-cuda" if on_gpu else "decode") if output is None else output
    _check_arguments(shapes, contexts, batches, contestants, modes, memory_gb, threads)
    check_columns(output, DecodeRow)
    console, begin, rows, wrong = Console(), time.monotonic(), [], []
    console.width = max(console.width, WIDTH)
    where = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    with cpu_threads(threads) as used:
        for name in shapes:
            if time.monotonic() - begin > 60 * minutes:
                console.print(f"{minutes:g} minutes are over; left out: {name}", style="yellow")
                continue
            entrants = _Entrants(
                SIZES[name], contestants, contexts, modes, (dtype, state_dtype), memory_gb, used, where, console
            )
            wrong += entrants.wrong if DISTILLED in entrants.wrong else []
            for batch in batches:
                if time.monotonic() - begin > 60 * minutes:
                    console.print(f"{minutes:g} minutes are over; left out: {name}, batch {batch}", style="yellow")
                    continue
                done = _measured(output, entrants, batch) if resume else set()
                new = entrants.measure(batch, done, smoke)
                append_rows(output, new)
                rows += new
                console.print(f"{name}, batch {batch}: {time.monotonic() - begin:.0f} s", highlight=False)
            common = entrants.common
            del entrants
            return_free_memory()
        together = latest(read_rows(output, DecodeRow), common) if rows else []
    print_table(together, console)
    print_targets(targets(together), console)
    plot_decoding(together, output.with_suffix(".png"))
    console.print(f"{len(rows)} rows appended to {output}; drawn in {output.with_suffix('.png')}", soft_wrap=True)
    if wrong:
        raise DisagreementError(f"{DISTILLED}: its steps do not give the logits of its forward pass")
    return rows


class _Entrants:
    """The contestants of one size, checked; and what they have in common."""

    def __init__(
        self, size: Size, names: Sequence[str], contexts: Sequence[int], modes: int, dtypes: tuple[str, str],
        memory_gb: float | None, threads: int, device: torch.device, console: Console,
    ) -> None:  # fmt: skip
        self.size, self.contexts, self.device, self.console = size, contexts, device, console
        self.wrong: list[str] = []
        self._memory: dict[Point, Memory] = {}
        positions = max(*contexts, GATE_LIMIT) + SPARE
        decoders = build(size, names, modes, GATE_LIMIT, positions, device)
        self.parameters = {d.name: sum(p.numel() for p in d.model.parameters()) for d in decoders}
        for decoder in decoders:
            try:
                check(decoder, size.vocabulary, device)
            except DisagreementError as error:
                console.print(f"wrong, so not timed: {error}", style="bold red", markup=False)
                self.wrong.append(decoder.name)
        self.decoders = [d for d in decoders if d.name not in self.wrong]
        compared = {d.name: filled_over_prefilled(d, size.vocabulary, device) for d in self.decoders}
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in compared.items())
        console.print(
            f"{size.name}: a token after a filled state over one after a prefill of {COMPARED_CONTEXT}: {ratios}",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
        for decoder in self.decoders:
            decoder.to(*(getattr(torch, dtype) for dtype in dtypes))
            decoder.allow(2 * max(contexts))
        return_free_memory()
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        self.budget = free if memory_gb is None else 1e9 * memory_gb
        self.common = setting(device, threads, dtypes, size, modes, self.budget / 1e9)

    def measure(self, batches: str, done: set[tuple[str, int]], quick: bool) -> list[DecodeRow]:
        """The rows of one number of sequences, without the contestants and contexts that are `done`."""
        points = [Point(d, c) for c in self.contexts for d in self.decoders if (d.name, c) not in done]
        outcomes: dict[Point, Outcome] = {}
        for point in points:
            outcomes[point] = self._admit(point, batches)
        turns: dict[Point, Callable[[], Callable[[], object]]] = {
            point: functools.partial(start, point, outcome.batch, self.size.vocabulary, self.device)
            for point, outcome in outcomes.items()
            if outcome.status == "ok"
        }
        rounds = 1 if quick else ROUNDS_OF_MOST if batches == "max" else ROUNDS
        with torch.inference_mode():
            times = time_in_turns(turns, rounds, BURST, self.device, seconds=SECONDS)
        return_free_memory()
        wrong = [(name, c, Outcome("wrong", 0)) for name in self.wrong for c in self.contexts if (name, c) not in done]
        measured = [(p.decoder.name, p.context, outcome) for p, outcome in outcomes.items()]
        by_name = {(p.decoder.name, p.context): ms for p, ms in times.items()}
        return [
            make_row(self.common, name, self.parameters[name], c, batches, outcome, by_name.get((name, c), []))
            for name, c, outcome in measured + wrong
        ]

    def _admit(self, point: Point, batches: str) -> Outcome:
        """Find the batch, and run it once."""
        vocabulary, device = self.size.vocabulary, self.device
        if point not in self._memory:
            self._memory[point] = measure_memory(*point, vocabulary, self.budget, device)
        memory = self._memory[point]
        most = memory.most((1 - MARGIN) * self.budget)
        batch = most if batches == "max" else int(batches)
        if not 1 <= batch <= most:
            return Outcome("does not fit", 0, state_bytes=memory.state, shared_bytes=memory.shared)
        say = functools.partial(self.console.print, style="red", markup=False, soft_wrap=True)
        return admit(point, batch, memory, vocabulary, device, say)


def _measured(output: Path, entrants: _Entrants, batches: str) -> set[tuple[str, int]]:
    """What the file has of this size and batch: contestants and contexts."""
    if not check_columns(output, DecodeRow):
        return set()
    rows = latest(read_rows(output, DecodeRow), entrants.common)
    mine = (row for row in rows if (row.size, row.batches) == (entrants.size.name, batches))
    return {
        (row.contestant, row.context)
        for row in mine
        if all(getattr(row, n) == entrants.common[n] for n in ("modes", "state_dtype"))
    }


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
    if not batches:
        raise ValueError("batches must be one or more, got none")
    if memory_gb is not None and not memory_gb > 0:
        raise ValueError(f"memory_gb must be positive, got {memory_gb}")
