"""TCN on pixel sequences: Bai et al. 2018, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for
Sequence Modeling"; locuslab/TCN TCN/mnist_pixel/pmnist_test.py. Only these tasks are published.

One block holds the whole stack of 8 x 2 convolutions of 7 taps, 25 channels wide, and a linear map back. Causal, and
classified by the last time step.

Not as published: the stack is between a norm in front and a residual around it, and a linear map of the pixels to its
width; the learning rate falls along a cosine, not to a tenth after each 10 epochs; weight decay is none either way.
"""

from typing import Any

from ..recipe import OURS, Recipe, recipe

FILE = "locuslab/TCN TCN/mnist_pixel/pmnist_test.py"

BASE: dict[str, Any] = {
    "layers": 1,
    "hidden_size": 25,
    "norm": "layer",
    "intermediate_size": 0,
    "initializer_range": None,
    "bidirectional": False,
    "pooling": "last",
    "lr": 2e-3,
    "weight_decay": 0.0,
    "clip": 0.0,
    "warmup": 0.0,
    "batch_size": 64,
    "epochs": 20,
}


def tcn(task: str, source: str, blocks: int, kernel_size: int, **options: Any) -> Recipe:
    """One stack of `blocks` residual blocks, with the published dropout."""
    mixer = {"num_blocks": blocks, "kernel_size": kernel_size, "dropout": 0.05}
    return recipe(f"lra.{task}.tcn", source, mixer, **{**BASE, **options})


RECIPES = (
    tcn("smnist", FILE, 8, 7),
    tcn("pmnist", FILE, 8, 7),
    tcn("digits", OURS + "sMNIST, for a CPU", 4, 5, batch_size=32, epochs=40, warmup=0.05),
)
