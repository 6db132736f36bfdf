"""TCNCA on the Long Range Arena: Terzic et al. 2023, "TCNCA: Temporal Convolution Network with Chunked Attention".

The paper reports the accuracy of MEGA on average, but neither code nor sizes of the networks are published: every line
is ours, MEGA's Table 8 with a convolutional network in place of the moving average, four layers deep (five for 512 px)
and with as many taps K, at dilations K^i, as make it see the whole sequence. Chunks are those of MEGA-chunk, "c = 128
for all the tasks, except Path-X where c = 4096" (Ma et al. 2022, section 4.1).
"""

from typing import Any

from ..recipe import OURS, Recipe, recipe
from .mega import BASE, PIXELS, TOKENS, attention, sizes

MEGA = OURS + "MEGA (Ma et al. 2022, Table 8)"


def tcnca(
    task: str, kernel_size: int, *shared: dict[str, Any], chunk: int = 128, depth: int = 4, **more: Any
) -> Recipe:
    """TCNCA with `depth` convolutions of `kernel_size` taps, so a reach of kernel_size^depth, and chunks of `chunk`."""
    options = {name: value for table in (*shared, more) for name, value in table.items()}
    network = {"num_layers": depth, "kernel_size": kernel_size, "dilation_factor": kernel_size}
    mixer = attention(options) | network | {"chunk_size": chunk}
    return recipe(f"lra.{task}.tcnca", MEGA, mixer, **{**BASE, **options})


RECIPES = (
    tcnca("listops", 7, TOKENS, sizes(80, 64), layers=6, norm="layer", lr=1e-3, weight_decay=0.01, batch_size=64,
          epochs=60, warmup=3_000 / 90_000),
    tcnca("text", 8, TOKENS, sizes(128, 64), layers=4, norm="scale", lr=4e-3, weight_decay=0.01, batch_size=25,
          accumulate=2, epochs=50, warmup=10_000 / 25_000),
    tcnca("retrieval", 8, TOKENS, sizes(128, 64), layers=6, norm="scale", lr=3e-3, weight_decay=0.04, batch_size=8,
          accumulate=8, epochs=40, warmup=10_000 / 91_960),
    tcnca("image", 6, PIXELS, sizes(160, 96), layers=8, weight_decay=0.02, batch_size=50, epochs=200,
          warmup=9_000 / 180_000),
    tcnca("pathfinder32", 6, PIXELS, sizes(128, 64), layers=6, batch_size=128, epochs=200, warmup=50_000 / 250_000),
    tcnca("pathx", 12, PIXELS, sizes(64, 32), chunk=4096, layers=4, batch_size=2, accumulate=64, epochs=100,
          warmup=25_000 / 125_000),
    tcnca("pathfinder64", 8, PIXELS, sizes(128, 64), layers=6, batch_size=128, epochs=100, warmup=0.2),
    tcnca("path256", 16, PIXELS, sizes(64, 32), chunk=4096, layers=4, batch_size=2, accumulate=32, epochs=20,
          warmup=0.2, gradient_checkpointing=True),
    tcnca("path512", 13, PIXELS, sizes(64, 32), chunk=4096, depth=5, layers=4, batch_size=1, accumulate=32, epochs=10,
          warmup=0.2, gradient_checkpointing=True),
    tcnca("scifar", 6, PIXELS, sizes(160, 96), layers=8, weight_decay=0.02, batch_size=50, epochs=200, warmup=0.05),
    tcnca("smnist", 6, PIXELS, sizes(80, 48), layers=4, weight_decay=0.02, batch_size=50, epochs=50, warmup=0.05),
    tcnca("pmnist", 6, PIXELS, sizes(80, 48), layers=4, weight_decay=0.02, batch_size=50, epochs=50, warmup=0.05),
    tcnca("digits", 3, PIXELS, sizes(48, 24), chunk=32, layers=2, batch_size=32, epochs=40, warmup=0.1),
)  # fmt: skip
