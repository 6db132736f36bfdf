"""What distillation costs a language model in quality, on text: `longconv bench quality`.

Small models with each kind of long filter (quality_models.py) are trained on real text, distilled to several orders and
tolerances by several methods, and compared with what they were on text that no model has seen. Rows, tables and plot:
quality_report.py. A trained model is kept, and used again by the next run.
"""

import itertools
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from longconv.distill import METHODS, Recorded, compare, distill
from longconv.models import load_model, save_model
from longconv.training import TrainConfig, train

from .harness import cpu_threads
from .quality_models import MODELS, recipe, trained
from .quality_report import QualityRow, plot, print_tables
from .report import append_rows, default_output, environment

try:
    from rich.console import Console
except ImportError as error:
    raise ImportError(f"this benchmark needs {error.name}: pip install 'longconv[bench]'") from error


def run(
    models: tuple[str, ...] = tuple(MODELS),
    methods: tuple[str, ...] = ("best",),
    orders: tuple[int, ...] = (4, 8, 16, 32, 64),
    tols: tuple[float, ...] = (1e-1, 1e-2, 1e-3),
    max_order: int = 64,
    gradient_steps: int = 30_000,
    minutes: float = 3.0,
    finetune_minutes: float = 0.3,
    finetune_order: int = 4,
    folder: Path = Path("runs/quality"),
    data: Path | None = None,
    length: int = 1024,
    hidden_size: int = 128,
    layers: int = 3,
    vocab_size: int = 1024,
    blocks: int = 24,
    seed: int = 0,
    threads: int | None = None,
    output: Path | None = None,
) -> list[QualityRow]:
    """Train small language models, distil them, and measure what that costs on test text.

    The text is the source of Python's standard library; the test blocks are spread evenly over its test files. Prints a
    line for each student and two tables at the end, appends the rows to a CSV file and draws a PNG beside it.

    Args:
        models: names of `quality_models.MODELS`.
        methods: of `longconv.distill.distill`; the last one's student is fine-tuned.
        orders: real states per filter to distil to.
        tols: relative L2 errors to distil to.
        max_order: most states of a filter with `tols`.
        gradient_steps: of the method "gradient"; its paper's number takes hours on a CPU.
        minutes: training time of each model. One that is in `folder` already is not trained again.
        finetune_minutes: how long the student of `finetune_order` is fine-tuned, towards what its teacher predicts on
            training text; 0 for not at all.
        finetune_order: its states per filter.
        folder: for the models.
        data: text file or folder; default the source of Python's own standard library.
        length: tokens in a sequence, in training and test; taps of a filter.
        hidden_size: channels.
        layers: blocks.
        vocab_size: pieces of the SentencePiece vocabulary.
        blocks: test sequences.
        seed: of weights and order of the data.
        threads: CPU threads; by default what torch chooses.
        output: the CSV file. By default experiments/benchmarks/results/quality.csv of a source checkout, elsewhere
            longconv-bench-quality.csv in the current folder.

    Returns:
        A row for every student.

    Raises:
        ValueError: an unknown model or method, a number out of range, a folder with models of other options, or an
            existing CSV file with other columns.
    """
    for name, numbers in (
        ("orders", orders),
        ("max_order", (max_order,)),
        ("blocks", (blocks,)),
        ("gradient_steps", (gradient_steps,)),
    ):
        if any(number < 1 for number in numbers):
            raise ValueError(f"{name} must be at least 1, got {numbers}")
    if not models or not methods or not (orders or tols):
        raise ValueError("give at least one of models, one of methods, and one of orders or tols")
    if finetune_minutes < 0 or finetune_order < 1:
        raise ValueError("finetune_minutes must be at least 0 and finetune_order at least 1")
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"methods: unknown {method!r}; known: {', '.join(METHODS)}")
    base = TrainConfig(
        output=folder,
        data=data,
        minutes=minutes,
        seed=seed,
        steps=0,
        tokenizer="sentencepiece",
        vocab_size=vocab_size,
        length=length,
        hidden_size=hidden_size,
        layers=layers,
        batch_size=1,  # in a few minutes many small steps go further than few large ones
        lr=2e-3,
        warmup=0.1,
        evaluate_batches=50,
    )
    recipes = {name: recipe(name, base) for name in models}
    for config in recipes.values():
        config.check()
    output = default_output("quality") if output is None else output
    console, rows = Console(), []
    with cpu_threads(threads) as used:
        context = environment(torch.device("cpu"), used)
        del context["memory"]
        for name, config in recipes.items():
            console.print(f"\n[bold]{name}[/]", highlight=False)
            subject = Subject.prepare(name, config, blocks, {"gradient": {"steps": gradient_steps}})
            found = []
            settings = [{"order": order} for order in orders] + [{"tol": tol} for tol in tols]
            for method, setting in itertools.product(methods, settings):
                found.append(subject.measure(context, method, max_order, **setting))
                console.print(str(found[-1]), highlight=False, soft_wrap=True)
            if finetune_minutes:
                found.append(subject.fine_tune(context, methods[-1], finetune_order, finetune_minutes))
                console.print(str(found[-1]), highlight=False, soft_wrap=True)
            append_rows(output, found)  # model by model: what is measured stays, whatever happens to the next
            rows += found
    print_tables(rows, console)
    plot(rows, output.with_suffix(".png"))
    console.print(f"{len(rows)} rows appended to {output}; drawn in {output.with_suffix('.png')}", soft_wrap=True)
    return rows


