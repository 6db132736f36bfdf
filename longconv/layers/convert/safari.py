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

HyenaDNA's checkpoints (HazyResearch/hyena-dna, and LongSafari/hyenadna-* on the Hugging Face hub) are of this operator
and have these names, behind `hyena.backbone.layers.N.mixer.` or, where activations were checkpointed,
`...mixer.layer.`: `hyena_prefixes` finds them. Their standalone code has `shift = 0.05`.

Settings that no tensor tells must agree: `modulate`, `shift`, for order 2 `normalized`, and safari's `num_heads`,
`num_blocks`, `inner_factor`, `activation` and `outer_mixing`, of which only the defaults are representable.

Operators with heads (`MultiHeadHyenaOperator` of athms/mad-lab, with `proj_groups = 1`) go into our `MultiHyena`:

    mad-lab                                       ours
    in_proj, short_filter: outputs x1, x2, v      q, v, k: the last two change places
    num_heads (the channels of a head)            D / num_heads heads
    long_conv.bias (M)                            skip
    long_conv.filter.*                            long_filters.0, as above
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from longconv.filters import HyenaFilter

from ..hyena import Hyena
from ..multi_hyena import MultiHyena
from ._mapping import Reader


@torch.no_grad()
def load_safari_state_dict(layer: Hyena, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
    """Load the weights of one safari or HyenaDNA `HyenaOperator` into `layer`, in place.

    Args:
        layer: built with the sizes of the original, and with Hyena filters.
        state_dict: safari's tensors, e.g. of a whole model.
        prefix: of this operator in `state_dict`, e.g. `"backbone.layers.3.mixer."`.

    Raises:
        ValueError: the layer is bidirectional or its filters are of another kind, or a tensor is missing, of another
            shape or left over.
    """
    if not layer.causal:
        raise ValueError("the layer must be causal, as the published one is")
    O, reader = len(layer.long_filters), Reader(state_dict, prefix)
    for name in ("in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias"):
        reader.copy(layer.get_parameter(name), name)
    reader.copy(layer.short_weight, "short_filter.weight", lambda w: w[:, 0].flip(-1))
    reader.copy(layer.short_bias, "short_filter.bias")
    reader.copy(layer.skip, "filter_fn.bias", lambda bias: bias.view(-1, O).mT)
    for o, ours in enumerate(layer.long_filters):
        ignored = _copy_filter(reader, "filter_fn.", ours, slice(o, None, O))
    reader.finish(ignored)


@torch.no_grad()
def load_multi_hyena_state_dict(layer: MultiHyena, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
    """Load the weights of one mad-lab `MultiHeadHyenaOperator` into `layer`, in place.

    Args:
        layer: built with the sizes of the original, `num_heads` their D / num_heads, and a Hyena filter.
        state_dict: their tensors, e.g. of a whole model.
        prefix: of this operator in `state_dict`.

    Raises:
        ValueError: the layer is bidirectional or its filter is of another kind, or a tensor is missing, of another
            shape or left over.
    """
    if not layer.causal:
        raise ValueError("the layer must be causal, as the published one is")
    reader = Reader(state_dict, prefix)

    def reorder(outputs: Tensor) -> Tensor:
        q, v, k = outputs.chunk(3)
        return torch.cat([q, k, v])

    for name in ("in_proj.weight", "in_proj.bias"):
        reader.copy(layer.get_parameter(name), name, reorder)
    for name in ("out_proj.weight", "out_proj.bias"):
        reader.copy(layer.get_parameter(name), name)
    reader.copy(layer.short_weight, "short_filter.weight", lambda w: reorder(w[:, 0].flip(-1)))
    reader.copy(layer.short_bias, "short_filter.bias", reorder)
    reader.copy(layer.skip, "long_conv.bias")
    reader.finish(_copy_filter(reader, "long_conv.filter.", layer.long_filters[0], slice(None)))


def hyena_prefixes(state_dict: Mapping[str, Tensor]) -> list[str]:
    """The prefixes of all Hyena operators of a model in safari's naming, in the order of its layers.

    Raises:
        ValueError: there is none.
    """
    end = "filter_fn.pos_emb.z"
    found = [name.removesuffix(end) for name in state_dict if name.endswith(end)]
    if not found:
        raise ValueError(f"the state dict has no Hyena operator: no name ends in {end}")
    return sorted(found, key=lambda prefix: [int(part) for part in prefix.split(".") if part.isdigit()])


def _copy_filter(reader: Reader, at: str, ours: nn.Module, rows: slice) -> list[str]:
    """Copy the channels `rows` of a Hyena filter; return the names that say nothing more."""
    if not isinstance(ours, HyenaFilter):
        raise ValueError(f"the layer's filter is a {type(ours).__name__}, not a HyenaFilter")
    reader.copy(ours.z, at + "pos_emb.z", lambda z: z[0])
    reader.copy(ours.freq, at + "implicit_filter.1.freq", lambda freq: freq[0])
    reader.copy(ours.deltas, at + "modulation.deltas", lambda deltas: deltas.flatten()[rows])
    for i, linear in enumerate(ours.mlp[:-1]):
        for name in ("weight", "bias"):
            reader.copy(linear.get_parameter(name), f"{at}implicit_filter.{2 * i}.{name}")
    last = f"{at}implicit_filter.{2 * len(ours.mlp) - 2}.weight"
    reader.copy(ours.mlp[-1].get_parameter("weight"), last, lambda weight: weight[rows])
    activations = [f"{at}implicit_filter.{2 * i + 1}.freq" for i in range(1, len(ours.mlp) - 1)]
    return [at + "pos_emb.t", *activations]
