"""`longconv demo`: from text to a distilled, generating long-convolution language model, in a few minutes."""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from transformers import set_seed

from longconv.distill import DistillReport, distill
from longconv.models import save_model
from longconv.training import TrainConfig, TrainResult, train

from .decoding import DecodeTiming, time_decoding

CONTEXTS = (256, 512, 1024, 2048, 4096)
PROMPT = "def read_file(path):\n    "


def recipe(output: Path, mixers: str, minutes: float, seed: int) -> TrainConfig:
    """The demo's model and schedule; the same for every mixer."""
    return TrainConfig(
        output=output,
        mixers=mixers,
        minutes=minutes,
        seed=seed,
        steps=0,
        tokenizer="sentencepiece",
        vocab_size=1024,
        length=512,
        max_length=max(CONTEXTS) + 128,
        hidden_size=192,
        layers=4,
        # Smooth filters, with windows from a few tokens to twice the training length (max_length is eight times that).
        mixer_options={
            "hyena": {
                "filter": {"name": "hyena", "emb_dim": 3, "w": 1.0, "fast_decay_pct": 0.002, "slow_decay_pct": 0.3}
            },
            "attention": {"num_heads": 6},
        },
        batch_size=1,  # in two minutes many small steps go further than few large ones
        lr=2e-3,
        warmup=0.1,
        save_every=0,
        evaluate_batches=200,
    )


def run(
    output: Path = Path("runs/demo"),
    *,
    minutes: float = 1.9,
    tol: float = 1e-3,
    seed: int = 0,
    evaluate_batches: int = 40,
) -> dict[str, Any]:
    """Train a small Hyena language model, distil it, generate, and show what each step gave.

    An attention model of the same size is trained for the same time beside it. Everything is computed here and now, on
    the source of Python's standard library; nothing is downloaded.

    Args:
        output: folder for the models, plots and numbers; what an earlier demo left there is replaced.
        minutes: training time of each of the two models.
        tol: relative L2 error to which each filter is distilled.
        seed: of weights, data order and sampling.
        evaluate_batches: batches of the test split to evaluate on.
    """
    console = Console()
    started = time.perf_counter()
    if (output / "demo.json").exists() or not output.exists():
        shutil.rmtree(output, ignore_errors=True)
    elif any(output.iterdir()):
        raise ValueError(f"{output} is not empty and not an earlier demo: choose another output")

    def step(number: int, text: str) -> None:
        console.print(f"\n[bold]{number}/5  {text}[/bold]  [dim]({time.perf_counter() - started:.0f} s)[/dim]")

    step(1, f"Train two models for {minutes:g} minutes each, on the source of Python's standard library")
    results = {name: train(recipe(output / name, name, minutes, seed)) for name in ("hyena", "attention")}
    task = results["hyena"].task
    console.print(task.describe(), highlight=False)

    step(2, f"Distil the Hyena filters into recurrences, to a relative error of {tol:g}")
    with console.status("distil") as status:
        student, report = distill(
            results["hyena"].model, tol=tol, progress=lambda line: status.update(f"distil {line}")
        )
    save_model(student, output / "distilled", task.tokenizer)
    console.print(str(report), highlight=False)

    step(3, "Evaluate on files that no model has seen")
    models = {"hyena": results["hyena"].model, "distilled": student, "attention": results["attention"].model}
    quality = {}
    for name, model in models.items():
        quality[name] = task.evaluate(model, "test", max_batches=evaluate_batches, batch_size=8)
        console.print(f"{name:<10}{quality[name]['bits_per_byte']:.4f} bits per byte", highlight=False)

    step(4, "Generate, from the convolution and from the recurrence")
    texts = {name: _continue(models[name], task.tokenizer, seed) for name in ("hyena", "distilled")}
    for name, text in texts.items():
        console.print(Panel(text, title=name, title_align="left", width=100), highlight=False, markup=False)

    step(5, "Time a token against the length of the context")
    tokens = torch.from_numpy(task.stream("test")[: max(CONTEXTS) + 100].astype("int64"))
    with console.status("time") as status:
        timings = time_decoding(models, CONTEXTS, tokens, progress=lambda line: status.update(line))

    plots = [
        _plot_losses(results, output / "loss.png"),
        *(path for path in report.save(output) if path.suffix == ".png"),
        _plot_decoding(timings, output / "decode.png"),
    ]
    summary = Summary(results, quality, report, timings, texts, time.perf_counter() - started)
    (output / "demo.json").write_text(json.dumps(summary.to_dict(), indent=1))
    console.print()
    summary.print(console)
    console.print(f"\nplots: {' '.join(str(path) for path in plots)}", highlight=False, soft_wrap=True)
    console.print(f"next:  longconv generate {output / 'distilled'} --prompt 'class '", highlight=False)
    return summary.to_dict()


