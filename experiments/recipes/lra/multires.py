"""MultiresConv on the Long Range Arena: Shi, Wang and Fox 2023, "Sequence Modeling with Multiresolution Convolutional
Memory".

Published are ListOps and sequential CIFAR in colour, thjashin/multires-conv scripts/*.sh: causal, with the norm after
the residual. Options that a script leaves out are the defaults of classification.py. Other tasks are ours: those of
text after ListOps, those of pixels after CIFAR, both directions, and the epochs and batches of S4.
"""

from typing import Any

from ..recipe import OURS, Recipe, recipe

SCRIPTS = "thjashin/multires-conv scripts/"

# classification.py: class MultiresNet, setup_optimizer. The GLU is in the layer, so there is no MLP.
BASE: dict[str, Any] = {
    "layers": 10,
    "norm_position": "post",
    "intermediate_size": 0,
    "initializer_range": None,
    "clip": 0.0,
    "schedule": "cosine",
    "batch_size": 50,
}
# What one of the two scripts has, and tasks that follow it share.
LISTOPS: dict[str, Any] = {"hidden_size": 128, "norm": "batch", "lr": 3e-3, "weight_decay": 0.03}
CIFAR: dict[str, Any] = {"hidden_size": 256, "norm": "layer", "lr": 4.5e-3, "weight_decay": 0.01}


def multires(task: str, source: str, kernel_size: int, drop: float, *shared: dict[str, Any], **options: Any) -> Recipe:
    """Fading memory and GLU. `drop` is in the layer, behind the GELU and behind the GLU, and nowhere else."""
    mixer = {
        "kernel_size": kernel_size,
        "tree_select": "fading",
        "dropout": drop,
        "output": "glu",
        "indep_res_init": kernel_size == 4,  # --indep_res_init goes with --kernel_size=4 in listops.sh
    }
    for more in shared:
        options = more | options
    return recipe(f"lra.{task}.multires", source, mixer, **{**BASE, **options})


RECIPES = (
    multires("listops", SCRIPTS + "listops.sh", 4, 0.1, LISTOPS, bidirectional=False, epochs=100, warmup=1 / 100),
    multires("scifar", SCRIPTS + "seq_cifar.sh", 2, 0.25, CIFAR, bidirectional=False, epochs=250, warmup=0.0),
    multires("text", OURS + "ListOps", 4, 0.1, LISTOPS, batch_size=16, epochs=32, warmup=0.02),
    multires("retrieval", OURS + "ListOps", 4, 0.1, LISTOPS, batch_size=64, epochs=20, warmup=0.05),
    multires("image", OURS + "sCIFAR", 2, 0.25, CIFAR, epochs=200, warmup=0.005),
    multires("pathfinder32", OURS + "sCIFAR", 2, 0.1, CIFAR, norm="batch", batch_size=64, epochs=200, warmup=0.01),
    multires("pathfinder64", OURS + "sCIFAR", 2, 0.1, CIFAR, norm="batch", batch_size=64, epochs=100, warmup=0.05),
    multires("pathx", OURS + "sCIFAR", 2, 0.0, CIFAR, norm="batch", lr=1e-3, batch_size=16, epochs=50, warmup=0.1),
    multires("path256", OURS + "sCIFAR", 2, 0.0, CIFAR, norm="batch", lr=1e-3, batch_size=16, epochs=20, warmup=0.1,
             gradient_checkpointing=True),
    multires("path512", OURS + "sCIFAR", 2, 0.0, CIFAR, norm="batch", lr=1e-3, batch_size=4, accumulate=4, epochs=10,
             warmup=0.1, gradient_checkpointing=True),
    multires("smnist", OURS + "sCIFAR", 2, 0.1, CIFAR, hidden_size=128, epochs=50, warmup=0.05),
    multires("pmnist", OURS + "ListOps", 4, 0.1, LISTOPS, epochs=50, warmup=0.05),
    multires("digits", OURS + "sCIFAR, for a CPU", 2, 0.1, CIFAR, layers=2, hidden_size=64, batch_size=32, epochs=40,
             warmup=0.05),
)  # fmt: skip
