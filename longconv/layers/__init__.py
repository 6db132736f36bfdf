"""Sequence mixers, channels last: `layer(x (B, L, D), mask=, state=, return_state=) -> y`, `init_state`, `step`.

One file each, all under the contract of `base.Mixer`; `long_conv.py` runs a long filter in parallel or as a stream, and
`convert/` loads published weights. A mixer is not a block: norms, MLPs and residuals are in `longconv.models`.
"""

import inspect
from collections.abc import Iterable
from typing import Any

from .attention import Attention
from .base import Mixer
from .convert import load_fairseq_conv_state_dict, load_safari_state_dict, load_tcn_state_dict
from .dynamic_conv import DynamicConv
from .global_conv import GlobalConv
from .hyena import Hyena
from .light_conv import LightConv
from .multi_hyena import MultiHyena
from .tcn import TCN

#: Every mixer that a model's pattern can name.
LAYERS: dict[str, type[Mixer]] = {
    "attention": Attention,
    "dynamicconv": DynamicConv,
    "global_conv": GlobalConv,
    "hyena": Hyena,
    "lightconv": LightConv,
    "multi_hyena": MultiHyena,
    "tcn": TCN,
}


def check_mixer(name: str, options: Iterable[str] = ()) -> None:
    """Raise ValueError, listing what there is, unless `name` is in `LAYERS` and its class takes these `options`."""
    if name not in LAYERS:
        raise ValueError(f"unknown mixer {name!r}; known: {', '.join(sorted(LAYERS))}")
    accepted = [option for option in inspect.signature(LAYERS[name]).parameters if option != "channels"]
    if unknown := [option for option in options if option not in accepted]:
        raise ValueError(f"mixer {name!r} has no option {', '.join(unknown)}; it has: {', '.join(accepted)}")


def build_layer(name: str, channels: int, max_length: int | None = None, **options: Any) -> Mixer:
    """Build a mixer by name; `options` are those of its class.

    Raises:
        ValueError: unknown name, or options that do not fit.
    """
    check_mixer(name, options)
    return LAYERS[name](channels, max_length, **options)


__all__ = [
    "LAYERS",
    "TCN",
    "Attention",
    "DynamicConv",
    "GlobalConv",
    "Hyena",
    "LightConv",
    "Mixer",
    "MultiHyena",
    "build_layer",
    "check_mixer",
    "load_fairseq_conv_state_dict",
    "load_safari_state_dict",
    "load_tcn_state_dict",
]
