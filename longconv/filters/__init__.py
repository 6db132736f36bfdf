"""Parameterisations of long filters: modules whose `forward(L)` gives a kernel (channels, L), tap s at lag s.

A filter that can also run as a recurrence has `prepare_step`, `init_state`, `step`, `scan` and `final_state` as well
(`RecurrentFilter` documents them). Filters know nothing of layers: skip weights, gates and masks are the layer's.
`convert.py` fills filters from published weights, `plot.py` draws them.
"""

import inspect
from typing import Any

from torch import nn

from .base import Filter, filter_dtype
from .dcls import DCLSFilter
from .ema import DampedEMA
from .freeform import FreeFormFilter
from .hyena import HyenaFilter
from .modal import ModalFilter
from .plot import plot_filter
from .recurrent import Modes, PackedModes, RecurrentFilter, set_state_dtype
from .rtf import RTFFilter
from .s4d import S4DFilter, S4DReadout
from .sgconv import SGConvFilter
from .smpconv import SMPConvFilter

#: Every filter a layer's `filter=` can name.
FILTERS: dict[str, type[nn.Module]] = {
    "dcls": DCLSFilter,
    "ema": DampedEMA,
    "freeform": FreeFormFilter,
    "hyena": HyenaFilter,
    "modal": ModalFilter,
    "rtf": RTFFilter,
    "s4d": S4DFilter,
    "sgconv": SGConvFilter,
    "smpconv": SMPConvFilter,
}


def build_filter(spec: str | dict[str, Any], channels: int, max_length: int | None = None) -> nn.Module:
    """Build a filter by name.

    Args:
        spec: a name in `FILTERS`, or `{"name": ..., **options}` with options of that class.
        channels: D.
        max_length: the most taps there will be, for filters that have a limit.

    Raises:
        ValueError: unknown name or option, an option missing, or a filter that needs `max_length` without one.
    """
    options: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if name not in FILTERS:
        raise ValueError(f"unknown filter {name!r}; known: {', '.join(sorted(FILTERS))}")
    accepted = inspect.signature(FILTERS[name]).parameters
    if unknown := options.keys() - accepted.keys():
        raise ValueError(f"filter {name!r} has no option {', '.join(sorted(unknown))}; it has: {', '.join(accepted)}")
    if "max_length" in accepted:
        options.setdefault("max_length", max_length)
        if options["max_length"] is None:
            raise ValueError(f"filter {name!r} needs max_length")
    if "dtype" in accepted:
        options.setdefault("dtype", filter_dtype())
    needed = [o for o, parameter in accepted.items() if parameter.default is parameter.empty and o != "channels"]
    if missing := [o for o in needed if o not in options]:
        raise ValueError(f"filter {name!r} needs {', '.join(missing)}")
    return FILTERS[name](channels, **options)


__all__ = [
    "FILTERS",
    "DCLSFilter",
    "DampedEMA",
    "Filter",
    "FreeFormFilter",
    "HyenaFilter",
    "ModalFilter",
    "Modes",
    "PackedModes",
    "RTFFilter",
    "RecurrentFilter",
    "S4DFilter",
    "S4DReadout",
    "SGConvFilter",
    "SMPConvFilter",
    "build_filter",
    "plot_filter",
    "set_state_dtype",
]