@dataclass
class Subject:
    """A trained model, its predictions on the test text, and what else its students are measured with."""

    name: str
    config: TrainConfig
    teacher: Any
    task: Any
    batches: list[dict[str, Tensor]]
    recorded: Recorded
    options: dict[str, dict[str, Any]]

    @classmethod
    def prepare(cls, name: str, config: TrainConfig, blocks: int, options: dict[str, dict[str, Any]]) -> "Subject":
        """Train the model, or find it trained, and let it predict the test text; `options` are of the methods."""
        teacher, task = trained(config)
        split = task.splits()["test"]
        count = min(blocks, len(split))
        split = split.select([i * len(split) // count for i in range(count)])
        batches = list(DataLoader(split, batch_size=4, collate_fn=task.collate))
        return cls(name, config, teacher, task, batches, Recorded(teacher, batches), options)

    def measure(
        self,
        context: dict[str, Any],
        method: str,
        max_order: int,
        *,
        order: int | None = None,
        tol: float | None = None,
    ) -> QualityRow:
        """Distil and compare."""
        started = time.perf_counter()
        options = self.options.get(method, {})
        student, _ = distill(self.teacher, order=order, tol=tol, max_order=max_order, method=method, **options)
        seconds = time.perf_counter() - started
        return self._row(context, student, method, order, tol, max_order, distill_seconds=round(seconds, 3))

    def fine_tune(self, context: dict[str, Any], method: str, order: int, minutes: float) -> QualityRow:
        """Distil, train the student with its teacher, and compare it with that."""
        folder = Path(self.config.output)
        start, tuned = folder / f"distilled-{method}-{order}", folder / f"fine-tuned-{method}-{order}"
        shutil.rmtree(tuned, ignore_errors=True)  # of a student that was another, perhaps
        started = time.perf_counter()
        student, _ = distill(self.teacher, order=order, method=method, **self.options.get(method, {}))
        seconds = time.perf_counter() - started
        save_model(student, start, self.task.tokenizer)
        config = TrainConfig(
            output=tuned,
            init=start,
            teacher=folder / "model",
            data=self.config.data,
            length=self.config.length,
            batch_size=1,
            steps=0,
            kd_weight=1.0,
            minutes=minutes,
            # Near its goal, AdamW's steps are noise of the size of the learning rate.
            lr=5e-5,
            filter_lr_scale=0.1,
            warmup=0.1,
            seed=self.config.seed + 1,  # another order of the data
            save_every=0,
            evaluate_batches=1,
        )
        log = train(config).log
        return self._row(
            context, load_model(tuned / "model"), method, order, None, order,
            distill_seconds=round(seconds, 3), fine_tuned_seconds=round(log[-1]["seconds"], 1),
        )  # fmt: skip

    def _row(
        self,
        context: dict[str, Any],
        student: Any,
        method: str,
        order: int | None,
        tol: float | None,
        max_order: int,
        *,
        distill_seconds: float,
        fine_tuned_seconds: float = 0.0,
    ) -> QualityRow:
        found = compare(self.recorded, student, self.batches, token_bytes=self.task.tokenizer.token_bytes)
        before, after = filters_of(self.teacher), filters_of(student)
        taps = self.config.length
        with torch.no_grad():
            k, k_hat = (torch.cat([f(taps) for f, _ in filters]).double() for filters in (before, after))
            counts = [used_states(f) for f, _ in after]
        norm, error = (torch.linalg.vector_norm(x, dim=-1) for x in (k, k - k_hat))
        relative = torch.where(norm > 0, error / norm, torch.where(error > 0, torch.inf, 0.0))
        states = torch.cat(counts)
        log = self._training()
        return QualityRow(
            **context,
            model=self.name,
            parameters=sum(p.numel() for p in self.teacher.parameters()),
            train_seconds=round(log["seconds"], 1),
            train_updates=log["step"],
            method=" ".join([method, *(f"({name}={value})" for name, value in self.options.get(method, {}).items())]),
            order=order,
            tol=tol,
            max_order=max_order,
            # A filter that fits to a rounding of float32 above the tolerance has been cast since.
            reached=None if tol is None else round((relative <= tol + 1e-6).double().mean().item(), 4),
            fine_tuned_seconds=fine_tuned_seconds,
            taps=taps,
            filters=len(states),
            states_mean=round(states.double().mean().item(), 2),
            states_max=int(states.max()),
            state_size=sum(int(n.sum()) * copies for n, (_, copies) in zip(counts, after, strict=True)),
            filter_error=_digits((error.norm() / norm.norm()).item()),
            filter_error_worst=_digits(relative.max().item()),
            distill_seconds=distill_seconds,
            tokens=found.tokens,
            text_bytes=found.bytes or 0,
            teacher_bits_per_byte=round(found.teacher_bits_per_byte, 6),
            student_bits_per_byte=round(found.student_bits_per_byte, 6),
            bits_per_byte_lost=round(found.bits_per_byte_lost, 7),
            kl=_digits(found.kl),
            top1=round(found.top1, 6),
        )

    def _training(self) -> dict[str, Any]:
        """The last line of the log."""
        return json.loads((Path(self.config.output) / "log.jsonl").read_text().splitlines()[-1])


def filters_of(model: Any) -> list[tuple[Callable[[int], Tensor], int]]:
    """Every bank of long filters of a model, and how many states of each filter a sequence keeps."""
    mixers = [block.mixer for block in model.base_model.layers]
    return [(bank, mixer.state_copies) for mixer in mixers for bank in mixer.long_filters]


def used_states(filter: Any) -> Tensor:
    """(D,) real states of each filter of a `ModalFilter`: 2 for a mode, 1 if its pole is real, 0 without a residue."""
    poles, residues = filter.poles, filter.residues
    used = (poles != 0) & (residues != 0)
    real = poles.imag.abs() <= 1e-12 * poles.abs()
    return torch.where(used, 2 - real.long(), 0).sum(-1)


def _digits(x: float) -> float:
    return float(f"{x:.4g}")
