"""The Python of docs/generation.md runs as it stands there, its commands exist, and its table is that of the rows."""

import csv
import re
from pathlib import Path

import torch

from longconv import cli
from longconv.models import LongConvConfig, LongConvForCausalLM, save_model
from longconv.tasks.lm import ByteTokenizer

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
#: Rows of its table of speeds: the label, who it is, the batch, and whether the state's size is given.
SPEEDS = [
    ("one sequence: distilled", "distilled", "1", True),
    ("attention with its cache", "attention", "1", True),
    ("as many as 1 GB takes: distilled", "distilled", "max", False),
    ("exact online (undistilled)", "exact online", "max", False),
    ("Hyena with cached history", "cached history", "max", True),
    ("attention with its cache", "attention", "max", True),
    ("GPT-2 of transformers, static cache", "GPT-2, static cache", "max", True),
]
CONTEXTS = (256, 1024, 4096, 16384, 65536)
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_python_blocks_run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    config = LongConvConfig(
        vocab_size=258, hidden_size=16, num_hidden_layers=2, max_position_embeddings=100, bos_token_id=256,
        eos_token_id=256, pad_token_id=257,
    )  # fmt: skip
    save_model(LongConvForCausalLM(config).eval(), "runs/hyena/model", ByteTokenizer())
    assert len(BLOCKS) == 4
    names: dict = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"generation.md, block {number}", "exec"), names)
    assert capsys.readouterr().out.count(" length\n") == 6  # every prompt was generated to its end
    assert len(names["code"].tokens) == 1  # rolled back to where the snapshot was taken
    assert torch.is_tensor(names["first"])


def test_commands_exist():
    commands = re.findall(r"^(?:or `)?longconv (\w+) .*?(--[\w-]+)?", PAGE, flags=re.MULTILINE)
    assert {name for name, _ in commands} >= {"distill", "generate"}
    assert {name for name, _ in commands} <= set(cli.COMMANDS)


def speeds():
    """The table's rows, of the file, and the numbers by contestant, batch and context."""
    with open(ROOT / "experiments/benchmarks/results/decode.csv", newline="") as file:
        found = {(row["contestant"], row["batches"], int(row["context"])): row for row in csv.DictReader(file)}
    lines = []
    for label, name, batch, state in SPEEDS:
        rows = [found[name, batch, context] for context in CONTEXTS]
        cells = [f"{float(row['tokens_per_s']):,.0f}" if row["tokens_per_s"] else "does not fit" for row in rows]
        size = float(rows[-1]["state_MB"]) if state else None
        lines.append(
            "| "
            + " | ".join([label, *cells, "" if size is None else f"{size:.2g}" if size < 1 else f"{size:.0f}"])
            + " |"
        )
    return lines, found


def test_the_table_is_that_of_the_rows():
    table = PAGE.split("| | context 256 |")[1].split("\n\n")[0].splitlines()[2:]
    assert table == speeds()[0]


def test_targets_on_a_cpu():
    """Constant time a token, and ten times the tokens of attention where both fill the same memory."""
    _, found = speeds()
    ms = [float(found["distilled", "1", context]["ms_median"]) for context in (256, 65536)]
    assert ms[1] <= 1.1 * ms[0]
    rates = [float(found[name, "max", 16384]["tokens_per_s"]) for name in ("distilled", "attention")]
    assert rates[0] >= 10 * rates[1]
