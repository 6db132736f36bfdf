"""Weights of the MultiresConv authors' code (thjashin/multires-conv) into our `MultiresLayer`.

    theirs (`MultiresNet`, block i)               ours
    seq_layers.i.h0 (D, 1, K), .h1                h0 (D, K), taps reversed: Conv1d stores the oldest first; h1 likewise
    seq_layers.i.w (D, m + 1)                     w, the same
    mixing_layers.i.0.weight (2D, D, 1), .bias    out_proj, without the last dimension (`output="glu"`)
    norms.i, encoder, output_mapping              of the model around it, not read

Settings that no tensor tells must agree: `tree_select`, and with "uniform" the depth.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..multires import MultiresLayer
from ._mapping import Reader


@torch.no_grad()
def load_multires_state_dict(
    layer: MultiresLayer, state_dict: Mapping[str, Tensor], prefix: str = "", *, mixing_prefix: str | None = None
) -> None:
    """Load the weights of one of their `MultiresLayer`s into `layer`, in place.

    Args:
        layer: built with the sizes of the original.
        state_dict: their tensors, e.g. of a whole model.
        prefix: of the layer in `state_dict`, e.g. `"seq_layers.3."`.
        mixing_prefix: of the block's 1x1 convolution, e.g. `"mixing_layers.3."`, for a layer with `output="glu"`.

    Raises:
        ValueError: a tensor is missing, of another shape or left over, the layer is bidirectional, or there is a
            mixing_prefix and no "glu" or the other way round.
    """
    if not layer.causal:
        raise ValueError("the layer must be causal, as the published one is")
    if (mixing_prefix is None) != (layer.out_proj is None):
        kind = "none" if layer.out_proj is None else "glu"
        raise ValueError(f"mixing_prefix goes with output='glu'; got {mixing_prefix!r} and output={kind!r}")
    reader = Reader(state_dict, prefix)
    for name in ("h0", "h1"):
        reader.copy(layer.get_parameter(name), name, lambda h: h[:, 0].flip(-1))
    reader.copy(layer.w, "w")
    reader.finish()
    if layer.out_proj is not None and mixing_prefix is not None:
        mixing = Reader(state_dict, mixing_prefix)
        mixing.copy(layer.out_proj.weight, "0.weight", lambda weight: weight[..., 0])
        mixing.copy(layer.out_proj.bias, "0.bias")
        mixing.finish()
