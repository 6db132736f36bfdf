"""The `longconv` command. Each command is one function in a file of its own; tyro turns its signature and docstring
into options.

A command is imported when it is asked for, so `longconv --help` is instant. Whatever a user can get wrong ends in one
line on stderr and exit code 1; set LONGCONV_TRACEBACK=1 for the traceback.
"""

import importlib
import os
import sys
from typing import Any

COMMANDS = {
    "demo": "train, distil and generate with a small Hyena language model, in minutes",
    "train": "train a language model on text, or anything by a recipe",
    "data": "tokenise a corpus, or make the data of a task, ahead of its use",
    "evaluate": "bits per byte and perplexity of a model on text, or the accuracy of a classifier",
    "distill": "turn a model's long filters into recurrences with O(1) generation",
    "generate": "continue a prompt",
    "stream": "run a sound file through a model of an audio effect, block by block",
    "info": "describe a model, or this installation",
    "bench": "time operators, generation and distillation against their baselines",
    "report": "what was reached, in tables, pictures and sound, beside what there is to compare it with",
}

EXAMPLES = """examples:
  longconv demo
  longconv train --output runs/hyena --minutes 10
  longconv train --output runs/mine --data my_texts/ --mixers "hyena hyena attention" --steps 2000
  longconv train lm.1m.hyena
  longconv train lra.listops.sgconv --smoke
  longconv distill runs/hyena/model runs/hyena/distilled --tol 1e-3 --report runs/hyena/report
  longconv distill runs/hyena/model runs/hyena/small --kl 1e-3
  longconv generate runs/hyena/distilled --prompt "def main(" --max-new-tokens 200
  longconv evaluate runs/hyena/distilled --split test
  longconv evaluate runs/hyena/distilled --contexts 256 1024 4096 --plot contexts.png
  longconv stream runs/compressor/model dry.wav wet.wav --block 256 --controls 0.0 0.65
  longconv data prepare lm --data enwik8:enwik8.zip --tokenizer bytes
  longconv data prepare lra/listops
  longconv data prepare lra/text --data-dir aclImdb
  longconv bench fftconv
  longconv report lra
  longconv report effects runs/mine/model runs/other/model
  longconv report wave runs/mine/model"""


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
    command: Any
    if name == "train":
        from .train import train

        return train(argv)
    if name == "bench":
        from longconv.experiments.benchmarks import BENCHMARKS

        tyro.extras.subcommand_cli_from_dict(BENCHMARKS, prog="longconv bench", args=argv)
        return 0
    if name == "report":
        from longconv.experiments.reports import REPORTS

        tyro.extras.subcommand_cli_from_dict(REPORTS, prog="longconv report", args=argv)
        return 0
    if name == "demo":
        from longconv.experiments import demo

        command = demo.run
    else:
        command = getattr(importlib.import_module(f"longconv.cli.{name}"), name)
    tyro.cli(command, prog=f"longconv {name}", args=argv)
    return 0
