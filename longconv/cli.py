"""The `longconv` command. Each command is one function below; tyro turns its signature and docstring into options.

A command is imported when it is asked for, so `longconv --help` is instant. Whatever a user can get wrong ends in one
line on stderr and exit code 1; set LONGCONV_TRACEBACK=1 for the traceback.
"""

import codecs
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

COMMANDS = {
    "demo": "train, distil and generate with a small Hyena language model, in minutes",
    "train": "train a language model on text, or a classifier by a recipe",
    "data": "make the data of a benchmark task ahead of its use",
    "evaluate": "bits per byte and perplexity of a model on text, or the accuracy of a classifier",
    "distill": "turn a model's long filters into recurrences with O(1) generation",
    "generate": "continue a prompt",
    "info": "describe a model, or this installation",
    "bench": "time operators, generation and distillation against their baselines",
    "report": "what was reached on a benchmark, beside what is published",
}

EXAMPLES = """examples:
  longconv demo
  longconv train --output runs/hyena --minutes 10
  longconv train --output runs/mine --data my_texts/ --mixers "hyena hyena attention" --steps 2000
  longconv train lra.listops.sgconv --smoke
  longconv distill runs/hyena/model runs/hyena/distilled --tol 1e-3 --report runs/hyena/report
  longconv distill runs/hyena/model runs/hyena/small --kl 1e-3
  longconv generate runs/hyena/distilled --prompt "def main(" --max-new-tokens 200
  longconv evaluate runs/hyena/distilled --split test
  longconv data prepare lra/listops
  longconv data prepare lra/text --data-dir aclImdb
  longconv bench fftconv
  longconv report lra"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print("usage: longconv COMMAND [options]        longconv COMMAND --help\n\ncommands:")
        print("\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()))
        print(f"\n{EXAMPLES}")
        return 0
    if argv[0] == "--version":
        from longconv import __version__

        print(__version__)
        return 0
    try:
        return _run(argv[0], argv[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("LONGCONV_TRACEBACK"):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"longconv {argv[0]}: {lines[0]}", file=sys.stderr)
        return 1


def _run(name: str, argv: list[str]) -> int:
    if name not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown command; known: {', '.join(COMMANDS)}{hint}")
    try:
        import tyro
    except ImportError as error:
        raise ImportError("the command line needs: pip install 'longconv[train]'") from error
    commands: dict[str, Callable[..., Any]] = {
        "data": data, "evaluate": evaluate, "distill": distill, "generate": generate, "info": info
    }  # fmt: skip
    if name == "demo":
        from longconv.experiments import demo

        commands["demo"] = demo.run
    elif name == "report":
        from longconv.experiments import lra_report

        commands["report"] = lra_report.run
    elif name == "train":
        return train(argv)
    elif name == "bench":
        from longconv.experiments.benchmarks import BENCHMARKS

        tyro.extras.subcommand_cli_from_dict(BENCHMARKS, prog="longconv bench", args=argv)
        return 0
    tyro.cli(commands[name], prog=f"longconv {name}", args=argv)
    return 0


TRAIN = """Train a language model on text:   longconv train --output FOLDER [options]

Or a classifier of sequences, by a recipe or on a task:

  longconv train lra                          lists the recipes whose names begin so
  longconv train lra.listops.sgconv           runs one; a row with its result is appended to a table
  longconv train lra.listops.sgconv --smoke   the same in less than a minute, on tiny data, to see that it works
  longconv train lra.listops.sgconv --minutes 20 --lr 1e-3 ...   any option of the recipe can be replaced
  longconv train lra/listops --mixers hyena --epochs 5 ...       a task without a recipe

