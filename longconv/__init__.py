"""longconv: long-sequence convolutions for PyTorch.

    functional   operators, channels first (B, D, L): fft_conv, short_conv, modal_scan
    filters      parameterisations of long filters: forward(L) -> (D, L)
    layers       sequence mixers, channels last (B, L, D), that also run as a stream
    models       language models and classifiers for Hugging Face transformers   (needs longconv[train])
    distill      trained convolution -> recurrence with O(1) generation
    export       layers and models as ONNX files                             (needs longconv[onnx])

Importing this package needs torch, einops and numpy only; `models` is imported when asked for.
"""

from importlib.metadata import PackageNotFoundError, version

from . import filters, functional, layers
from .layers import Attention, Hyena

try:
    __version__ = version("longconv")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["Attention", "Hyena", "__version__", "filters", "functional", "layers"]
