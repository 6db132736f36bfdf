"""The table of layers in the documentation, from the layers themselves, so that it is never out of date.

What a paper says comes from each class's `card`; parameters, directions, receptive fields and the sizes of streaming
states are those of layers built here with their defaults.
"""

import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longconv.state import Constant, GrowingBuffer, map_tensors

from . import LAYERS
from .base import Mixer

#: Channels and longest sequence of the layers whose parameters are counted.
SIZE, LENGTH = 256, 4096
#: Channels of those whose states are counted (most sizes per channel do not depend on it), and after how many samples.
STATE_SIZE, STATE_LENGTHS = 64, (1024, 4096)
BEGIN, END = "<!-- table of layers: begin -->", "<!-- table of layers: end -->"

COLUMNS = (
    *("name", "layer", "equation", "cost in L", "parameters", "direction", "field"),
    *(f"state, {length}" for length in STATE_LENGTHS),
    "distillable",
)
HEAD = f"""Built by `longconv info --layers`, of layers with their defaults. *parameters*: for each of {SIZE} channels.
*field*: the receptive field, in samples; ∞ if as long as the sequence. *state*: real numbers that a stream carries
for each of {STATE_SIZE} channels after so many samples; constants, such as taps, do not count.
"""


def markdown() -> str:
    """The table, in markdown, with a line or two on what its columns mean."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(_row(name) for name in sorted(LAYERS))]
    return HEAD + "\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def update(path: Path | str) -> bool:
    """Put the table between its markers in a file; return whether that changed it.

    Raises:
        ValueError: the file has no markers.
    """
    path = Path(path)
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no {BEGIN} and {END} to put the table between")
    new = f"{before}{begin}\n{markdown()}{end}{after}"
    path.write_text(new)
    return new != text


def state_size(state: Any) -> int:
    """How many real numbers a streaming state holds. Constants do not count, nor does room to grow."""
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * (2 if tensor.is_complex() else 1)
        return tensor

    def go(value: Any) -> None:
        if isinstance(value, GrowingBuffer):
            count(value.view)
        elif isinstance(value, tuple | list):
            for item in value:
                go(item)
        elif is_dataclass(value) and not isinstance(value, type | Constant):
            for field in fields(value):
                go(getattr(value, field.name))
        else:
            map_tensors(value, count)

    go(state)
    return total


def _row(name: str) -> tuple[str, ...]:
    layer, card = LAYERS[name](SIZE, LENGTH), LAYERS[name].card
    field = layer.receptive_field
    found = re.match(r".*?\b\d{4}\b", card.paper)  # authors and year
    authors = card.paper if found is None else found[0]
    states = ["–"] * len(STATE_LENGTHS)
    if layer.causal:
        states = [_number(state_size(_stream(name, length)) / STATE_SIZE) for length in STATE_LENGTHS]
    return (
        f"`{name}`",
        f"{card.title} ([{authors}]({card.url}))",
        "`" + card.equation.replace("|", "\\|") + "`",
        card.cost,
        _number(sum(p.numel() for p in layer.parameters()) / SIZE),
        _direction(name, layer),
        "∞" if field is None else f"{field:,}",
        *states,
        _distillable(layer),
    )


@torch.no_grad()
def _stream(name: str, length: int) -> Any:
    """The state after so many samples, the last of them a step: a stream prepares nothing before it is needed."""
    layer, x = LAYERS[name](STATE_SIZE, LENGTH).eval(), torch.zeros(1, length, STATE_SIZE)
    _, state = layer(x[:, :-1], return_state=True)
    return layer.step(x[:, -1], state)[1]


def _direction(name: str, layer: Mixer) -> str:
    """Causal, two-sided, or either, and whether there is a lookahead; found out by building."""
    options = inspect.signature(LAYERS[name]).parameters
    if not layer.causal:
        return "two-sided"
    ahead = ", or looking ahead" if "lookahead" in options else ""
    for option, value in (("bidirectional", True), ("causal", False)):
        if option in options and not LAYERS[name](SIZE, LENGTH, **{option: value}).causal:
            return f"either{ahead}"
    return f"causal{ahead}"


def _distillable(layer: Mixer) -> str:
    if not len(layer.long_filters):
        return "no"
    return "is a recurrence" if all(hasattr(filter, "prepare_step") for filter in layer.long_filters) else "yes"


def _number(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 or x == round(x) else f"{x:.1f}"
