"""Training steps of every layer beside attention, on sequences as long as the Long Range Arena's: `longconv bench lra`.

Classifiers of one width, depth and number of parameters (lra_models.py), each with another mixer, take training steps:
forward, backward and AdamW. With `data`, the same models take batches of real tasks through their loaders, to see
whether they wait for them (lra_data.py). Rows, tables and plot: lra_report.py.
"""

import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from longconv.training import parameter_groups

from .harness import DisagreementError, cpu_threads, interleave, peak_of, return_free_memory
from .lra_data import TASKS, check_tasks, open_tasks
from .lra_models import BASELINE, CONTESTANTS, Size, build, check, check_layers, mixer_options, parameters, token_batch
from .lra_report import LoadRow, Status, StepRow, plot, print_loads, print_steps
from .report import Timing, append_rows, check_columns, default_output, environment

try:
    from rich.console import Console
    from rich.progress import Progress
except ImportError as error:
    raise ImportError(f"this benchmark needs {error.name}: pip install 'longconv[bench]'") from error

# What `run` takes by default: lengths, the model, tokens of a step. On a GPU a turn has several steps, which are
# launched ahead of each other as in training.
LENGTHS = (1024, 2048, 4096, 8192, 16384)
CPU_SIZE, CPU_TOKENS, CPU_BURST = Size(128, 2), 2**14, 1
GPU_SIZE, GPU_TOKENS, GPU_BURST = Size(256, 6), 2**17, 4
QUICK_LENGTHS, QUICK_SIZE, QUICK_TOKENS = (64, 256), Size(32, 1), 512
# Gradients are what is timed; a learning rate this small leaves the weights what they are.
LEARNING_RATE = 1e-5


def run(
    layers: tuple[str, ...] = tuple(CONTESTANTS),
    lengths: tuple[int, ...] = (),
    width: int | None = None,
    blocks: int | None = None,
    tokens: int | None = None,
    repeats: int = 5,
    precision: Literal["float32", "bfloat16"] | None = None,
    compile: bool = False,
    data: bool = False,
    tasks: tuple[str, ...] = TASKS,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    workers: int = 0,
    seconds: float = 5.0,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    quick: bool = False,
    output: Path | None = None,
) -> list[StepRow] | list[LoadRow]:
    """Time training steps of classifiers with each layer at each length, or with `data` their input pipelines.

    Models have one width and depth, MLPs as wide as it takes to have the parameters of the one with attention, and are
    two-sided where the layer can be. Steps are forward, backward and AdamW, without dropout, interleaved over the
    layers. A model whose logits or gradients in float32 are not those in float64 is not timed. Prints a table, appends
    its rows to a CSV file and draws a PNG beside it.

    With `data`, each model is trained on each task for some seconds through a DataLoader; the table says what share of
    that time it waits for batches.

    Args:
        layers: who takes part; attention always does.
        lengths: of sequences; by default 1024, 2048, 4096, 8192 and 16384.
        width: channels, a multiple of 32; by default 128, on a GPU 256.
        blocks: of the models; by default 2, on a GPU 6.
        tokens: of a step, rounded down to whole sequences, at least one; by default 16,384, on a GPU 131,072.
        repeats: timed rounds.
        precision: "bfloat16" is autocast; by default on a GPU that, else float32.
        compile: run the models through torch.compile, in the warm-up.
        data: measure the input pipeline.
        tasks: with `data`, names of tasks.
        data_dir: with `data`, the folder of a task that reads files; without one, small stand-ins are written.
        cache_dir: with `data`, where tasks keep their rows; by default a temporary folder.
        workers: with `data`, processes that load.
        seconds: with `data`, how long each loader and each model is run, at least.
        threads: CPU threads; by default what torch chooses.
        device: "auto" takes a GPU if there is one.
        quick: a run of seconds, of a tiny model, to see whether everything works. Its numbers mean nothing, so they go
            to a temporary folder.
        output: the CSV file. By default experiments/benchmarks/results/lra.csv (on a GPU lra-cuda.csv; with `data`
            lra-data.csv, lra-data-cuda.csv) of a source checkout, elsewhere longconv-bench-lra.csv in the current
            folder.

    Returns:
        A row for every length and layer, or with `data` for every task and layer.

    Raises:
        ValueError: no such layer or task, a number out of range, "cuda" without a GPU, or an existing CSV file with
            other columns.
        DisagreementError: attention is wrong.
    """
    check_layers(layers)
    if data:
        check_tasks(tasks)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': torch finds no GPU here")
    on_gpu = device == "cuda"
    size = QUICK_SIZE if quick else GPU_SIZE if on_gpu else CPU_SIZE
    size = Size(size.width if width is None else width, size.layers if blocks is None else blocks)
    usual = QUICK_TOKENS if quick else GPU_TOKENS if on_gpu else CPU_TOKENS
    tokens = usual if tokens is None else tokens
    lengths = lengths or (QUICK_LENGTHS if quick else LENGTHS)
    if quick:
        repeats, seconds = min(repeats, 2), min(seconds, 0.1)
        output = Path(tempfile.mkdtemp(prefix="longconv-bench-"), "lra.csv") if output is None else output
    _check_numbers(
        lengths=min(lengths), width=size.width, blocks=size.layers, tokens=tokens, repeats=repeats,
        threads=1 if threads is None else threads,
    )  # fmt: skip
    if size.width % 32:
        raise ValueError(f"width must be a multiple of 32, got {size.width}")
    if workers < 0 or not seconds > 0:
        raise ValueError(f"workers must be at least 0 and seconds positive, got {workers} and {seconds}")
    if output is None:
        output = default_output("lra" + "-data" * data + "-cuda" * on_gpu)
    check_columns(output, LoadRow if data else StepRow)
    names = tuple(name for name in CONTESTANTS if name in layers or name == BASELINE)
    console = Console()
    console.width = max(console.width, 100)
    with cpu_threads(threads) as used:
        where = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        plan = Plan(names, size, tokens, repeats, precision or ("bfloat16" if on_gpu else "float32"), compile, where)
        context = environment(where, used) | {"precision": plan.precision, "compiled": compile}
        del context["memory"]
        if data:
            opened = open_tasks(tasks, data_dir, cache_dir, quick)
            loads = plan.load(opened, context, workers, seconds, console)
            append_rows(output, loads)
            print_loads(loads, console)
            console.print(f"{len(loads)} rows appended to {output}", soft_wrap=True)
            return loads
        rows = []
        for length in sorted(set(lengths)):
            new = plan.measure(length, context, console)
            append_rows(output, new)  # length by length: what is measured stays, whatever happens to the next
            rows += new
    print_steps(rows, console)
    plot(rows, output.with_suffix(".png"))
    console.print(f"{len(rows)} rows appended to {output}; drawn in {output.with_suffix('.png')}", soft_wrap=True)
    return rows


