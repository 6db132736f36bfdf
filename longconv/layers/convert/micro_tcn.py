"""Weights of the micro-TCN authors' code (csteinmetz1/micro-tcn, `microtcn/tcn.py`, class `TCNModel`) into `MicroTCN`.

    theirs                                       ours
    gen.{0,2,4}.weight, .bias                    stack.condition, the same
    blocks.n.conv1.weight (O, I, K)              stack.blocks.n.conv.weight, the same
    blocks.n.film.bn.running_mean, ...           stack.blocks.n.norm, the same
    blocks.n.film.adaptor.weight, .bias          stack.blocks.n.adaptor, the same
    blocks.n.bn.* (if nparams is 0)              stack.blocks.n.norm, the same
    blocks.n.relu.weight (O)                     stack.blocks.n.slope
    blocks.n.res.weight (O, 1, 1)                stack.blocks.n.residual (O)
    output.weight (C, O, 1), .bias               output, without the last dimension
    blocks.n.conv1b.* (if grouped), l1.*, stft.* not used: by no forward pass, and by the loss

The tensors are the `state_dict` entry of a Lightning checkpoint. Settings that no tensor tells must agree:
`dilation_growth`, `stack_size`, `causal`; `channel_growth` is representable as 1 only.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..micro_tcn import MicroTCN, MicroTCNLayer
from ._mapping import Reader


@torch.no_grad()
def load_micro_tcn_state_dict(
    model: MicroTCN | MicroTCNLayer, state_dict: Mapping[str, Tensor], prefix: str = "", *, published_lag: bool = False
) -> None:
    """Load the weights of one `TCNModel` into `model`, in place; into a layer, those of its blocks.

    Args:
        model: built with the sizes of the original.
        state_dict: their tensors.
        prefix: of the model in `state_dict`.
        published_lag: make the residuals of a causal model late by one sample, as theirs are, so that it gives what
            theirs gives. This is a setting, not a tensor: a `MicroTCN` that is to load the result from a checkpoint of
            its own is built with `residual_lag=1`.

    Raises:
        ValueError: a tensor is missing, of another shape or left over, or `published_lag` for a model that is not
            causal or has one tap.
    """
    if published_lag:
        if not model.causal or model.stack.reach == 0:
            raise ValueError("published_lag is of causal models with more than one tap: others have none")
        model.stack.set_residual_lag(1)
    reader = Reader(state_dict, prefix)
    ignored = ["l1.", "stft."]
    if model.stack.condition is not None:
        for name, parameter in model.stack.condition.named_parameters():
            reader.copy(parameter, f"gen.{name}")
    for n, block in enumerate(model.stack.blocks):
        theirs = f"blocks.{n}."
        for ours, name in (("conv.weight", "conv1.weight"), ("slope", "relu.weight")):
            reader.copy(block.get_parameter(ours), theirs + name)
        reader.copy(block.get_parameter("residual"), theirs + "res.weight", lambda weight: weight[:, 0, 0])
        norm = "bn." if model.stack.condition is None else "film.bn."
        for name, tensor in block.get_submodule("norm").state_dict().items():
            reader.copy(tensor, theirs + norm + name)
        if model.stack.condition is not None:
            for name, parameter in block.get_submodule("adaptor").named_parameters():
                reader.copy(parameter, f"{theirs}film.adaptor.{name}")
        ignored.append(theirs + "conv1b.")
    if isinstance(model, MicroTCN):
        reader.copy(model.output.weight, "output.weight", lambda weight: weight[..., 0])
        reader.copy(model.output.bias, "output.bias")
    else:
        ignored.append("output.")
    reader.finish(ignored)
