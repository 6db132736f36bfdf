"""Weights of published implementations into our layers, in place: one file for each codebase, with its table of names.

Every function takes the layer, a state dict (of a whole model, if one likes) and the prefix of the module in it, and
raises ValueError if a tensor is missing, has another shape, or has no place in the layer.
"""

from .fairseq import load_fairseq_conv_state_dict
from .global_conv import load_long_conv_state_dict, load_s4d_state_dict, load_sgconv_state_dict
from .hyena_nd import load_hyena_nd_state_dict
from .mega import load_mega_state_dict
from .micro_tcn import load_micro_tcn_state_dict
from .multires import load_multires_state_dict
from .safari import hyena_prefixes, load_multi_hyena_state_dict, load_safari_state_dict
from .tcn import load_tcn_state_dict

__all__ = [
    "hyena_prefixes",
    "load_fairseq_conv_state_dict",
    "load_hyena_nd_state_dict",
    "load_long_conv_state_dict",
    "load_mega_state_dict",
    "load_micro_tcn_state_dict",
    "load_multi_hyena_state_dict",
    "load_multires_state_dict",
    "load_s4d_state_dict",
    "load_safari_state_dict",
    "load_sgconv_state_dict",
    "load_tcn_state_dict",
]
