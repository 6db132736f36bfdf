"""Weights of the TCN authors' code (locuslab/TCN, `TCN/tcn.py`, class `TemporalConvNet`) into our `TCN`.

    theirs                                            ours
    network.i.conv1.weight_g, .weight_v, .bias        blocks.i.conv1, the same; conv2 likewise
    network.i.downsample.weight, .bias                blocks.i.downsample, the same
    network.i.net.{0,4}.*                             repeated: conv1 and conv2 again

With PyTorch's newer `parametrizations.weight_norm`, weight_g and weight_v are `parametrizations.weight.original0` and
`.original1`. Sizes must agree; dropout is no tensor. What the models put behind the network (`linear`, `decoder`) is
outside of the prefix.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..tcn import TCN
from ._mapping import Reader


@torch.no_grad()
def load_tcn_state_dict(layer: TCN, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
    """Load the weights of one `TemporalConvNet` into `layer`, in place.

    Args:
        layer: built with `hidden` equal to their `num_channels`, of which the last is D.
        state_dict: their tensors, e.g. of a whole model.
        prefix: of the network in `state_dict`, e.g. `"tcn."`.

    Raises:
        ValueError: a tensor is missing, of another shape or left over.
    """
    reader = Reader(state_dict, prefix)
    repeated = []
    for i, block in enumerate(layer.blocks):
        for conv, at in (("conv1", 0), ("conv2", 4)):
            theirs, ours = f"network.{i}.{conv}.", block.get_submodule(conv)
            newer = theirs + "parametrizations.weight.original0" in reader
            stored = ("parametrizations.weight.original0", "parametrizations.weight.original1")
            for mine, name in zip(("weight_g", "weight_v"), stored if newer else ("weight_g", "weight_v"), strict=True):
                reader.copy(ours.get_parameter(mine), theirs + name)
            reader.copy(ours.get_parameter("bias"), theirs + "bias")
            repeated.append(f"network.{i}.net.{at}.")
        if "downsample" in dict(block.named_children()):
            for name in ("downsample.weight", "downsample.bias"):
                reader.copy(block.get_parameter(name), f"network.{i}.{name}")
    reader.finish(repeated)
