"""The language models of `longconv bench quality`: what they are, and their training, which is done once."""

import dataclasses
from pathlib import Path
from typing import Any

from longconv.models import load_model
from longconv.training import TrainConfig, is_finished, train
from longconv.training.trainer import checkpoints

#: Filters of Hyena: as its code has them by default, and as its published language models have them.
SMOOTH = {"name": "hyena", "emb_dim": 3, "w": 1.0}
OSCILLATORY = {"name": "hyena", "emb_dim": 33, "w": 14.0}

#: Name -> mixer and its options. Initialisations and learning rates of filters are the published ones.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "hyena-smooth": ("hyena", {"filter": SMOOTH}),
    "hyena-oscillatory": ("hyena", {"filter": OSCILLATORY}),
    "multihyena": ("multi_hyena", {"filter": OSCILLATORY}),  # with heads of HEAD_DIM channels
    "sgconv": ("sgconv", {"filter": "sgconv"}),
    "freeform": ("global_conv", {"filter": "freeform"}),
}

#: N of MultiHyena: N^2 products in each head, and N times fewer filters than channels.
HEAD_DIM = 4


def recipe(name: str, base: TrainConfig) -> TrainConfig:
    """The training of a model: `base`, which is the same for all, with this mixer, in a folder of this name.

    Raises:
        ValueError: no model has that name, or there are not whole heads in `base.hidden_size` channels.
    """
    if name not in MODELS:
        raise ValueError(f"models: unknown {name!r}; known: {', '.join(MODELS)}")
    mixer, options = MODELS[name]
    if mixer == "multi_hyena":
        if base.hidden_size % HEAD_DIM:
            raise ValueError(f"hidden_size must be a multiple of {HEAD_DIM} for {name}, got {base.hidden_size}")
        options = {**options, "num_heads": base.hidden_size // HEAD_DIM}
    output = Path(base.output) / name
    return dataclasses.replace(base, output=output, mixers=mixer, mixer_options={mixer: options})


def trained(config: TrainConfig) -> tuple[Any, Any]:
    """The model of a recipe, trained now, or to the end if that was interrupted, or long ago; and its task.

    Raises:
        ValueError: the folder holds a model with another recipe.
    """
    if not is_finished(config):
        train(dataclasses.replace(config, resume=bool(checkpoints(Path(config.output)))))
    return load_model(Path(config.output) / "model"), config.open_task()
