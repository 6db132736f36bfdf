"""Weights of the Hyena authors' code (HazyResearch/safari, `src/models/sequence/hyena.py`) into our `Hyena`.

With O = order - 1 filters, which safari keeps in one network of D*O channels, channel `d*O + o` for stage `o`:

    safari                                        ours
    in_proj, out_proj .weight/.bias               the same: outputs are x_0, ..., x_{n-1}, v in both
    short_filter.weight (C, 1, K)                 short_weight (C, K), taps reversed: Conv1d stores the oldest first
    short_filter.bias                             short_bias
    filter_fn.bias (D*O)                          skip[o] = bias[o::O]
    filter_fn.pos_emb.z (1, M, E)                 long_filters.o.z (M, E)
    filter_fn.implicit_filter.{0,2,...}           long_filters.o.mlp.{0,1,...}; of the last, rows o::O
    filter_fn.implicit_filter.1.freq (1, W)       long_filters.o.freq; 3.freq, 5.freq are the same parameter
    filter_fn.modulation.deltas (1, 1, D*O)       long_filters.o.deltas[o::O]
    filter_fn.pos_emb.t                           computed

Settings that no tensor tells must agree: `modulate`, `shift`, and safari's `normalized`, `num_heads`, `num_blocks`,
`inner_factor`, `activation` and `outer_mixing`, of which only the defaults are representable.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from longconv.filters import HyenaFilter

from ..hyena import Hyena
from ._mapping import Reader


@torch.no_grad()
def load_safari_state_dict(layer: Hyena, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
    """Load the weights of one safari `HyenaOperator` into `layer`, in place.

    Args:
        layer: built with the sizes of the original, and with Hyena filters.
        state_dict: safari's tensors, e.g. of a whole model.
        prefix: of this operator in `state_dict`, e.g. `"backbone.layers.3.mixer."`.

    Raises:
        ValueError: the layer's filters are of another kind, or a tensor is missing, of another shape or left over.
    """
    O, reader = len(layer.long_filters), Reader(state_dict, prefix)
    for name in ("in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias"):
        reader.copy(layer.get_parameter(name), name)
    reader.copy(layer.short_weight, "short_filter.weight", lambda w: w[:, 0].flip(-1))
    reader.copy(layer.short_bias, "short_filter.bias")
    reader.copy(layer.skip, "filter_fn.bias", lambda bias: bias.view(-1, O).mT)
    for o, ours in enumerate(layer.long_filters):
        if not isinstance(ours, HyenaFilter):
            raise ValueError(f"long_filters.{o} is a {type(ours).__name__}, not a HyenaFilter")
        reader.copy(ours.z, "filter_fn.pos_emb.z", lambda z: z[0])
        reader.copy(ours.freq, "filter_fn.implicit_filter.1.freq", lambda freq: freq[0])
        reader.copy(ours.deltas, "filter_fn.modulation.deltas", lambda deltas, o=o: deltas.flatten()[o::O])  # type: ignore[misc]
        for i, linear in enumerate(ours.mlp[:-1]):
            for name in ("weight", "bias"):
                reader.copy(linear.get_parameter(name), f"filter_fn.implicit_filter.{2 * i}.{name}")
        last = f"filter_fn.implicit_filter.{2 * len(ours.mlp) - 2}.weight"
        reader.copy(ours.mlp[-1].get_parameter("weight"), last, lambda weight, o=o: weight[o::O])  # type: ignore[misc]
        activations = [f"filter_fn.implicit_filter.{2 * i + 1}.freq" for i in range(1, len(ours.mlp) - 1)]
    reader.finish(["filter_fn.pos_emb.t", *activations])
