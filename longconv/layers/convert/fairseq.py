"""Weights of fairseq's LightConv models (`fairseq/models/lightconv.py`) into our `LightConv` and `DynamicConv`.

The prefix is that of an encoder or decoder layer, e.g. `"decoder.layers.0."`.

    fairseq                                       ours
    linear1, linear2 .weight/.bias                in_proj, out_proj: the GLU's halves are in the same order
    conv.weight (H, 1, K) or (H, K)               weight (H, K) of LightConv, reversed: fairseq stores the oldest first
    conv.bias (C)                                 conv_bias of LightConv
    conv.weight_linear.weight (H K, C)            weight_linear.weight of DynamicConv, the K rows of each head reversed
    conv.weight_linear.bias (H K)                 weight_linear.bias of DynamicConv, likewise
    conv.conv_bias (C)                            conv_bias of DynamicConv

Norms, the attention over the encoder and the feed-forward part of the layer are not the mixer's, and are not read.
Settings that no tensor tells must agree: `weight_softmax`, `renorm_padding`, and which side is padded. A decoder layer
is causal; an encoder layer is `bidirectional`, and has an odd kernel size (fairseq's padding of even ones fails).
Not representable: DynamicConv's `in_proj=True` and `query_size`, which fairseq's own models do not use.
"""

from collections.abc import Mapping

from torch import Tensor

from ..dynamic_conv import DynamicConv
from ..light_conv import LightConv
from ._mapping import Reader

# The parts of a fairseq layer that are not its convolution.
_REST = (
    "layer_norms.",
    "conv_layer_norm.",
    "encoder_attn.",
    "encoder_attn_layer_norm.",
    "fc1.",
    "fc2.",
    "final_layer_norm.",
)


def load_fairseq_conv_state_dict(
    layer: LightConv | DynamicConv, state_dict: Mapping[str, Tensor], prefix: str = ""
) -> None:
    """Load the convolution of one layer of a fairseq LightConv or DynamicConv model into `layer`, in place.

    Args:
        layer: built with the sizes and options of the original.
        state_dict: fairseq's tensors, e.g. of a whole model.
        prefix: see the module.

    Raises:
        ValueError: a tensor is missing, has another shape, or has no place in `layer`.
    """
    H, K = layer.num_heads, layer.kernel_size
    reader = Reader(state_dict, prefix)
    for theirs, ours in (("linear1", layer.in_proj), ("linear2", layer.out_proj)):
        reader.copy(ours.weight, f"{theirs}.weight")
        reader.copy(ours.bias, f"{theirs}.bias")
    if isinstance(layer, LightConv):
        reader.copy(layer.weight, "conv.weight", lambda w: (w[:, 0] if w.ndim == 3 else w).flip(-1))
    else:
        reader.get("conv.weight_linear.weight", (H * K, layer.conv_channels))  # before it is taken apart
        for name, parameter in layer.weight_linear.named_parameters():
            reader.copy(parameter, f"conv.weight_linear.{name}", lambda w: w.unflatten(0, (H, K)).flip(1).flatten(0, 1))
    if layer.conv_bias is not None:
        reader.copy(layer.conv_bias, "conv.bias" if isinstance(layer, LightConv) else "conv.conv_bias")
    reader.finish(_REST)
