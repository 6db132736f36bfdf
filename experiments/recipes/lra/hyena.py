"""Hyena on the Long Range Arena. Nothing is published: every line is ours.

They follow the long convolutions of HazyResearch/safari, the code that Hyena was published with:
configs/experiment/lra/long-conv-lra-TASK.yaml gives depth, width, norm and its place, batch, epochs, warm-up, weight
decay and the filters' learning rate. Three things are different on purpose: the learning rate of the rest is a fifth,
since products of projections tolerate less than a GLU does; there is an MLP behind each operator, as in all of its
authors' models, because the operator itself has no nonlinearity but its gates; and models of images are half as wide,
since their blocks have four times the weights.
"""

from typing import Any

from ..recipe import OURS, Recipe, recipe
from .s4_code import S4_CODE

FILES = OURS + "HazyResearch/safari configs/experiment/lra/long-conv-lra-"

BASE: dict[str, Any] = S4_CODE | {
    "intermediate_size": None,
    "layers": 6,
    "hidden_size": 256,
    "norm": "batch",
    "norm_position": "pre",
    "lr": 2e-3,
    "weight_decay": 0.05,
    "clip": 1.0,
}
# emb_dim, w and order (filter_order) as in configs/experiment/pile/hyena.yaml.
FILTER: dict[str, Any] = {"emb_dim": 33, "w": 14.0, "order": 64}
# HazyResearch/hyena-dna configs/experiment/hg38/hg38_hyena.yaml: the features are trained, one vector for each step.
LONG: dict[str, Any] = {"emb_dim": 5, "w": 10.0, "order": 64}


def hyena(
    task: str, source: str, filter_lr: float = 1e-3, filter: dict[str, Any] | None = None, **options: Any
) -> Recipe:
    """Hyena of order 2."""
    mixer = {"order": 2, "filter": {"name": "hyena", **(filter or FILTER), "lr": filter_lr}}
    return recipe(f"lra.{task}.hyena", source, mixer, **{**BASE, **options})


RECIPES = (
    hyena("listops", FILES + "listops.yaml", 5e-4, layers=8, hidden_size=128, norm_position="post", batch_size=50,
          epochs=40, warmup=10_000 / 80_000),
    hyena("text", FILES + "imdb.yaml", batch_size=16, epochs=32, warmup=5_000 / 50_000),
    hyena("retrieval", FILES + "aan.yaml", 1e-4, batch_size=32, accumulate=2, epochs=20, warmup=2_500 / 50_000),
    hyena("image", FILES + "cifar.yaml", norm="layer", norm_position="post", dropout=0.1,
          batch_size=50, epochs=200, warmup=1_000 / 200_000),
    hyena("pathfinder32", FILES + "pathfinder.yaml", lr=8e-4, weight_decay=0.03, pooling="last", batch_size=64,
          epochs=200, warmup=2_500 / 500_000),
    # 5e-4 in the file already.
    hyena("pathx", FILES + "pathx.yaml", 5e-4, lr=5e-4, batch_size=16, epochs=50, warmup=10_000 / 500_000),
    hyena("pathfinder64", OURS + "Pathfinder (32 px)", lr=8e-4, weight_decay=0.03, pooling="last", batch_size=64,
          epochs=100, warmup=0.05),
    hyena("path256", OURS + "Path-X", 5e-4, LONG, lr=5e-4, batch_size=16, epochs=20, warmup=0.1,
          gradient_checkpointing=True),
    hyena("path512", OURS + "Path-X", 5e-4, LONG, lr=5e-4, batch_size=4, accumulate=4, epochs=10, warmup=0.1,
          gradient_checkpointing=True),
    hyena("scifar", OURS + "HazyResearch/safari configs/experiment/cifar/long-conv-cifar.yaml", norm="layer",
          norm_position="post", dropout=0.1, batch_size=50, epochs=300, warmup=1_000 / 300_000),
    hyena("smnist", OURS + "sCIFAR", hidden_size=128, norm="layer", norm_position="post", dropout=0.1, batch_size=50,
          epochs=50, warmup=0.05),
    hyena("pmnist", OURS + "Text", hidden_size=128, dropout=0.1, batch_size=50, epochs=50, warmup=0.05),
    hyena("digits", OURS + "sCIFAR, for a CPU", layers=2, hidden_size=64, norm="layer", norm_position="post",
          dropout=0.1, batch_size=32, epochs=40, warmup=0.05),
)  # fmt: skip
