"""`replace_mixers`: any causal mixer in place of the self-attention of a model of transformers."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from longconv.layers import check_mixer

from .adapter import MixerAttention
from .replaced import (
    ReplacedMixers,
    adapters_of,
    adopt,
    architecture_of,
    attention_owners,
    build_adapters,
    install,
    replaced_config,
)


def replace_mixers(
    model: Any,
    mixer: str,
    layers: str | Iterable[int] | None = None,
    options: Mapping[str, Any] | None = None,
    max_length: int | None = None,
) -> Any:
    """Put a mixer in the place of a model's self-attention, in some layers or all, in place.

    The mixers are new: nothing of what the attention has learnt is kept, so the model has to be trained again.
    Whatever is not replaced (embeddings, norms, MLPs, other layers) stays as it is, and so do positional embeddings.
    `generate()`, with the model's own cache, padding on either side, packed sequences, gradient checkpointing, training
    and `save_pretrained` work as before. The model becomes one of a subclass of its class, with a configuration of its
    own, so `type(model).from_pretrained(folder)` and, with longconv imported, the Auto classes load it again.

    A second call may replace further layers, by another mixer.

    Args:
        model: a `transformers.PreTrainedModel`, with whatever head, of a known architecture (`ARCHITECTURES`).
        mixer: a name of `longconv.layers.LAYERS`.
        layers: indices from 0; or `"all"`, `"even"`, `"odd"` of them; or a pattern of the mixer's name and
            `attention`, or of beginnings of these words, repeated over the depth: `"hyena hyena attention"`, `"h h a"`.
            Default all.
        options: of the mixer's class.
        max_length: the longest sequence that the mixers take, in tokens with padding; default the model's
            `max_position_embeddings`.

    Returns:
        The model.

    Raises:
        TypeError: no model of transformers, or `layers` that are no integers.
        ValueError: an unknown architecture, mixer or option, one that does not fit the model's width, a mixer that is
            not causal, a model with cross-attention, layers that it does not have or that are replaced already, or an
            impossible max_length. The model is then as it was.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers.PreTrainedModel, got {type(model).__name__}")
    architecture_of(model.config)
    if getattr(model.config, "add_cross_attention", False):
        raise ValueError(
            "model: one with cross-attention keeps its attention; config.add_cross_attention must be False"
        )
    options = dict(options or {})
    check_mixer(mixer, options)
    if max_length is not None and options.get("max_length", max_length) != max_length:
        raise ValueError(f"max_length is given twice, as {max_length} and in options as {options['max_length']}")
    owners, attention = attention_owners(model)
    chosen = choose_layers(layers, len(owners), mixer)
    if already := sorted(set(chosen) & adapters_of(model).keys()):
        raise ValueError(f"layers: the attention of {', '.join(map(str, already))} has been replaced already")
    longest = model.config.max_position_embeddings if max_length is None else max_length
    entry = {"name": mixer, "options": {"max_length": longest, **options}}
    mixers = {str(index): copy.deepcopy(entry) for index in chosen}
    config = replaced_config(model.config, mixers)
    adapters = build_adapters(config, mixers)
    for index, adapter in adapters.items():
        device = next(getattr(owners[index], attention).parameters()).device
        adapter.to(device=device, dtype=model.dtype).train(model.training)
    model = adopt(model, config)
    install(model, adapters)
    model.remember_marks()
    return model


def choose_layers(layers: str | Iterable[int] | None, count: int, mixer: str) -> list[int]:
    """The indices that `replace_mixers` is asked for, in a model of `count` layers; its errors."""
    if layers is None:
        layers = "all"
    if not isinstance(layers, str):
        chosen = list(layers)
        if not all(isinstance(index, int) and not isinstance(index, bool) for index in chosen):
            raise TypeError(f"layers must be integers, got {chosen!r}")
        if wrong := [index for index in chosen if not 0 <= index < count]:
            raise ValueError(f"layers must be in 0..{count - 1}, got {', '.join(map(str, wrong))}")
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"layers names one twice: {chosen}")
        chosen.sort()
    elif layers in ("all", "even", "odd"):
        chosen = list(range(count))[slice(int(layers == "odd"), None, 1 if layers == "all" else 2)]
    else:
        here = [_is_replaced(word, mixer, layers) for word in layers.split()]
        chosen = [index for index in range(count) if here and here[index % len(here)]]
    if not chosen:
        raise ValueError(f"layers: {layers!r} is none of the {count} layers")
    return chosen


def _is_replaced(word: str, mixer: str, layers: str) -> bool:
    replaced, kept = mixer.startswith(word), "attention".startswith(word)
    if replaced == kept:
        raise ValueError(
            f"layers: {word!r} in {layers!r} must begin either {mixer!r} or 'attention'; "
            "or give 'all', 'even', 'odd', or a list of indices"
        )
    return replaced


@dataclass(frozen=True)
class LayerCount:
    """Parameters of one layer's mixing: `mixer` is what it has now, `before` counts its attention."""

    layer: int
    mixer: str
    before: int
    after: int


@dataclass(frozen=True)
class ReplacementReport:
    """What a replacement did to a model's number of parameters; tied ones count once.

    Attributes:
        layers: every layer's mixing.
        before, after: of the whole model.
    """

    layers: list[LayerCount]
    before: int
    after: int

    def __str__(self) -> str:
        width = max(len("attention"), *(len(row.mixer) for row in self.layers))
        lines = [f"layer  {'mixing':<{width}}  {'before':>14}  {'after':>14}"]
        rows = [(str(row.layer), row.mixer, row.before, row.after) for row in self.layers]
        for name, mixer, before, after in [*rows, ("model", "", self.before, self.after)]:
            lines.append(f"{name:>5}  {mixer:<{width}}  {before:>14,}  {after:>14,}")
        return "\n".join(lines)


def replacement_report(model: Any) -> ReplacementReport:
    """Count parameters, as they are and as they were with attention in every layer.

    Raises:
        TypeError: not a model that `replace_mixers` has changed.
    """
    if not isinstance(model, ReplacedMixers):
        raise TypeError(f"model must be one that replace_mixers has changed, got {type(model).__name__}")
    config: Any = copy.deepcopy(model.config)  # type: ignore[attr-defined]
    config.__class__ = model.original_class.config_class
    with torch.device("meta"):
        original = model.original_class(config)
    now, attention = attention_owners(model)  # type: ignore[arg-type]
    rows = []
    for index, (layer, was) in enumerate(zip(now, attention_owners(original)[0], strict=True)):
        module = getattr(layer, attention)
        name = config.longconv["mixers"][str(index)]["name"] if isinstance(module, MixerAttention) else "attention"
        rows.append(LayerCount(index, name, _count(getattr(was, attention)), _count(module)))
    return ReplacementReport(rows, _count(original), _count(model))  # type: ignore[arg-type]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
