"""MEGA on the Long Range Arena: Ma et al. 2022, "Mega: Moving Average Equipped Gated Attention", Table 8, and
facebookresearch/mega examples/mega/README.lra.md (warm-up, schedule, clipping) with fairseq/models/lra/model.py
(z_dim, n_dim, truncation_length). The attention is over the whole sequence.

Not as published:

- The MLP has GELU and no biases, for SiLU and biases.
- The residual branch of the layer has a dropout, besides those inside.
- The classifier is linear; published is one with a hidden layer.
"""

from typing import Any

from ..recipe import OURS, Recipe, recipe

PAPER = "Ma et al. 2022, Table 8; facebookresearch/mega examples/mega/README.lra.md"

BASE: dict[str, Any] = {
    "activation": "gelu",
    "schedule": "linear",
    "clip": 1.0,
    "initializer_range": 0.02,
    "beta2": 0.98,
}
# Columns of Table 8 that go together: those of text, with softmax attention, and those of pixels, with the Laplace one.
TOKENS: dict[str, Any] = {"norm_position": "post", "dropout": 0.1}
PIXELS: dict[str, Any] = {"norm": "batch", "norm_position": "pre", "lr": 0.01, "weight_decay": 0.01}


def sizes(width: int, z: int) -> dict[str, Any]:
    """d_model and z of Table 8; d_FFN and v are twice the former in all tasks."""
    return {"hidden_size": width, "intermediate_size": 2 * width, "zdim": z}


def attention(options: dict[str, Any]) -> dict[str, Any]:
    """What the mixers of MEGA and TCNCA share, of options of a recipe, from which `zdim` is taken."""
    pixels = "dropout" not in options
    return {
        "norm": "batchnorm" if pixels else None,  # norms in front are inside the layer
        "zdim": options.pop("zdim"),
        "hdim": 2 * options["hidden_size"],
        "attention_activation": "laplace" if pixels else "softmax",
        "rel_pos_bias": "simple",  # appendix D.1: rotary positions for language models alone
        "dropout": options.get("dropout", 0.0),
    }


def mega(task: str, source: str, truncation: int, *shared: dict[str, Any], **options: Any) -> Recipe:
    """MEGA with a moving average of 16 dimensions (h) that is cut off after so many taps."""
    chunk_size = options.pop("chunk_size", None)
    options = _merge(*shared, options)
    mixer = attention(options) | {"ndim": 16, "truncation": truncation, "chunk_size": chunk_size}
    return recipe(f"lra.{task}.mega", source, mixer, **{**BASE, **options})


def _merge(*tables: dict[str, Any]) -> dict[str, Any]:
    return {name: value for table in tables for name, value in table.items()}


RECIPES = (
    mega("listops", PAPER, 1024, TOKENS, sizes(80, 64), layers=6, norm="layer", lr=1e-3, weight_decay=0.01,
         batch_size=64, epochs=60, warmup=3_000 / 90_000),
    mega("text", PAPER, 1024, TOKENS, sizes(128, 64), layers=4, norm="scale", lr=4e-3, weight_decay=0.01, batch_size=25,
         accumulate=2, epochs=50, warmup=10_000 / 25_000),
    mega("retrieval", PAPER, 1024, TOKENS, sizes(128, 64), layers=6, norm="scale", lr=3e-3, weight_decay=0.04,
         batch_size=8, accumulate=8, epochs=40, warmup=10_000 / 91_960),
    mega("image", PAPER, 1024, PIXELS, sizes(160, 96), layers=8, weight_decay=0.02, batch_size=50, epochs=200,
         warmup=9_000 / 180_000),
    mega("pathfinder32", PAPER, 1024, PIXELS, sizes(128, 64), layers=6, batch_size=128, epochs=200,
         warmup=50_000 / 250_000),
    # 2 x 8 on each of 8 GPUs.
    mega("pathx", PAPER, 4096, PIXELS, sizes(64, 32), layers=4, batch_size=2, accumulate=64, epochs=100,
         warmup=25_000 / 125_000),
    mega("pathfinder64", OURS + "Pathfinder (32 px)", 4096, PIXELS, sizes(128, 64), layers=6, batch_size=32,
         accumulate=4, epochs=100, warmup=0.2),
    # MEGA-chunk: "c = 128 for all the tasks, except Path-X where c = 4096" (section 4.1).
    mega("path256", OURS + "Path-X with MEGA-chunk", 4096, PIXELS, sizes(64, 32), chunk_size=4096, layers=4,
         batch_size=2, accumulate=32, epochs=20, warmup=0.2, gradient_checkpointing=True),
    mega("path512", OURS + "Path-X with MEGA-chunk", 4096, PIXELS, sizes(64, 32), chunk_size=4096, layers=4,
         batch_size=1, accumulate=32, epochs=10, warmup=0.2, gradient_checkpointing=True),
    mega("scifar", OURS + "Image", 1024, PIXELS, sizes(160, 96), layers=8, weight_decay=0.02, batch_size=50,
         epochs=200, warmup=0.05),
    mega("smnist", OURS + "Image", 784, PIXELS, sizes(80, 48), layers=4, weight_decay=0.02, batch_size=50, epochs=50,
         warmup=0.05),
    mega("pmnist", OURS + "Image", 784, PIXELS, sizes(80, 48), layers=4, weight_decay=0.02, batch_size=50, epochs=50,
         warmup=0.05),
    mega("digits", OURS + "Image, for a CPU", 64, PIXELS, sizes(48, 24), layers=2, batch_size=32, epochs=40,
         warmup=0.1),
)  # fmt: skip
