"""The README's Python runs as it stands there, and its commands exist."""

import re
from pathlib import Path

import pytest
import torch

from longconv import cli

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_blocks_run(number, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    u = torch.randn(2, 4, 50)
    names: dict = {"torch": torch, "u": u, "x": torch.randn_like(u), "g": torch.randn_like(u), "d": torch.randn(4)}
    names |= {"k": torch.randn(4, 50), "r": torch.randn(4, 20), "row": u[:1], "ends": torch.tensor([0, 20, 50])}
    code = BLOCKS[number].replace("vocab_size=32000", "vocab_size=50, hidden_size=16, num_hidden_layers=3")
    exec(compile(code, f"README block {number}", "exec"), names)


def test_every_block_was_found_and_every_command_exists():
    assert len(BLOCKS) == 4
    commands = set(re.findall(r"^longconv (\w+)", README, flags=re.MULTILINE))
    assert commands >= {"train", "distill", "generate", "evaluate", "bench"}
    assert commands <= set(cli.COMMANDS)
    targets = set(re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE))
    makefile = (Path(__file__).resolve().parents[1] / "Makefile").read_text()
    assert targets == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
