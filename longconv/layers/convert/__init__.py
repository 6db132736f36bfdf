"""Weights of published implementations into our layers, in place: one file for each codebase, with its table of names.

Every function takes the layer, a state dict (of a whole model, if one likes) and the prefix of the module in it, and
raises ValueError if a tensor is missing, has another shape, or has no place in the layer.
"""

from .fairseq import load_fairseq_conv_state_dict
from .mega import load_mega_state_dict
from .safari import load_safari_state_dict

__all__ = ["load_fairseq_conv_state_dict", "load_mega_state_dict", "load_safari_state_dict"]
