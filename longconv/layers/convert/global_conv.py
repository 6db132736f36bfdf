"""Weights of layers around one long filter, from their authors' code, into ours.

    theirs                                                          ours
    state-spaces/s4, `models/s4/s4d.py`, class `S4D`                S4D
      D (H)                                                         skip
      kernel.log_dt, .C, .log_A_real, .A_imag                       long_filters.0, see `filters.convert.load_s4d`
      output_linear.0.weight (2H, H, 1), .bias                      out_proj: a Conv1d of one tap
    ctlllll/SGConv, class `GConv`                                   SGConv
      D (1, H)                                                      skip
      kernel_list.i (1 or 2, H, d), kernel_norm, multiplier, ...    long_filters, see `filters.convert.load_sgconv`
      output_linear.weight, .bias, or output_linear.0.* with GLU    out_proj
    HazyResearch/safari, class `LongConv`                           GlobalConv
      D (1, H)                                                      skip
      kernel.kernel (1 or 2, H, L)                                  long_filters, see `filters.convert.load_freeform`
      output_linear.weight, .bias, or output_linear.0.* with GLU    out_proj

Of two kernels, the second has the taps at lags -1, -2, ... in all of them, as in ours. Settings that no tensor tells
(activation, dropout, mode of the kernel) must agree. Several kernels for a channel (`channels > 1`), batch or weight
norms are not representable.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from longconv.filters.convert import load_freeform, load_s4d, load_sgconv

from ..global_conv import GlobalConv
from ..s4d import S4D
from ..sgconv import SGConv
from ._mapping import Reader


def load_s4d_state_dict(layer: S4D, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
    """Load the weights of one `S4D` of state-spaces/s4 into `layer`, in place.

    Args:
        layer: causal, with an S4D filter of their `state_size` and output `"glu"`.
        state_dict: their tensors, e.g. of a whole model.
        prefix: of this layer in `state_dict`, e.g. `"s4_layers.2."`.

    Raises:
        ValueError: a tensor is missing, of another shape or left over.
        TypeError: the layer's filter is of another kind.
    """
    names = ("log_dt", "C", "log_A_real", "A_imag")
    _load(layer, state_dict, prefix, load_s4d, "kernel.", [f"kernel.{name}" for name in names])


def load_sgconv_state_dict(layer: SGConv, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
    """Load the weights of one `GConv` of the SGConv authors into `layer`, in place.

    Args:
        layer: with SGConv filters made with `filters.convert.sgconv_options(mode)` and their `kernel_dim` and so on,
            and output `"glu"` for their `postact="glu"`.
        state_dict: their tensors, e.g. of a whole model.
        prefix: of this layer in `state_dict`.

    Raises:
        ValueError: a tensor is missing, of another shape or left over.
        TypeError: the layer's filter is of another kind.
    """
    names = ["kernel_list.", "kernel_norm", "kernel_norm_initialized", "multiplier", "decay"]
    _load(layer, state_dict, prefix, load_sgconv, "", names)


def load_long_conv_state_dict(layer: GlobalConv, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
    """Load the weights of one `LongConv` of safari into `layer`, in place.

    Args:
        layer: with free-form filters of their `l_max` taps, and their `lam` and smoothing.
        state_dict: their tensors, e.g. of a whole model.
        prefix: of this layer in `state_dict`.

    Raises:
        ValueError: a tensor is missing, of another shape or left over.
        TypeError: the layer's filter is of another kind.
    """
    _load(layer, state_dict, prefix, load_freeform, "kernel.", ["kernel."])


@torch.no_grad()
def _load(
    layer: GlobalConv,
    state_dict: Mapping[str, Tensor],
    prefix: str,
    load_filter: Callable[..., Any],
    at: str,
    of_the_filter: list[str],
) -> None:
    reader = Reader(state_dict, prefix)
    D = layer.channels
    if layer.skip is None or layer.bias is not None or layer.short_weight is not None:
        raise ValueError("the layer must have a skip weight, no bias and no short convolution")
    if load_filter is load_s4d:
        if not layer.causal:
            raise ValueError("the layer must be causal, as the published one is")
    else:
        kernels = reader.get("kernel.kernel" if load_filter is load_freeform else "kernel_list.0").shape[0]
        if kernels != len(layer.long_filters):
            raise ValueError(f"{prefix or 'the state dict'} has {kernels} kernels, the layer {len(layer.long_filters)}")
    for channel, filter in enumerate(layer.long_filters):
        options = {} if load_filter is load_s4d else {"channel": channel}
        load_filter(filter, state_dict, prefix + at, **options)
    reader.copy(layer.skip, "D", lambda d: d.reshape(-1) if d.dim() == 1 or d.shape[0] == 1 else d)
    if layer.out_proj is not None:
        stem = "output_linear.0." if layer.output == "glu" else "output_linear."
        reader.copy(layer.out_proj.weight, stem + "weight", lambda w: w.reshape(w.shape[0], D) if w.dim() == 3 else w)
        reader.copy(layer.out_proj.bias, stem + "bias")
    reader.finish(of_the_filter)
