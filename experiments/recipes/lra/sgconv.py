"""SGConv on the Long Range Arena: Li et al. 2022, "What Makes Convolutional Models Great on Long Sequence Modeling?".

Its appendix has the hyperparameters: depth, width, d (kernel_dim), decay, norm and its place, dropout, learning rate,
batch, epochs, weight decay. The published code (ctlllll/SGConv) is the layer alone; it was trained with
state-spaces/s4 (README there), from which are the block and the warm-up.
"""

from typing import Any

from ..recipe import OURS, Recipe, recipe
from .s4_code import S4_CODE, WARMUP

PAPER = "Li et al. 2022, appendix, hyperparameters on LRA"

BASE: dict[str, Any] = S4_CODE | {
    "layers": 6,
    "hidden_size": 256,
    "norm": "batch",
    "norm_position": "pre",
    "lr": 0.01,
    "weight_decay": 0.05,
}
# Of the filter: "fixed 1/(t+1) decay", and "cosine init, alpha 1 to 3". Its learning rate is the default, 1e-3.
IMAGE: dict[str, Any] = {"kernel_dim": 32, "decay": "fixed", "decay_min": 1.0, "decay_max": 1.0}
PATHX: dict[str, Any] = {"kernel_dim": 64, "kernel_init": "cos", "decay_min": 1.0, "decay_max": 3.0}


def sgconv(task: str, source: str, filter: dict[str, Any], **options: Any) -> Recipe:
    """SGConv with GLU; `dropout` is that of the residual branch and of the layer alike."""
    options = BASE | {"warmup": WARMUP.get(task, 0.05)} | options
    mixer = {"filter": {"name": "sgconv", **filter}, "output": "glu", "dropout": options.get("dropout", 0.0)}
    return recipe(f"lra.{task}.sgconv", source, mixer, **options)


RECIPES = (
    sgconv("listops", PAPER, {"kernel_dim": 1}, layers=8, hidden_size=128, norm_position="post", batch_size=50,
           epochs=40),
    sgconv("text", PAPER, {"kernel_dim": 2}, batch_size=16, epochs=32),
    sgconv("retrieval", PAPER, {"kernel_dim": 1}, batch_size=32, epochs=20),
    sgconv("image", PAPER, IMAGE, hidden_size=512, norm="layer", norm_position="post", dropout=0.2, batch_size=50,
           epochs=200),
    sgconv("pathfinder32", PAPER, {"kernel_dim": 32}, lr=4e-3, weight_decay=0.03, dropout=0.2, pooling="last",
           batch_size=64, epochs=200),
    sgconv("pathx", PAPER, PATHX, lr=4e-3, weight_decay=0.03, batch_size=16, epochs=50),
    sgconv("pathfinder64", OURS + "Pathfinder (32 px)", {"kernel_dim": 32}, lr=4e-3, weight_decay=0.03, dropout=0.2,
           pooling="last", batch_size=64, epochs=100),
    sgconv("path256", OURS + "Path-X", PATHX, lr=1e-3, weight_decay=0.03, batch_size=16, epochs=20, warmup=0.1,
           gradient_checkpointing=True),
    sgconv("path512", OURS + "Path-X", PATHX, lr=1e-3, weight_decay=0.03, batch_size=4, accumulate=4, epochs=10,
           warmup=0.1, gradient_checkpointing=True),
    sgconv("scifar", OURS + "Image", IMAGE, hidden_size=512, norm="layer", norm_position="post", dropout=0.2,
           batch_size=50, epochs=200),
    sgconv("smnist", OURS + "Image", IMAGE, hidden_size=128, norm="layer", norm_position="post", dropout=0.1,
           batch_size=50, epochs=50),
    sgconv("pmnist", OURS + "Text: neighbours mean nothing there", {"kernel_dim": 2}, hidden_size=128, dropout=0.1,
           batch_size=50, epochs=50),
    sgconv("digits", OURS + "Image, for a CPU", {"kernel_dim": 8}, layers=2, hidden_size=64, norm="layer",
           norm_position="post", dropout=0.1, batch_size=32, epochs=40),
)  # fmt: skip
