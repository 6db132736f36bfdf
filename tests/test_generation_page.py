"""The Python of docs/generation.md runs as it stands there, one block after the other, and its commands exist."""

import re
from pathlib import Path

import torch

from longconv import cli
from longconv.models import LongConvConfig, LongConvForCausalLM, save_model
from longconv.tasks.lm import ByteTokenizer

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "generation.md").read_text(encoding="utf-8")
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
