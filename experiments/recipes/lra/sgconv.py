"""SGConv on the Long Range Arena: Li et al. 2022, "What Makes Convolutional Models Great on Long Sequence Modeling?".

The hyperparameters are those of its code, ctlllll/SGConv configs/experiment/lra/gconv-lra-TASK.yaml (as in the paper's
appendix), with the block of state-spaces/s4, in a copy of which it was trained. Two tasks were trained on several GPUs,
of which each had its own batch: the gradients of as many batches are summed here.
"""

from typing import Any

from ..recipe import OURS, Recipe, recipe
from .s4_code import S4_CODE

FILES = "ctlllll/SGConv configs/experiment/lra/gconv-lra-"

BASE: dict[str, Any] = S4_CODE | {
    "layers": 6,
    "hidden_size": 256,
    "norm": "batch",
    "norm_position": "pre",
    "lr": 0.01,
    "weight_decay": 0.05,
}
# Of the filter: "cat_randn_learnable_fixed", that is 1 / (t + 1), and "cat_cos". Its learning rate is 1e-3 everywhere.
IMAGE: dict[str, Any] = {"kernel_dim": 32, "decay": "fixed", "decay_min": 1.0, "decay_max": 1.0}
PATHX: dict[str, Any] = {"kernel_dim": 64, "init_scale": 1, "kernel_init": "cos", "decay_min": 1.0, "decay_max": 3.0}


def sgconv(task: str, source: str, filter: dict[str, Any], **options: Any) -> Recipe:
    """SGConv with GLU; `dropout` is that of the residual branch and of the layer alike."""
    options = BASE | {"warmup": 0.05} | options
    mixer = {"filter": {"name": "sgconv", **filter}, "output": "glu", "dropout": options.get("dropout", 0.0)}
    return recipe(f"lra.{task}.sgconv", source, mixer, **options)


RECIPES = (
    sgconv("listops", FILES + "listops.yaml", {"kernel_dim": 1}, layers=8, hidden_size=128, norm_position="post",
           batch_size=50, epochs=40, warmup=1_000 / 80_000),
    sgconv("text", FILES + "imdb.yaml", {"kernel_dim": 2}, task_options={"level": "char"}, batch_size=16, epochs=32,
           warmup=1_000 / 50_000),
    sgconv("retrieval", FILES + "aan.yaml", {"kernel_dim": 1}, batch_size=32, accumulate=2, epochs=20,
           warmup=2_500 / 50_000),
    sgconv("image", FILES + "cifar.yaml", IMAGE, hidden_size=512, norm="layer", norm_position="post", dropout=0.2,
           batch_size=50, epochs=200, warmup=1_000 / 200_000),
    sgconv("pathfinder32", FILES + "pathfinder.yaml", {"kernel_dim": 32}, lr=4e-3, weight_decay=0.03, dropout=0.2,
           pooling="last", batch_size=64, epochs=200, warmup=2_500 / 500_000),
    sgconv("pathx", FILES + "pathx.yaml", PATHX, lr=4e-3, weight_decay=0.03, batch_size=16, accumulate=4, epochs=50,
           warmup=10_000 / 125_000),
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
