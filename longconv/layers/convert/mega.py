"""Weights of MEGA layers into our `Mega`: of the authors' code, and of the `MegaModel` of transformers 4.

The prefix is that of a `MovingAverageGatedAttention`, e.g. `"decoder.layers.0.mega_layer."`, or in transformers of a
`MegaMovingAverageGatedAttention`, e.g. `"layers.0.mega_layer."`. Of 2D rows the first D look back, the last D ahead.

    facebookresearch/mega        transformers                           ours
    v_proj, h_proj, mx_proj      the same                               the same; mx_proj gives u, z, r, W_h mx in turn
    gamma, beta (2, Z)           qk_weight, qk_bias                     qk_weight, qk_bias
    move.delta (D or 2D, N, 1)   ema_gate.damping_factor                long_filters.i.delta (D, N)
    move.alpha                   ema_gate.decay_factor                  long_filters.i.alpha
    move.beta                    ema_gate.ema_expansion_matrix          long_filters.i.beta
    move.gamma (D or 2D, N)      ema_gate.kernel_projection_matrix      long_filters.i.gamma
    move.omega (D)               ema_gate.residual_weight               omega
    rel_pos_bias.rel_pos_bias    the same, the first 2C - 1 in chunks   attention.bias.weight
    rel_pos_bias.alpha, .beta    .alpha, .b_param (1, Z)                attention.bias.alpha, .beta (Z,)
    norm.norm.weight, .bias      the same                               norm.weight, .bias
    norm.norm.scalar             the same                               norm.weight, of `"scalenorm"`
    norm.norm.running_mean, ...  the same                               the same, of `"batchnorm"`

The published layer is `x + layer(x)`, with the norm that is inside the layer. A layer built with `norm=None` leaves the
norm's tensors to its caller: so may a model whose norm comes behind the layer (`prenorm=False`), which is then
`norm(x + layer(x))`.

Settings that no tensor tells must agree: the chunk size, the attention's activation, and the truncation. `"laplace"`
has the paper's constants, sqrt(1/2) and sqrt(1 / (4 pi)), which the codes round to six digits (a difference of 1e-6).
transformers' `rmsnorm` does not normalise, by mistake; ours does.
"""

from collections.abc import Mapping

from torch import Tensor

from longconv.filters import DampedEMA

from ..chunked_attention import SimpleBias
from ..mega import Mega, TruncatedFilter
from ._mapping import Reader

_AUTHORS = {
    "delta": "move.delta",
    "alpha": "move.alpha",
    "beta": "move.beta",
    "gamma": "move.gamma",
    "omega": "move.omega",
    "qk_weight": "gamma",
    "qk_bias": "beta",
    "bias.beta": "rel_pos_bias.beta",
}
_TRANSFORMERS = {
    "delta": "ema_gate.damping_factor",
    "alpha": "ema_gate.decay_factor",
    "beta": "ema_gate.ema_expansion_matrix",
    "gamma": "ema_gate.kernel_projection_matrix",
    "omega": "ema_gate.residual_weight",
    "qk_weight": "qk_weight",
    "qk_bias": "qk_bias",
    "bias.beta": "rel_pos_bias.b_param",
}


def load_mega_state_dict(layer: Mega, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
    """Load the weights of one MEGA layer into `layer`, in place.

    Args:
        layer: built with the sizes and options of the original.
        state_dict: the original's tensors, e.g. of a whole model.
        prefix: see the module.

    Raises:
        ValueError: the layer's filters are no moving averages, or a tensor is missing, has another shape, or has no
            place in `layer`.
    """
    reader = Reader(state_dict, prefix)
    names = _TRANSFORMERS if _TRANSFORMERS["delta"] in reader else _AUTHORS
    filters = [f.filter if isinstance(f, TruncatedFilter) else f for f in layer.long_filters]
    D = layer.channels
    for i, filter in enumerate(filters):
        if not isinstance(filter, DampedEMA):
            raise ValueError(f"long_filters.{i} is a {type(filter).__name__}, not a DampedEMA")
        for name in ("delta", "alpha", "beta", "gamma"):
            shape = (len(filters) * D, filter.order, 1)[: 2 if name == "gamma" else 3]
            rows = reader.get(names[name], shape).reshape(len(filters), D, filter.order)
            reader.copy(filter.get_parameter(name), names[name], lambda _, rows=rows[i]: rows)  # type: ignore[misc]
    reader.copy(layer.omega, names["omega"])
    reader.copy(layer.qk_weight, names["qk_weight"])
    reader.copy(layer.qk_bias, names["qk_bias"])
    for linear in ("v_proj", "mx_proj", "h_proj"):
        reader.copy(layer.get_parameter(f"{linear}.weight"), f"{linear}.weight")
        reader.copy(layer.get_parameter(f"{linear}.bias"), f"{linear}.bias")
    bias = layer.attention.bias
    if isinstance(bias, SimpleBias):
        count = bias.weight.shape[0]  # transformers makes it for all positions, also in chunks
        cut = names is _TRANSFORMERS and layer.attention.chunk_size is not None
        reader.copy(bias.weight, "rel_pos_bias.rel_pos_bias", lambda w: w[:count] if cut else w)
    else:
        reader.copy(bias.alpha, "rel_pos_bias.alpha", lambda w: w.flatten())
        reader.copy(bias.beta, names["bias.beta"], lambda w: w.flatten())
    ignored = ["rel_pos_bias._float_tensor"]
    if layer.norm is None:
        ignored.append("norm.")
    else:
        for name, parameter in layer.norm.named_parameters():
            reader.copy(parameter, "norm.norm.scalar" if parameter.numel() == 1 < D else f"norm.norm.{name}")
        for name, buffer in layer.norm.named_buffers():
            reader.copy(buffer, f"norm.norm.{name}")
    reader.finish(ignored)
