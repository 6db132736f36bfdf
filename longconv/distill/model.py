"""`distill`: a model whose long filters are replaced by modal recurrences that compute the same convolutions."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longconv.filters import ModalFilter
from longconv.layers import Mixer

from .exact import keep
from .fitting.fit import check_method, check_order, distill_filter
from .fitting.report import FitReport
from .report import DistillReport, LayerFit


@torch.no_grad()
def distill(
    model: Any,
    *,
    order: int | Sequence[int | Tensor] | None = None,
    tol: float | None = None,
    max_order: int = 64,
    length: int | None = None,
    method: str = "best",
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> tuple[Any, DistillReport]:
    """Turn every long filter of a model into a modal recurrence.

    The result is a model of the same class with the same weights otherwise. It still runs in parallel (the modal filter
    gives a kernel, for the FFT convolution), and it decodes with a state whose size does not depend on the context.
    Its config says so (the options of each layer), so `save_pretrained` and `from_pretrained` work as ever.

    Layers whose filters are recurrences already (S4D, EMA, RTF, modal) of no more states than `order` or `max_order`
    keep them, whatever the method: without any error, and `LayerFit.exact` in the report. To make those smaller, give a
    smaller limit.

    Args:
        model: a `longconv.models` model with at least one long filter, or a model of transformers that
            `longconv.models.replace_mixers` gave one; left as it is.
        order: real states per filter (an upper limit; see `distill_filter`): one number, or a sequence with a number or
            (D,) integers for each bank of filters, in the order of the layers and of the stages in a layer. Or else
        tol: relative L2 error to reach for each filter, with the smallest order found to reach it, up to
        max_order: the limit with `tol`.
        length: taps to fit; default each layer's `max_length`.
        method: one of `METHODS`, see `distill_filter`.
        progress: called with a line now and then.
        options: of the method.

    Returns:
        The distilled model (in eval mode, on the same device) and the report.

    Raises:
        ValueError: the model has no long filter, or a two-sided one, not exactly one of order and tol is given, one of
            them or max_order is out of range or of the wrong shape, an unknown method or option, or a length that is
            not in 1..max_length.
    """
    check_method(method, options)
    layers = long_filter_layers(model, length)
    count = sum(len(mixer.long_filters) for _, mixer, _ in layers)
    orders = list(order) if isinstance(order, Sequence) else [order] * count
    if len(orders) != count:
        raise ValueError(f"order must have one entry for each of the {count} banks of filters, got {len(orders)}")
    banks: list[_Bank] = []
    for index, mixer, taps in layers:
        stages = []
        for stage, filter in enumerate(mixer.long_filters):
            kernel = filter(taps)
            limit = check_order(orders[len(banks) + stage], tol, max_order, len(kernel))
            kept = keep(filter, kernel, int(limit.min()) if len(limit) else 0)
            stages.append(_Bank(index, stage, kernel, limit, kept))
        if any(bank.report is None for bank in stages):  # one option holds for all filters of a layer
            for bank in stages:
                bank.report = None
        banks += stages

    # Banks of equal length go together: few filters alone would leave cores idle.
    to_fit = [bank for bank in banks if bank.report is None]
    for taps in dict.fromkeys(bank.kernel.shape[1] for bank in to_fit):
        same = [bank for bank in to_fit if bank.kernel.shape[1] == taps]
        limits = {"order": torch.cat([bank.limit for bank in same])} if tol is None else {"tol": tol}
        kernels = torch.cat([bank.kernel for bank in same])
        modal, report = distill_filter(
            kernels, method, max_order=max_order, progress=_counted(progress, len(kernels), taps), **limits, **options
        )
        start = 0
        for bank in same:
            rows = slice(start, start := start + len(bank.kernel))
            bank.report = report[rows]
            bank.modal = _rows(modal, rows, max(1, int(bank.report.modes.max()) if len(bank.kernel) else 1))

    filters: dict[int, list[ModalFilter]] = {}
    for bank in to_fit:
        assert bank.modal is not None
        filters.setdefault(bank.layer, []).append(bank.modal)
    return replace_filters(model, filters), DistillReport([bank.fit() for bank in banks])


@dataclasses.dataclass
class _Bank:
    """The filters of one stage of one layer, and what became of them: `modal` is None where they are kept."""

    layer: int
    stage: int
    kernel: Tensor
    limit: Tensor
    report: FitReport | None
    modal: ModalFilter | None = None

    def fit(self) -> LayerFit:
        kernel, exact = self.kernel.cpu(), self.modal is None
        fitted = kernel if self.modal is None else self.modal(kernel.shape[1]).cpu()
        assert self.report is not None
        return LayerFit(self.layer, self.stage, self.report, kernel, fitted, exact=exact)


def _counted(progress: Callable[[str], None] | None, total: int, taps: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    progress(f"0 of {total:,} filters of {taps:,} taps")
    return lambda done: progress(f"{done:,} of {total:,} filters of {taps:,} taps")


def _rows(modal: ModalFilter, rows: slice, modes: int) -> ModalFilter:
    """Some of the filters, with their first `modes` modes."""
    poles, residues = modal.poles[rows, :modes], modal.residues[rows, :modes]
    return ModalFilter.from_modes(poles, residues, modal.passthrough.data[rows], dtype=modal.log_dt.dtype)


def named_mixers(model: nn.Module) -> dict[int, tuple[str, Mixer]]:
    """The mixers of a model's layers: index of the layer -> the mixer's name in the model, and the mixer.

    Of a model of transformers, those are the layers whose attention was replaced.
    """
    found: dict[int, tuple[str, Mixer]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Mixer):  # parts of a mixer that are mixers themselves come after it
            found.setdefault(next(int(part) for part in name.split(".") if part.isdigit()), (name, module))
    return found


def long_filter_layers(model: Any, length: int | None) -> list[tuple[int, Any, int]]:
    """The layers with long filters: index, mixer, and how many taps to fit, `length` or all of them.

    Raises:
        ValueError: there are none, one of them is two-sided, or a length that is not in 1..max_length.
    """
    mixers = {index: mixer for index, (_, mixer) in named_mixers(model).items()}
    layers = [(index, mixer) for index, mixer in mixers.items() if len(mixer.long_filters)]
    if not layers:
        kinds = getattr(model.config, "mixers", ", ".join(sorted({type(mixer).__name__ for mixer in mixers.values()})))
        raise ValueError(f"the model has no long filter to distil: its mixers are {kinds!r}")
    if two_sided := [index for index, mixer in layers if not mixer.causal]:
        which = ", ".join(map(str, two_sided))
        raise ValueError(f"the mixers of layers {which} are not causal: a two-sided convolution is no recurrence")
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
        model: as for `distill`; left as it is.
        filters: for each of those layers, as many as it has long filters. They become parameters of the result; those
            of fewer modes than the layer's widest are padded (by copies).

    Returns:
        A model of the same class, in eval mode, on the same device. Its config names the modal filters.
    """
    filters = dict(filters)
    config = copy.deepcopy(model.config)
    for index, modals in filters.items():
        # The widest stage sets the layer's number of modes, the others are padded.
        modes = max(modal.order for modal in modals)
        filters[index] = [_widen(modal, modes) for modal in modals]
        config.set_layer_options(index, {"filter": {"name": "modal", "order": modes}})

    student = type(model)(config)
    mixers = named_mixers(student)
    for index, modals in filters.items():
        mixers[index][1].long_filters = nn.ModuleList(modals)
    student.to(device=model.device, dtype=model.dtype)
    new = tuple(f"{mixers[index][0]}.long_filters." for index in filters)
    distilled = {name: value for name, value in student.state_dict().items() if name.startswith(new)}
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith(new)}
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
