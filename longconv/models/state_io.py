"""Streaming states on disk: tensors in a safetensors file, what surrounds them in JSON, both in one folder.

What can be computed from the model is not written: the modes of a recurrence, the taps of a convolution. So a folder
belongs to a model, and says to which.
"""

import hashlib
import importlib
import json
import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from longconv.functional import DelayLines, OnlineConv
from longconv.state import Constant, GrowingBuffer

from .checkpoint import first_line, written_whole

TENSORS, DESCRIPTION = "states.safetensors", "states.json"
# How many elements of each weight go into a model's fingerprint.
_SAMPLED = 256
# What the names of complex tensors end with in the file.
_COMPLEX = ":complex"


def encode(value: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """Describe a state in what JSON can hold; its tensors go into `tensors`, under names that begin so.

    Raises:
        TypeError: the state holds something that is no part of a state.
    """

    def store(tensor: Tensor) -> str:
        tensors[name] = tensor
        return name

    def inner(items: Any) -> list[Any]:
        return [encode(item, tensors, f"{name}.{i}") for i, item in enumerate(items)]

    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, Tensor):
        return {"tensor": store(value)}
    if isinstance(value, Constant):
        return {"value": None}  # recomputed when it is needed
    if isinstance(value, OnlineConv):  # becomes one again as soon as it is continued
        return {"growing": store(value.inputs), "dim": 2}
    if isinstance(value, GrowingBuffer):
        return {"growing": store(value.view), "dim": value.dim}
    if isinstance(value, DelayLines):
        windows = inner(value.window(i) for i in range(len(value.reaches)))
        return {"windows": windows, "dilations": list(value.dilations)}
    if is_dataclass(value) and not isinstance(value, type):
        items = {f.name: encode(getattr(value, f.name), tensors, f"{name}.{f.name}") for f in fields(value)}
        return {"class": f"{type(value).__module__}:{type(value).__qualname__}", "fields": items}
    if isinstance(value, dict):
        return {"dict": {key: encode(item, tensors, f"{name}.{key}") for key, item in value.items()}}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return {"tuple" if isinstance(value, tuple) else "list": inner(value)}
    raise TypeError(f"a state cannot hold {type(value).__name__}")


def decode(node: Any, tensors: dict[str, Tensor]) -> Any:
    """Rebuild what `encode` described.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the description is damaged.
    """
    if "value" in node:
        return node["value"]
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "growing" in node:
        return GrowingBuffer(tensors[node["growing"]], node["dim"])
    if "windows" in node:
        return DelayLines([decode(window, tensors) for window in node["windows"]], node["dilations"])
    if "dict" in node:
        return {key: decode(item, tensors) for key, item in node["dict"].items()}
    if "tuple" in node:
        return tuple(decode(item, tensors) for item in node["tuple"])
    if "list" in node:
        return [decode(item, tensors) for item in node["list"]]
    module, _, name = node["class"].partition(":")
    if not module.startswith("longconv."):  # a file must not choose what is imported
        raise ValueError(f"{node['class']} is no state of longconv")
    kind = getattr(importlib.import_module(module), name)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise ValueError(f"{node['class']} is no state of longconv")
    return kind(**{key: decode(item, tensors) for key, item in node["fields"].items()})


@torch.no_grad()
def fingerprint(model: Any) -> dict[str, str]:
    """What tells one model from another: hashes of its layers' configuration, and of some elements of every weight."""
    config = model.config
    described = {name: getattr(config, name) for name in ("mixers", "mixer_options", "layer_options", "hidden_size")}
    described |= {"vocab_size": config.vocab_size, "num_hidden_layers": config.num_hidden_layers}
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // _SAMPLED)].cpu().contiguous()
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(sample.view(torch.uint8).numpy().tobytes() if sample.numel() else b"")
    text = json.dumps(described, sort_keys=True, default=str)
    return {"config": hashlib.sha256(text.encode()).hexdigest(), "weights": weights.hexdigest()}


def save_states(folder: str | os.PathLike[str], kind: str, model: Any, data: Any, tensors: dict[str, Tensor]) -> None:
    """Write a folder with `data` (for JSON) and `tensors` that is whole or not there.

    Args:
        folder: what stands there is replaced.
        kind: of what wrote it, checked when it is read.
        model: whose states these are.
        data: nested lists and dictionaries.
        tensors: name -> tensor.

    Raises:
        OSError: the disk is full or not writable.
    """
    # The format has no complex128, so complex numbers are pairs of real ones.
    real = {name + _COMPLEX * t.is_complex(): torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
            for name, t in tensors.items()}  # fmt: skip
    with written_whole(folder) as partial:
        # Copies, because views of one memory, as states may hold, are refused.
        layout = torch.contiguous_format
        save_file({name: t.detach().cpu().clone(memory_format=layout) for name, t in real.items()}, partial / TENSORS)
        text = json.dumps({"kind": kind, "model": fingerprint(model), "data": data})
        (partial / DESCRIPTION).write_text(text, encoding="utf-8")


def load_states(
    folder: str | os.PathLike[str], kind: str, model: Any, build: Callable[[Any, dict[str, Tensor]], Any]
) -> Any:
    """Read what `save_states` wrote; the tensors come on the model's device.

    Args:
        folder: what was written.
        kind: as it was given there.
        model: the model to go on with.
        build: called with data and tensors; what it returns is returned.

    Raises:
        FileNotFoundError: there is no such folder, or it is none of these.
        ValueError: it is damaged, of another kind, or of another model.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        raise FileNotFoundError(f"no saved states in {folder}: {DESCRIPTION} is missing")
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        found, saved, data = described["kind"], described["model"], described["data"]
        stored = load_file(folder / TENSORS, device=str(model.device))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder} does not hold whole states: {first_line(error)}") from error
    if found != kind:
        raise ValueError(f"{folder} holds the states of a {found}, not of a {kind}")
    own = fingerprint(model)
    for part in ("config", "weights"):
        if saved.get(part) != own[part]:
            raise ValueError(f"{folder} holds states of another model: its {part} differ{'s' * (part == 'config')}")
    # Copies: those read are where the file is mapped into memory, and aligned to 8 bytes, while complex128 needs 16.
    copies = {name: t.clone() for name, t in stored.items()}
    tensors = {
        name.removesuffix(_COMPLEX): torch.view_as_complex(t) if name.endswith(_COMPLEX) else t
        for name, t in copies.items()
    }
    try:
        return build(data, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{folder} does not hold whole states: {first_line(error)}") from error