def _continue(model: Any, tokenizer: Any, seed: int, count: int = 120) -> str:
    """The prompt and a sampled continuation."""
    set_seed(seed)
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(PROMPT)]])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=True, temperature=0.7, top_k=30
    )
    return tokenizer.decode(out[0].tolist())


@dataclass(frozen=True)
class Summary:
    """What the demo measured, for the screen and for demo.json."""

    results: dict[str, TrainResult]
    quality: dict[str, dict[str, float]]
    report: DistillReport
    timings: list[DecodeTiming]
    texts: dict[str, str]
    seconds: float

    def rate(self, model: str, context: int) -> float:
        """Tokens per second."""
        return next(t.tokens_per_second for t in self.timings if (t.model, t.context) == (model, context))

    def to_dict(self) -> dict[str, Any]:
        """Every number, JSON-ready."""
        short, long = CONTEXTS[0], CONTEXTS[-1]
        return {
            "seconds": self.seconds,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "parameters": {name: sum(p.numel() for p in r.model.parameters()) for name, r in self.results.items()},
            "steps": {name: r.log[-1]["step"] for name, r in self.results.items()},
            "test": self.quality,
            "bits_per_byte_lost": self.quality["distilled"]["bits_per_byte"] - self.quality["hyena"]["bits_per_byte"],
            "time_ratio_long_to_short_context": self.rate("distilled", short) / self.rate("distilled", long),
            "distillation": [fit.summary() for fit in self.report.layers],
            "tokens_per_second": [
                {"model": t.model, "context": t.context, "tokens_per_second": t.tokens_per_second} for t in self.timings
            ],
            "generated": self.texts,
        }

    def print(self, console: Console) -> None:
        """One screen."""
        numbers = self.to_dict()
        short, long = CONTEXTS[0], CONTEXTS[-1]
        table = Table(title=f"longconv demo, {self.seconds / 60:.1f} minutes", title_justify="left")
        for column in (
            "model",
            "parameters",
            "updates",
            "bits/byte",
            f"tokens/s\nat {short}",
            f"tokens/s\nat {long:,}",
        ):
            table.add_column(column, justify="left" if column == "model" else "right")
        for name, label in (("hyena", "Hyena"), ("distilled", "  distilled"), ("attention", "attention")):
            trained = name if name in self.results else "hyena"
            table.add_row(
                label,
                f"{sum(p.numel() for p in self.results[trained].model.parameters()):,}" if name == trained else "",
                f"{numbers['steps'][trained]:,}" if name == trained else "",
                f"{self.quality[name]['bits_per_byte']:.4f}",
                f"{self.rate(name, short):,.0f}",
                f"{self.rate(name, long):,.0f}",
            )
        console.print(table)
        layers = Table(box=None, pad_edge=False)
        for column in ("layer", "states per filter", "relative L2 error", "largest |lambda|"):
            layers.add_column(column, justify="right")
        for fit in numbers["distillation"]:
            states = f"{fit['order_median']:.0f} (at most {fit['order_max']})"
            layers.add_row(str(fit["layer"]), states, f"{fit['relative_error']:.1e}", f"{fit['radius']:.6f}")
        console.print(layers)
        console.print(
            f"distillation costs {numbers['bits_per_byte_lost']:+.5f} bits per byte; a token at context {long:,} takes "
            f"{numbers['time_ratio_long_to_short_context']:.2f}x the time of one at {short}",
            highlight=False,
        )


def _plot_losses(results: dict[str, TrainResult], path: Path) -> Path:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for color, (name, result) in enumerate(results.items()):
        rows = [row for row in result.log if row["split"] == "train"]
        axes.plot([r["seconds"] for r in rows], [r["loss"] for r in rows], color=f"C{color}", label=name)
    top = max(result.log[0]["loss"] for result in results.values())
    axes.set(xlabel="training time (s)", ylabel="loss (nats per token)", title="Training loss", ylim=(None, top))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
    return path


def _plot_decoding(timings: list[DecodeTiming], path: Path) -> Path:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for color, name in enumerate(dict.fromkeys(t.model for t in timings)):
        rows = [t for t in timings if t.model == name]
        axes.plot([t.context for t in rows], [t.ms for t in rows], "o-", color=f"C{color}", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(CONTEXTS, [f"{c:,}" for c in CONTEXTS])
    axes.set(xlabel="context (tokens)", ylabel="time per token (ms)", title="Generation, one sequence", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
    return path