def _check_numbers(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


class Training:
    """A model and its optimiser: a call takes one training step on the batch that it is given.

    Args:
        model: a classifier; it goes to `device`.
        precision: "bfloat16" for autocast, or "float32".
        compile: run it through torch.compile.
        device: where.
    """

    def __init__(self, model: Any, precision: str, compile: bool, device: torch.device) -> None:
        self.device, self.half = device, precision == "bfloat16"
        self.model = model.to(device).train()
        self.forward = torch.compile(self.model) if compile else self.model
        fused = device.type == "cuda"
        self.optimiser = torch.optim.AdamW(parameter_groups(model, LEARNING_RATE, 0.05), fused=fused)

    def __call__(self, batch: Mapping[str, Tensor]) -> None:
        """Forward, backward, update."""
        self.optimiser.zero_grad(set_to_none=True)
        context: AbstractContextManager[Any] = nullcontext()
        if self.half:
            context = torch.autocast(self.device.type, torch.bfloat16)
        with context:
            loss = self.forward(**batch).loss
        loss.backward()
        self.optimiser.step()


def wall_ms(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of a call by the clock on the wall, until the device is done."""
    _wait(device)
    begin = time.perf_counter()
    call()
    _wait(device)
    return 1e3 * (time.perf_counter() - begin)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Plan:
    """What `run` was asked for."""

    names: tuple[str, ...]
    size: Size
    tokens: int
    repeats: int
    precision: str
    compile: bool
    device: torch.device

    def measure(self, length: int, context: Mapping[str, Any], console: Console) -> list[StepRow]:
        """The rows of one length."""
        batch = token_batch(max(1, self.tokens // length), length, self.device)
        burst = GPU_BURST if self.device.type == "cuda" else CPU_BURST
        columns: dict[str, dict[str, Any]] = {}
        turns: dict[str, Callable[[], None]] = {}
        with Progress(console=console) as progress:
            bar = progress.add_task(f"L={length}", total=len(self.names) + self.repeats + 1)
            for name in self.names:
                columns[name], step = self._admit(name, length, batch, console)
                if step is not None:
                    turns[name] = functools.partial(_repeat, burst, functools.partial(step, batch))
                progress.advance(bar)
            times = interleave(
                turns,
                self.repeats,
                self.device,
                warmup=1,  # the first step was taken when memory was measured
                before=return_free_memory,
                tick=lambda: progress.advance(bar),
                clock=wall_ms,
            )
        medians = {name: timing.median for name, timing in times.items()}
        return [
            StepRow(
                **context,
                layer=name,
                **columns[name],
                blocks=self.size.layers,
                width=self.size.width,
                L=length,
                batch=len(batch["labels"]),
                repeats=self.repeats,
                **_numbers(times.get(name), burst, batch["input_ids"].numel(), medians.get(BASELINE)),
            )
            for name in self.names
        ]

    def _admit(
        self, name: str, length: int, batch: Mapping[str, Tensor], console: Console
    ) -> tuple[dict[str, Any], Training | None]:
        """Build and check a model, and take its first steps: columns of its row, and what is to be timed."""
        model = build(name, self.size, length).to(self.device)
        columns: dict[str, Any] = {
            "options": json.dumps(mixer_options(name, self.size.width, length)),
            "direction": "causal" if model.model.layers[0].mixer.causal else "two-sided",
            "mlp": model.config.intermediate_size,
            "parameters": parameters(model),
            "status": "ok",
            "peak_MB": None,
        }
        status: Status
        reason: Exception
        try:
            check(name, model, length)
            step = Training(model, self.precision, self.compile, self.device)
            step(batch)  # makes the optimiser's states, compiles
            peak = peak_of(functools.partial(step, batch), self.device)
        except DisagreementError as error:
            if name == BASELINE:
                raise
            status, reason = "wrong", error
        except torch.OutOfMemoryError as error:
            status, reason = "out of memory", error
        else:
            return columns | {"peak_MB": None if peak is None else round(peak, 1)}, step
        console.print(f"{status}, so not timed: {name}, L={length}: {reason}", style="bold red", markup=False)
        return columns | {"status": status}, None

    def load(
        self, tasks: Iterator[Any], context: Mapping[str, Any], workers: int, seconds: float, console: Console
    ) -> list[LoadRow]:
        """The rows of all tasks."""
        rows = []
        for opened in tasks:
            batch = max(1, self.tokens // (opened.task.length * (1 + opened.task.is_pair)))
            rate = opened.rate(batch, seconds)
            for name in self.names:
                model = build(name, self.size, opened.task.length, **opened.inputs())
                step = Training(model, self.precision, self.compile, self.device)
                run = opened.train(step, batch, workers, seconds, functools.partial(_wait, self.device), self.device)
                rows.append(
                    LoadRow(
                        **context,
                        task=opened.task.name,
                        source=opened.source,
                        rows=len(opened.rows),
                        workers=workers,
                        batch=batch,
                        mean_length=round(run.mean_length, 1),
                        loader_rows_per_s=_digits(rate),
                        layer=name,
                        blocks=self.size.layers,
                        width=self.size.width,
                        steps=run.steps,
                        model_rows_per_s=_digits(run.rows / run.training),
                        rows_per_s=_digits(run.rows / (run.training + run.waiting)),
                        waiting=_digits(run.waiting / (run.training + run.waiting)),
                    )
                )
                console.print(f"{opened.task.name}, {name}: waits {100 * rows[-1].waiting:.2f}%", highlight=False)
        return rows


def _repeat(times: int, call: Callable[[], object]) -> None:
    for _ in range(times):
        call()


def _numbers(timing: Timing | None, burst: int, tokens: int, baseline: float | None) -> dict[str, Any]:
    if timing is None:
        return dict.fromkeys(("ms_median", "ms_min", "ms_max", "steps_per_s", "tokens_per_s", "speedup"))
    median = timing.median / burst
    return {
        "ms_median": round(median, 3),
        "ms_min": round(timing.min / burst, 3),
        "ms_max": round(timing.max / burst, 3),
        "steps_per_s": _digits(1e3 / median),
        "tokens_per_s": _digits(1e3 * tokens / median),
        "speedup": None if baseline is None else _digits(baseline / timing.median),
    }


def _digits(x: float) -> float:
    return float(f"{x:.4g}")
