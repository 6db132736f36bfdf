"""What the models trained with state-spaces/s4 share, and what its tasks do whatever the layer.

Facts: configs/model/s4.yaml, configs/trainer/default.yaml, src/models/sequence/backbones/model.py there.
"""

from typing import Any

#: A block is norm, layer and residual. The GLU is in the layer, so there is no MLP.
S4_CODE: dict[str, Any] = {
    "intermediate_size": 0,
    "initializer_range": None,  # every linear map as PyTorch has it
    "embedding_dropout": 0.0,  # dropinp
    "tie_dropout": True,  # DropoutNd: a channel of a sequence at all times
    "clip": 0.0,  # gradient_clip_val: null
    "schedule": "cosine",
}

# scheduler.num_warmup_steps / scheduler.num_training_steps of configs/experiment/lra/old/v3-s4-*.yaml; where the former
# is not given it is 1,000 (configs/scheduler/cosine_warmup.yaml).
WARMUP = {
    "listops": 1_000 / 80_000,
    "text": 1_000 / 50_000,
    "retrieval": 2_500 / 50_000,
    "image": 900 / 180_000,
    "pathfinder32": 2_500 / 500_000,
    "pathx": 50_000 / 500_000,
    "scifar": 900 / 180_000,  # configs/experiment/cifar/s4-cifar.yaml
}
