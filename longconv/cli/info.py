"""`longconv info`."""

from pathlib import Path
from typing import Any


def info(model: Path | None = None, /, *, layers: bool = False) -> None:
    """Describe a model: its mixers and filters, or its audio effect and controls; or else this installation.

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
    from longconv.models import LongConvForAudio, load_model

    loaded = load_model(model)
    print(f"{type(loaded).__name__}: {sum(p.numel() for p in loaded.parameters()):,} parameters")
    describe = _effect if isinstance(loaded, LongConvForAudio) else _sequence_model
    for line in describe(loaded):
        print(line)


def _sequence_model(model: Any) -> list[str]:
    """Of a language model or a classifier: what goes in, how much of it, and the mixers."""
    from longconv.distill.model import named_mixers
    from longconv.models import longest_sequence

    config, limit = model.config, longest_sequence(model)
    said = "of any length" if limit is None else f"up to {limit:,} tokens"
    if getattr(model, "receptive_field", None) is not None:
        said += f", a receptive field of {model.receptive_field:,}"
    continuous = getattr(config, "input_size", None)
    inputs = f"inputs of size {continuous}" if continuous else f"vocabulary {config.vocab_size:,}"
    lines = [f"{inputs}, {config.hidden_size} channels, {said}"]
    mixers = named_mixers(model)
    for index in range(config.num_hidden_layers):
        mixer = mixers[index][1] if index in mixers else None
        parts = [] if mixer is None else [mixer, *mixer.long_filters]
        text = ", ".join(f"{type(part).__name__}({part.extra_repr()})" for part in parts)
        lines.append(f"layer {index}: {text or 'as transformers has it'}")
    return lines


def _effect(model: Any) -> list[str]:
    """Of an audio effect: its body, the signals, how far it sees, and its controls with their ranges."""
    config = model.config
    options = ", ".join(f"{name}={value}" for name, value in config.body_options.items())
    lines = [
        f"body {config.body}: {options or 'its defaults'}",
        f"{config.channels_in} -> {config.channels_out} channels at {config.sample_rate:,} Hz",
    ]
    field, ahead = model.receptive_field, model.lookahead
    if field is None:
        lines.append("an unbounded receptive field, " + ("causal" if model.causal else "not causal"))
    else:
        seen = f"a receptive field of {field:,} samples ({1000 * field / config.sample_rate:,.1f} ms)"
        lines.append(f"{seen}, " + ("causal" if model.causal else f"{ahead:,} of them later than the output"))
    for index, name in enumerate(config.control_names):
        low, high = (0, 1) if config.control_ranges is None else config.control_ranges[index]
        lines.append(f"control {name}: {low:g} ... {high:g}")
    return lines
