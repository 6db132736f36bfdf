"""Weights of the Hyena N-D authors' code (Itamarzimm/HyenaND, `hyena2d.py`, `HyenaOperator2d`) into our `HyenaND`.

Of its directional modes the standard one, of one causal quadrant. With O = order - 1 filters in one network of O D
channels, stage `o` in channels o D ... (o+1) D - 1:

    theirs                                              ours
    in_proj, out_proj .weight/.bias                     the same: outputs are x_0, ..., x_{n-1}, v in both
    short_filter.weight (C, 1, 3, 3), .bias             short_weight (C, 3, 3), taps reversed; short_bias
    filter_fn.bias (O D)                                skip
    filter_fn.pos_emb.z (1, l, E)                       nd_filters.o.z.0 and .1, one for both axes
    filter_fn.implicit_filter.*                         nd_filters.o.mlp.0; of the last layer the rows of the stage
    filter_fn.{X,Y}implicit_filter.*                    nd_filters.o.mlp.{0,1}, with kind "product"
    filter_fn.modulation.{X,Y}deltas                    nd_filters.o.deltas, of the stage
    filter_fn.{X,Y}modulation.deltas                    the same, with kind "product"
    filter_fn.pos_emb.t                                 computed

Their convolution is divided by the length 2 l of its FFT; so are the weights of our last layer (one of two, with kind
"product"). Settings that no tensor tells must agree: `shift`, window mode "standard", no `sqrt_decay`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from longconv.filters.hyena_nd import HyenaFilterND, SineNetwork

from ..hyena_nd import HyenaND
from ._mapping import Reader


@torch.no_grad()
def load_hyena_nd_state_dict(layer: HyenaND, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
    """Load the weights of one `HyenaOperator2d` into `layer`, in place.

    Args:
        layer: of square images, causal, with their sizes and `short_kernel=3`.
        state_dict: their tensors, e.g. of a whole model.
        prefix: of this operator in `state_dict`, e.g. `"blocks.0.attn."`.

    Raises:
        ValueError: the layer is of another kind, or a tensor is missing, of another shape or left over.
    """
    if len(layer.shape) != 2 or layer.shape[0] != layer.shape[1] or any(layer.bidirectional) or not layer.short_center:
        raise ValueError(f"the layer must be causal on square images, with a centred short convolution, got {layer!r}")
    reader, D, ignored = Reader(state_dict, prefix), layer.channels, ["filter_fn.pos_emb.t"]
    for name in ("in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias"):
        reader.copy(layer.get_parameter(name), name)
    reader.copy(layer.short_weight, "short_filter.weight", lambda w: w[:, 0].flip(-1, -2))
    reader.copy(layer.short_bias, "short_filter.bias")
    reader.copy(layer.skip, "filter_fn.bias", lambda bias: bias.view(-1, D))
    for o, ours in enumerate(layer.nd_filters):
        assert isinstance(ours, HyenaFilterND)
        rows = slice(o * D, (o + 1) * D)
        for axis, letter in enumerate("XY"):
            reader.copy(ours.z[axis], "filter_fn.pos_emb.z", lambda z: z[0])
            name = f"modulation.{letter}deltas" if ours.kind == "implicit" else f"{letter}modulation.deltas"
            reader.copy(ours.deltas[axis], f"filter_fn.{name}", lambda deltas, rows=rows: deltas.flatten()[rows])  # type: ignore[misc]
        for letter, network in zip(("",) if ours.kind == "implicit" else "XY", ours.mlp, strict=True):
            assert isinstance(network, SineNetwork)
            at, last = f"filter_fn.{letter}implicit_filter.", len(network.layers) - 1
            reader.copy(network.freq, at + "1.freq", lambda freq: freq[0])
            for i, linear in enumerate(network.layers[:-1]):
                for name in ("weight", "bias"):
                    reader.copy(linear.get_parameter(name), f"{at}{2 * i}.{name}")
            scale = 1.0 if letter == "Y" else 1 / (2 * layer.shape[0])
            weight = network.layers[-1].get_parameter("weight")
            reader.copy(weight, f"{at}{2 * last}.weight", lambda w, rows=rows, scale=scale: w[rows] * scale)  # type: ignore[misc]
            ignored += [f"{at}{2 * i + 1}.freq" for i in range(1, last)]
    reader.finish(ignored)
