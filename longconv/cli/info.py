"""`longconv info`."""

from pathlib import Path


def info(model: Path | None = None, /, *, layers: bool = False) -> None:
    """Describe a model: its mixers, its filters, its parameters, its state; or else this installation.

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
    from longconv.models import load_model

    loaded = load_model(model)
    config = loaded.config
    print(f"{type(loaded).__name__}: {sum(p.numel() for p in loaded.parameters()):,} parameters")
    limit = f"up to {config.max_position_embeddings:,} tokens"
    if loaded.receptive_field is not None:
        limit += f", a receptive field of {loaded.receptive_field:,}"
    inputs = f"inputs of size {config.input_size}" if config.input_size else f"vocabulary {config.vocab_size:,}"
    print(f"{inputs}, {config.hidden_size} channels, {limit}")
    for index, block in enumerate(loaded.base_model.layers):
        parts = [block.mixer, *block.mixer.long_filters]
        print(f"layer {index}: " + ", ".join(f"{type(part).__name__}({part.extra_repr()})" for part in parts))
