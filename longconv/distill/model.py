"""`distill`: a model whose long filters are replaced by modal recurrences that compute the same convolutions."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from longconv.filters import ModalFilter

from .exact import keep
from .fit import METHODS as _METHODS
from .fit import distill_filter
from .fit_report import FitReport
from .report import DistillReport, LayerFit

#: What turns a bank of taps (D, L) into a filter and a report, given the keyword arguments order, tol and max_order.
Method = Callable[..., tuple[ModalFilter, FitReport]]
METHODS: dict[str, Method] = {name: functools.partial(distill_filter, method=name) for name in _METHODS}


@torch.no_grad()
def distill(
    model: Any,
    *,
    order: int | None = None,
    tol: float | None = None,
    max_order: int = 64,
    length: int | None = None,
    method: str = "hankel",
    progress: Callable[[str], None] | None = None,
) -> tuple[Any, DistillReport]:
    """Turn every long filter of a model into a modal recurrence.

    The result is a model of the same class with the same weights otherwise. It still runs in parallel (the modal filter
    gives a kernel, for the FFT convolution), and it decodes with a state whose size does not depend on the context.
    Its config says so (`layer_options`), so `save_pretrained` and `from_pretrained` work as ever.

    Layers whose filters are recurrences already (S4D, EMA, RTF, modal) of no more states than `order` or `max_order`
    keep them, whatever the method: without any error, and `LayerFit.exact` in the report. To make those smaller, give a
    smaller limit.

    Args:
        model: a `longconv.models` model with at least one long filter; left as it is.
        order: real states per filter (an upper limit; see `hankel_realisation`). Or else
        tol: relative L2 error to reach for each filter, with the smallest order found to reach it, up to
        max_order: the limit with `tol`.
        length: taps to fit; default each layer's `max_length`.
        method: one of `METHODS`.
        progress: called with a line before each layer.

    Returns:
        The distilled model (in eval mode, on the same device) and the report.

    Raises:
        ValueError: the model has no long filter, not exactly one of order and tol is given, one of
            them or max_order is out of range, an unknown method, or a length that is not in 1..max_length.
    """
    if method not in METHODS:
        raise ValueError(f"unknown distillation method {method!r}; known: {', '.join(sorted(METHODS))}")
    if (order is None) == (tol is None):
        raise ValueError("give exactly one of order and tol")
    if (order is not None and order < 0) or (tol is not None and not tol >= 0):
        raise ValueError(f"order and tol must not be negative, got order={order}, tol={tol}")
    if max_order < 1:
        raise ValueError(f"max_order must be at least 1, got {max_order}")
    filters: dict[int, list[ModalFilter]] = {}
    fits: list[LayerFit] = []
    for index, mixer, taps in long_filter_layers(model, length):
        limit, stages = max_order if order is None else order, list(mixer.long_filters)
        kernels = [filter(taps) for filter in stages]
        # One option holds for all filters of a layer, so all of them are kept or none.
        kept = [keep(filter, kernel, limit) for filter, kernel in zip(stages, kernels, strict=True)]
        if progress is not None:
            doing = "kept" if None not in kept else "to fit"
            progress(f"layer {index}: {sum(len(kernel) for kernel in kernels)} filters of {taps} taps, {doing}")
        for stage, (kernel, report) in enumerate(zip(kernels, kept, strict=True)):
            if None not in kept and report is not None:
                fits.append(LayerFit(index, stage, report, kernel.cpu(), kernel.cpu(), exact=True))
                continue
            modal, report = METHODS[method](kernel, order=order, tol=tol, max_order=max_order)
            filters.setdefault(index, []).append(modal)
            fits.append(LayerFit(index, stage, report, kernel.cpu(), modal(taps).cpu()))

    return replace_filters(model, filters), DistillReport(fits)


def long_filter_layers(model: Any, length: int | None) -> list[tuple[int, Any, int]]:
    """The layers with long filters: index, mixer, and how many taps to fit, `length` or all of them.

    Raises:
        ValueError: there are none, or a length that is not in 1..max_length.
    """
    layers = [(i, block.mixer) for i, block in enumerate(model.base_model.layers) if len(block.mixer.long_filters)]
    if not layers:
        raise ValueError(f"the model has no long filter to distil: its mixers are {model.config.mixers!r}")
    found = []
    for index, mixer in layers:
        taps = length if length is not None else mixer.max_length
        if taps is None:
            raise ValueError(f"length: layer {index} has no max_length, so say how many taps to fit")
        if taps < 1 or (mixer.max_length is not None and taps > mixer.max_length):
            raise ValueError(f"length must be in 1..max_length = {mixer.max_length}, got {taps}")
        found.append((index, mixer, taps))
    return found


@torch.no_grad()
def replace_filters(model: Any, filters: dict[int, list[ModalFilter]]) -> Any:
    """A model like `model`, with modal filters in place of the long filters of some layers.

    Args:
        model: a `longconv.models` model; left as it is.
        filters: for each of those layers, as many as it has long filters. They become parameters of the result; those
            of fewer modes than the layer's widest are padded (by copies).

    Returns:
        A model of the same class, in eval mode, on the same device. Its config names the modal filters.
    """
    filters = dict(filters)
    config = copy.deepcopy(model.config)
    config.layer_options = dict(config.layer_options or {})
    for index, modals in filters.items():
        # The widest stage sets the layer's number of modes, the others are padded.
        modes = max(modal.order for modal in modals)
        filters[index] = [_widen(modal, modes) for modal in modals]
        spec = {"name": "modal", "order": modes}
        config.layer_options[str(index)] = {**config.layer_options.get(str(index), {}), "filter": spec}

    student = type(model)(config)
    for index, modals in filters.items():
        student.base_model.layers[index].mixer.long_filters = nn.ModuleList(modals)
    student.to(device=model.device, dtype=model.dtype)
    new = tuple(f"layers.{index}.mixer.long_filters." for index in filters)
    distilled = {name: value for name, value in student.state_dict().items() if any(part in name for part in new)}
    weights = {name: value for name, value in model.state_dict().items() if not any(part in name for part in new)}
    student.load_state_dict({**weights, **distilled})  # strict: nothing of either model is left out
    student.mark_parameters()
    if model.can_generate():
        student.generation_config = copy.deepcopy(model.generation_config)
    return student.eval()


def _widen(modal: ModalFilter, modes: int) -> ModalFilter:
    """The same filter with poles and residues of zero added, up to `modes`."""

    def pad(x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, modes - x.shape[-1]))

    if modal.order == modes:
        return modal
    dtype = modal.log_dt.dtype
    return ModalFilter.from_modes(pad(modal.poles), pad(modal.residues), modal.passthrough.data, dtype=dtype)
