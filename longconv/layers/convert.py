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

from .hyena import Hyena


@torch.no_grad()
def load_safari_state_dict(layer: Hyena, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
    """Load the weights of one safari `HyenaOperator` into `layer`, in place.

    Args:
        layer: built with the sizes of the original, and with Hyena filters.
        state_dict: safari's tensors, e.g. of a whole model.
        prefix: of this operator in `state_dict`, e.g. `"backbone.layers.3.mixer."`.

    Raises:
        ValueError: the layer's filters are of another kind, or a tensor is missing or of another shape.
    """
    O = len(layer.long_filters)

    def copy(target: Tensor, name: str, source: Tensor) -> None:
        if source.shape != target.shape:
            raise ValueError(f"{prefix}{name} gives shape {tuple(source.shape)}, the layer has {tuple(target.shape)}")
        target.copy_(source)

    def get(name: str) -> Tensor:
        if prefix + name not in state_dict:
            raise ValueError(f"the state dict has no {prefix}{name}")
        return state_dict[prefix + name]

    for name in ("in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias"):
        copy(layer.get_parameter(name), name, get(name))
    copy(layer.short_weight, "short_filter.weight", get("short_filter.weight")[:, 0].flip(-1))
    copy(layer.short_bias, "short_filter.bias", get("short_filter.bias"))
    copy(layer.skip, "filter_fn.bias", get("filter_fn.bias").view(-1, O).mT)
    for o, ours in enumerate(layer.long_filters):
        if not isinstance(ours, HyenaFilter):
            raise ValueError(f"long_filters.{o} is a {type(ours).__name__}, not a HyenaFilter")
        copy(ours.z, "filter_fn.pos_emb.z", get("filter_fn.pos_emb.z")[0])
        copy(ours.freq, "filter_fn.implicit_filter.1.freq", get("filter_fn.implicit_filter.1.freq")[0])
        copy(ours.deltas, "filter_fn.modulation.deltas", get("filter_fn.modulation.deltas").flatten()[o::O])
        for i, linear in enumerate(ours.mlp[:-1]):
            for name in ("weight", "bias"):
                theirs = f"filter_fn.implicit_filter.{2 * i}.{name}"
                copy(linear.get_parameter(name), theirs, get(theirs))
        last = f"filter_fn.implicit_filter.{2 * len(ours.mlp) - 2}.weight"
        copy(ours.mlp[-1].get_parameter("weight"), last, get(last)[o::O])