and with --help after the name the options are shown. What follows here are those of language models."""


def train(argv: list[str]) -> int:
    """Train what the command line says: options for a language model, or a name and options for a classifier."""
    import tyro

    from longconv.training import TrainConfig

    if argv and not argv[0].startswith("-"):
        return _train_by_name(argv[0], argv[1:])
    config = tyro.cli(TrainConfig, prog="longconv train", description=TRAIN, args=argv)
    _train(config)
    return 0


def _train_by_name(name: str, argv: list[str]) -> int:
    import tyro

    from longconv.experiments import recipes, results
    from longconv.training import ClassifyConfig, Interrupted

    inside = recipes.names(name)
    if inside and name not in inside:
        width = max(map(len, inside))
        print("\n".join(f"{found:<{width}}  {recipes.source(found)}" for found in inside))
        return 0
    if "/" in name:
        recipe, base = "", ClassifyConfig(output=Path("runs", name.replace("/", ".")), task=name)
    else:
        recipe, base = name, recipes.get(name)
    smoke = "--smoke" in argv
    if smoke:
        base = recipes.smoke(base)
    options = [option for option in argv if option != "--smoke"]
    config = tyro.cli(ClassifyConfig, default=base, prog=f"longconv train {name}", args=options)
    try:
        result = _train(config)
    except Interrupted as interruption:
        print(f"row: {results.append(recipe, config, interruption.result, smoke=smoke)}", file=sys.stderr)
        raise
    print(f"row: {results.append(recipe, config, result, smoke=smoke)}")
    return 0


def _train(config: Any) -> Any:
    """Train, and say what came out."""
    from longconv import training

    result = training.train(config)
    print(result.task.describe())
    print(f"{result.parameters:,} parameters, {config.summary(result.metrics)}")
    print(f"model: {Path(config.output) / 'model'}    log: {Path(config.output) / 'log.jsonl'}")
    return result


def data(
    action: Literal["prepare"],
    name: str,
    /,
    *,
    data_dir: Path | None = None,
    sizes: tuple[int, int, int] | None = None,
    seed: int | None = None,
    difficulty: Literal["easy", "intermediate", "hard"] | None = None,
    options: str | None = None,
    cache_dir: Path | None = None,
    workers: int | None = None,
) -> None:
    """Make the data of a task now, with a progress bar, so that training starts at once. Ended runs are gone on with.

    What is there already is checked, byte by byte. Tasks:
      generated, or read from the published files in --data-dir: lra/listops, lra/pathfinder32, lra/pathfinder64,
        lra/pathx, lra/path256; lra/path512, which was not published
      read from --data-dir, else fetched from the Hugging Face Hub: lra/text, lra/image, lra/scifar,
        lra/smnist, lra/pmnist
      read from --data-dir: lra/retrieval
      part of scikit-learn: lra/digits

    Which files, and where they come from, is in docs/lra.md; what is missing is said when it is missed.

    Args:
        action: "prepare".
        name: of the task.
        data_dir: folder with the published files.
        sizes: rows of the train, validation and test split that are generated; default as published.
        seed: of what is generated.
        difficulty: of Pathfinder: contours of 6, 9 or 14 paddles (default).
        options: other options of the task in JSON, such as '{"scale": 4}' for lra/digits.
        cache_dir: where it goes; default longconv's cache.
        workers: threads; default one for each core.
    """
    from longconv.tasks.prepare import prepare

    assert action == "prepare"
    try:
        others = json.loads(options or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"--options must be JSON: {error}") from error
    if not isinstance(others, dict):
        raise ValueError(f"--options must be a JSON object, got {options}")
    given = {
        "data_dir": data_dir, "sizes": sizes, "seed": seed, "difficulty": difficulty, "cache_dir": cache_dir,
        "workers": workers,
    }  # fmt: skip
    print(prepare(name, **{option: value for option, value in given.items() if value is not None}, **others))


def evaluate(
    model: Path,
    /,
    *,
    data: Path | None = None,
    split: Literal["train", "validation", "test"] = "test",
    length: int | None = None,
    max_bytes: int | None = None,
    batch_size: int = 8,
    max_batches: int | None = None,
    json_output: bool = False,
) -> None:
    """Measure a model on what it was not trained on: a language model by its bits per byte and perplexity on text, a
    classifier by its accuracy on its task.

    Args:
        model: folder of a trained or distilled model.
        data: text file or folder; default the source of Python's own standard library. Of a classifier, the folder of
            its task's files; default where they were in training.
        split: which part of the corpus (the same files as in training, given the same data).
        length: tokens in a sequence of text; default what the model was trained for, at most its longest.
        max_bytes: use at most so many bytes of the corpus of text.
        batch_size: sequences at a time.
        max_batches: stop after so many.
        json_output: print one JSON object instead of a line of text.
    """
    from longconv import tasks
    from longconv.models import load_model
    from longconv.tasks.lm import load_tokenizer
    from longconv.training import TaskCard, evaluate_classifier

    if (model / TaskCard.FILE).exists():
        if length is not None or max_bytes is not None:
            raise ValueError(
                "length and max_bytes are for language models: a classifier's task has sequences of its own"
            )
        metrics = evaluate_classifier(model, split, data_dir=data, batch_size=batch_size, max_batches=max_batches)
        said = f"{split}: accuracy {metrics['accuracy']:.4f}, loss {metrics['loss']:.4f} nats"
        print(json.dumps(metrics) if json_output else said)
        return
    loaded = load_model(model)
    limit = loaded.config.max_position_embeddings
    if length is not None and length > limit:
        raise ValueError(f"length {length} is longer than the model's max_position_embeddings = {limit}")
    task = tasks.get(
        "lm", data=data, tokenizer=load_tokenizer(model), length=length or min(1024, limit), max_bytes=max_bytes
    )
    metrics = task.evaluate(loaded, split, batch_size=batch_size, max_batches=max_batches)
    if json_output:
        print(json.dumps(metrics))
    else:
        print(
            f"{split}: {metrics['bits_per_byte']:.4f} bits per byte, {metrics['loss']:.4f} nats per token, "
            f"perplexity {metrics['perplexity']:.2f} per token"
        )


def distill(
    model: Path,
    output: Path | None = None,
    /,
    *,
    order: int | None = None,
    tol: float | None = None,
    state_size: int | None = None,
    kl: float | None = None,
    logit_error: float | None = None,
    max_order: int = 64,
    method: Literal["best", "hankel", "balanced", "rational", "gradient"] = "best",
    length: int | None = None,
    calibration: Path | None = None,
    calibration_batches: int = 4,
    report: Path | None = None,
) -> None:
    """Replace a model's long filters by recurrences, so that a token costs the same however long the context is.

    How many states a filter gets is said in one of five ways: --order, --tol, --state-size, --kl or --logit-error.
    Filters that are recurrences already, of no more states, are kept as they are.

    Args:
        model: folder of a trained model.
        output: folder for the distilled model; without it there is only the report.
        order: real states for every filter.
        tol: relative L2 error to reach for each filter, with as few states as it takes (the default, with 1e-3).
        state_size: real numbers of state that all filters keep of a sequence (two for each mode); each filter gets
            as many as lower the sum of the errors most.
        kl: divergence from the model's predictions that is allowed on calibration text, in nats per token; the states
            are as few as that takes.
        logit_error: the same for the relative L2 error of the logits.
        max_order: most states of a filter, unless --order is given.
        method: how poles are found; "gradient" is the published one, and slow.
        length: taps to fit; default all that the model has.
        calibration: text file or folder; default the source of Python's own standard library. Its validation split is
            used, with --state-size, --kl and --logit-error.
        calibration_batches: how much of it, in batches of 4 sequences of up to 1,024 tokens.
        report: folder for report.json and the plots of Hankel spectra, bounds and filters.
    """
    from longconv import distill as distillation
    from longconv.models import load_model, save_model
    from longconv.tasks.lm import load_tokenizer

    ways = {"order": order, "tol": tol, "state-size": state_size, "kl": kl, "logit-error": logit_error}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"give one of --order, --tol, --state-size, --kl and --logit-error, not {' and '.join(given)}")
    if output is None and report is None:
        raise ValueError("give a folder for the distilled model, or --report, or both")
    teacher, tokenizer = load_model(model), load_tokenizer(model)
    started, search = time.perf_counter(), None
    shared: dict[str, Any] = {"method": method, "max_order": max_order, "length": length}
    with _status("distil") as progress:
        if given and given[0] in ("state-size", "kl", "logit-error"):
            batches = _calibration(teacher, tokenizer, calibration, calibration_batches)
            if state_size is not None:
                found = distillation.distill_to_budget(
                    teacher, state_size=state_size, calibration=batches, progress=progress, **shared
                )
            else:
                found = distillation.distill_to_tolerance(
                    teacher, batches, kl=kl, logit_error=logit_error, progress=progress, **shared
                )
            student, fits, search = found
        else:
            tol = 1e-3 if order is None and tol is None else tol
            student, fits = distillation.distill(teacher, order=order, tol=tol, progress=progress, **shared)
    missed = 0 if tol is None else sum(int((fit.fit.relative_error > tol).sum()) for fit in fits.layers)
    print(f"distilled in {time.perf_counter() - started:.1f} s, state of {fits.state_size:,} numbers\n{fits}")
    if missed:
        total = sum(len(fit.fit.order) for fit in fits.layers)
        print(f"{missed:,} of {total:,} filters are not within {tol:g} with the most states allowed, {max_order}")
    if search is not None:
        print(search)
    if output is not None:
        save_model(student, output, tokenizer)
        print(f"model: {output}")
    if report is not None:
        paths = fits.save(report)
        if search is not None:
            paths.append(report / "search.json")
            paths[-1].write_text(json.dumps(search.to_dict(), indent=1))
        print("report: " + ", ".join(map(str, paths)))


@contextmanager
def _status(title: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is going on; lines one below the other where that is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(title) as status:
        if console.is_terminal:
            yield lambda line: status.update(f"{title}: {line}")
        else:
            yield lambda line: print(line, file=sys.stderr)


def _calibration(model: Any, tokenizer: Any, data: Path | None, batches: int) -> list[Any]:
    """Batches of text for a model, from the validation split."""
    from longconv import tasks

    if batches < 1:
        raise ValueError(f"--calibration-batches must be at least 1, got {batches}")
    length = min(1024, model.config.max_position_embeddings)
    task = tasks.get("lm", data=data, tokenizer=tokenizer, length=length)
    return list(task.batches("validation", batch_size=4, max_batches=batches, doing="read"))


def generate(
    model: Path,
    /,
    *,
    prompt: str = "def ",
    prompt_file: Path | None = None,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    prefill_chunk: int = 4096,
) -> None:
    """Continue a prompt, printing as it goes.

    Args:
        model: folder of a trained or distilled model.
        prompt: the text to continue; empty to begin a document.
        prompt_file: read the text to continue from this file instead, and print only what follows it.
        max_new_tokens: stop after so many tokens, or at the end of the text.
        temperature: of sampling; 0 for the likeliest token each time.
        top_k: sample among so many likeliest tokens; 0 for all.
        seed: of sampling.
        prefill_chunk: read the prompt so many tokens at a time, which bounds the memory for a long one; 0 for all.
    """
    import torch
    from transformers import set_seed

    from longconv.models import load_model
    from longconv.tasks.lm import load_tokenizer

    loaded, tokenizer = load_model(model), load_tokenizer(model)
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    if prefill_chunk < 0:
        raise ValueError(f"prefill_chunk must not be negative, got {prefill_chunk}")
    if prompt_file is not None:
        try:
            prompt = prompt_file.read_bytes().decode("utf-8")  # as it is: line ends are part of it
        except UnicodeDecodeError as error:
            raise ValueError(f"prompt_file {prompt_file} is not UTF-8 text: {error}") from error
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(prompt)]])
    limit = loaded.config.max_position_embeddings
    if ids.shape[1] + max_new_tokens > limit:
        raise ValueError(
            f"a prompt of {ids.shape[1]} tokens and {max_new_tokens} new ones exceed the model's limit of {limit}"
        )
    set_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature else {"do_sample": False}
    started = time.perf_counter()
    out = loaded.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        streamer=_Printer(tokenizer, skip_prompt=prompt_file is not None),
        prefill_chunk_size=prefill_chunk or None,
        **sampling,
    )
    count = out.shape[1] - ids.shape[1]
    print(f"[{count} tokens, {count / (time.perf_counter() - started):.0f} tokens/s]", file=sys.stderr)


class _Printer:
    """Prints what `generate(streamer=)` puts into it, as soon as it is text: half a character waits for the rest."""

    def __init__(self, tokenizer: Any, skip_prompt: bool) -> None:
        self.tokenizer, self.skip = tokenizer, skip_prompt
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def put(self, ids: Any) -> None:
        """Print tokens; the prompt comes first."""
        if not self.skip:
            print(self.decoder.decode(self.tokenizer.decode_bytes(ids.flatten().tolist())), end="", flush=True)
        self.skip = False

    def end(self) -> None:
        """Print what is left, and end the line."""
        print(self.decoder.decode(b"", final=True), flush=True)


def info(model: Path | None = None, /, *, layers: bool = False) -> None:
    """Describe a model: its mixers, its filters, its parameters, its state; or else this installation.

    Args:
        model: folder of a model.
        layers: print the table of all layers, in markdown, instead.
    """
    import platform

    import torch

    from longconv import __version__
    from longconv.layers import LAYERS

    if layers:
        from longconv.layers import table

        print(table.markdown())
        return
    if model is None:
        device = (
            torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
        )
        print(f"longconv {__version__}, Python {platform.python_version()}, torch {torch.__version__}, {device}")
        print(f"mixers: {', '.join(sorted(LAYERS))}")
        return
    from longconv.models import load_model

    loaded = load_model(model)
    config = loaded.config
    print(f"{type(loaded).__name__}: {sum(p.numel() for p in loaded.parameters()):,} parameters")
    limit = f"up to {config.max_position_embeddings:,} tokens"
    if loaded.receptive_field is not None:
        limit += f", a receptive field of {loaded.receptive_field:,}"
    inputs = f"inputs of size {config.input_size}" if config.input_size else f"vocabulary {config.vocab_size:,}"
    print(f"{inputs}, {config.hidden_size} channels, {limit}")
    for index, block in enumerate(loaded.base_model.layers):
        parts = [block.mixer, *block.mixer.long_filters]
        print(f"layer {index}: " + ", ".join(f"{type(part).__name__}({part.extra_repr()})" for part in parts))


if __name__ == "__main__":
    sys.exit(main())
