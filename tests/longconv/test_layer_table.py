"""The table of layers: up to date in the documentation, and right where it computes."""

import re
from pathlib import Path

import pytest
import torch

from longconv.layers import LAYERS, build_layer, convert, table
from longconv.state import Constant, GrowingBuffer, LayerState

DOCS = Path(__file__).parents[2] / "docs" / "layers.md"


@pytest.fixture(scope="module", autouse=True)
def _made_once():
    """The table takes some seconds."""
    made = table.markdown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "markdown", lambda: made)
        yield


def test_the_documentation_is_up_to_date(tmp_path):
    copy = tmp_path / "layers.md"
    copy.write_text(DOCS.read_text())
    remedy = "from longconv.layers.table import update; update('docs/layers.md')"
    assert not table.update(copy), f'docs/layers.md is out of date: python -c "{remedy}"'
    copy.write_text("# Layers\n")
    with pytest.raises(ValueError, match="has no <!-- table of layers: begin -->"):
        table.update(copy)


def test_every_layer_has_a_row():
    rows = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert [re.match(r"\| `(\w+)`", row)[1] for row in rows[2:]] == sorted(LAYERS)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {len(table.COLUMNS) + 1}


def test_every_converter_is_listed():
    for name in convert.__all__:
        assert f"`{name}`" in DOCS.read_text(), name


def test_examples_run():
    [example] = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    torch.manual_seed(0)
    exec(example, {})


def test_sizes_of_states():
    with torch.no_grad():
        buffer = GrowingBuffer(torch.zeros(2, 3, 5), -1).append(torch.zeros(2, 3, 1))  # with room for twice as much
    assert table.state_size((buffer, Constant(torch.zeros(100)), None, 3)) == 36
    assert table.state_size({"a": torch.zeros(4, dtype=torch.complex64)}) == 8
    assert table.state_size(LayerState(7)) == 0
    layer = build_layer("s4d", 8, filter={"name": "s4d", "state_size": 6})
    _, state = layer(torch.zeros(1, 50, 8), return_state=True)
    assert table.state_size(state) == 8 * 6  # the published state size: N real numbers a channel
    layer = build_layer("attention", 8, num_heads=2)
    _, state = layer(torch.zeros(1, 50, 8), return_state=True)
    assert table.state_size(state) == 50 * 2 * 8


def test_directions():
    rows = {line.split("`")[1]: line for line in table.markdown().splitlines() if line.startswith("| `")}
    assert "| either |" in rows["hyena"]
    assert "| either |" in rows["sgconv"]
    assert "| either, or looking ahead |" in rows["tcn"]
    assert "| two-sided |" in rows["hyena_nd"]
    assert rows["s4d"].endswith("| is a recurrence |")
    assert rows["hyena"].endswith("| yes |")
    assert rows["attention"].endswith("| no |")
