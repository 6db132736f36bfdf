"""S4D on the Long Range Arena: Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space
Models".

The hyperparameters are those of state-spaces/s4, configs/experiment/lra/old/v3-s4-TASK.yaml, which its CHANGELOG calls
"improved configs for Long Range Arena reported in HTTYH and S4D papers", run with `model/layer=s4d`. These files say
`init: legs`, so the model is S4D-LegS. (The newer configs/experiment/lra/s4-TASK.yaml are for S4 itself, with 4 states
and one system for all channels in three of the tasks.)

`lr: {dt: null}` gives dt the global learning rate (`lr_dt`), `n_ssm: 2` two systems for all channels.
"""

from typing import Any

from ..recipe import OURS, Recipe, recipe
from .s4_code import S4_CODE, WARMUP

FILES = "state-spaces/s4 configs/experiment/lra/old/v3-s4-"

BASE: dict[str, Any] = S4_CODE | {
    "layers": 6,
    "hidden_size": 256,
    "norm": "batch",
    "norm_position": "pre",
    "lr": 0.01,
    "weight_decay": 0.05,
}
# Of the filter: d_state, init, dt_min, dt_max, lr.
FILTER: dict[str, Any] = {"state_size": 64, "init": "legs", "dt_min": 1e-3, "dt_max": 0.1, "lr": 1e-3, "lr_dt": 1e-3}
TOKENS: dict[str, Any] = {"lr_dt": None}
PATH256: dict[str, Any] = {"state_size": 128, "dt_min": 1e-4}


def s4d(task: str, source: str, filter: dict[str, Any] | None = None, **options: Any) -> Recipe:
    """S4D with GLU; `dropout` is that of the residual branch and of the layer alike."""
    options = BASE | {"warmup": WARMUP.get(task, 0.05)} | options
    mixer = {"filter": {"name": "s4d", **FILTER, **(filter or {})}, "dropout": options.get("dropout", 0.0)}
    return recipe(f"lra.{task}.s4d", source, mixer, **options)


RECIPES = (
    s4d("listops", FILES + "listops.yaml", TOKENS, layers=8, hidden_size=128, norm_position="post", batch_size=50,
        epochs=40),
    s4d("text", FILES + "imdb.yaml", TOKENS, task_options={"level": "char"}, batch_size=16, epochs=32),
    s4d("retrieval", FILES + "aan.yaml", TOKENS, batch_size=64, epochs=20),
    s4d("image", FILES + "cifar.yaml", {"n_ssm": 2, "lr_dt": None}, hidden_size=512, norm="layer",
        norm_position="post", dropout=0.1, batch_size=50, epochs=200),
    s4d("pathfinder32", FILES + "pathfinder.yaml", lr=4e-3, weight_decay=0.03, pooling="last", batch_size=64,
        epochs=200),
    s4d("pathx", FILES + "pathx.yaml", {"dt_min": 1e-4, "lr": 5e-4, "lr_dt": 5e-4}, lr=1e-3, batch_size=16, epochs=50),
    s4d("scifar", "state-spaces/s4 configs/experiment/cifar/s4-cifar.yaml", {"n_ssm": 2}, hidden_size=512,
        norm="layer", norm_position="post", dropout=0.1, batch_size=50, epochs=200),
    s4d("pathfinder64", OURS + "Pathfinder (32 px)", lr=4e-3, weight_decay=0.03, pooling="last", batch_size=64,
        epochs=100),
    # Its Table 5 is for S4D-DFouT, another initialisation: depth, width, 128 states, lr, batch, epochs, range of dt.
    s4d("path256", OURS + "S4D-DFouT on Path-256 (its paper's Table 5)", PATH256, lr=1e-4, batch_size=16,
        epochs=20, warmup=0.1, gradient_checkpointing=True),
    s4d("path512", OURS + "Path-256", PATH256, lr=1e-4, batch_size=4, accumulate=4,
        epochs=10, warmup=0.1, gradient_checkpointing=True),
    s4d("smnist", OURS + "sCIFAR", hidden_size=128, norm="layer", norm_position="post", dropout=0.1, batch_size=50,
        epochs=50),
    # "model.n_layers=3 model.d_model=128 model.norm=batch model.prenorm=True" in the README.
    s4d("pmnist", OURS + "an example in the README of state-spaces/s4", layers=3, hidden_size=128, dropout=0.1,
        batch_size=50, epochs=50),
    s4d("digits", OURS + "sCIFAR, for a CPU", {"state_size": 16}, layers=2, hidden_size=64, norm="layer",
        norm_position="post", dropout=0.1, batch_size=32, epochs=40),
)  # fmt: skip
