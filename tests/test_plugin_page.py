"""The Python of docs/plugin.md runs as it stands there, one block after the other."""

import re
from pathlib import Path

import torch

from longconv.models.replaced import ARCHITECTURES, mixers_of

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "plugin.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_python_blocks_run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) == 5
    names: dict = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"plugin.md, block {number}", "exec"), names)
    losses = [entry["loss"] for entry in names["trainer"].state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.5
    assert names["greedy"].shape == names["beams"].shape == names["out"].shape
    assert list(mixers_of(names["model"])) == list(mixers_of(names["student"])) == [0, 1, 2]
    assert (tmp_path / "runs/plugin/distilled/model.safetensors").is_file()
    assert "hyena" in capsys.readouterr().out
    assert torch.is_tensor(names["ids"])


def test_known_architectures_are_listed():
    line = re.search(r"Known architectures: (.*?), with any head", PAGE, flags=re.DOTALL).group(1)
    assert set(re.findall(r"`(\w+)`", line)) == set(ARCHITECTURES)
