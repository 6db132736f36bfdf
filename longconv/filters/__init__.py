"""Parameterisations of long filters: modules whose `forward(L)` gives a kernel (channels, L), tap s at lag s.

A filter that can also run as a recurrence has `prepare_step`, `init_state`, `step`, `scan` and `final_state` as well
(`ModalFilter` documents them). Filters know nothing of layers: skip weights, gates and masks are the layer's.
"""

import inspect
from typing import Any

from torch import nn

from .base import Filter, filter_dtype
from .hyena import HyenaFilter
from .modal import ModalFilter

#: Every filter a layer's `filter=` can name.
FILTERS: dict[str, type[nn.Module]] = {"hyena": HyenaFilter, "modal": ModalFilter}


def build_filter(spec: str | dict[str, Any], channels: int, max_length: int | None = None) -> nn.Module:
    """Build a filter by name.

    Args:
        spec: a name in `FILTERS`, or `{"name": ..., **options}` with options of that class.
        channels: D.
        max_length: the most taps there will be, for filters that have a limit.

    Raises:
        ValueError: unknown name or option, or a filter that needs `max_length` without one.
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
    return FILTERS[name](channels, **options)


__all__ = ["FILTERS", "Filter", "HyenaFilter", "ModalFilter", "build_filter"]
