"""Export to ONNX: a layer, or a whole model, as a file that needs neither PyTorch nor this package.

`torch.export.export` and `torch.export.save` need nothing from here: the operator is one node of their graphs, and
whoever loads them imports `longconv` first. ONNX has no such node and no complex numbers, so `to_onnx` replaces it by
real matrix products (`longconv.kernels.fftconv.matmul`).
"""

import contextlib
import functools
import importlib.util
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from longconv.filters import Filter
from longconv.kernels.dilated import direct as dilated
from longconv.kernels.fftconv.matmul import fft_conv_matmul
from longconv.kernels.multires import tree
from longconv.kernels.shortconv import direct

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

#: The name of an axis that `max_length` bounds.
LENGTH = "length"
# A filter's first taps, alone and as part of a longer one, differ by no more than rounding.
_SAME_TAPS = 1e-5


def to_onnx(
    module: nn.Module,
    inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    path: str | os.PathLike[str] | None = None,
    *,
    max_length: int | None = None,
    axes: Mapping[str, Mapping[int, str]] | None = None,
    fold_filters: bool = True,
) -> "ONNXProgram":
    """Export a module in eval mode to ONNX, in standard operators on real numbers only.

    Every layer goes, as it is called without a state. A convolution becomes products with small real matrices,
    O(L sqrt(L)) or better in the length, or a direct one for a few taps. The length is that of the example unless
    `max_length` is given; then every call costs as much as the longest.

    Args:
        module: a layer, a `LongConvForCausalLM`, or any module that uses our convolutions.
        inputs: an example for `module.forward`: one tensor, some in order, or by name. Sizes of dynamic axes are free.
        path: of the file to write (weights beyond 1.5 GB go into a second one, `<path>.data`); None for none.
        max_length: makes the length dynamic, up to this.
        axes: dynamic axes by name, for each input: `{"x": {0: "batch", 1: "length"}}`. Axes of one name have one size,
            and "length" is the one that `max_length` bounds. Default: of every input axis 0 is "batch" and, with
            `max_length`, axis 1 is "length".
        fold_filters: store the taps of the long filters instead of the networks that make them. With False the graph
            computes them, in float64 where the filter does; filters with complex parameters (`"modal"`) cannot.

    Returns:
        The program: `program.model_proto` is the ONNX model, `program.save(path)` writes it, `program(x)` runs it.

    Raises:
        ImportError: onnx or onnxscript is missing.
        ValueError: the module is in training mode, an argument does not fit (a `"length"` axis without `max_length` or
            the reverse, names that are none of the inputs), a filter cannot be folded, what the module computes
            depends on the size of a dynamic axis (such as `DynamicConv(renorm_padding=True)`), or it has no real,
            standard form (a circular convolution of dynamic length, complex numbers, Hyena N-D's images).
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"longconv.export needs {package}: pip install 'longconv[onnx]'")
    if any(part.training for part in module.modules()):
        raise ValueError("module is in training mode: call module.eval() first")
    example = _by_name(module, inputs)
    names = _check_axes(example, axes, max_length)
    example = {name: _traceable(x, names[name]) for name, x in example.items()}
    dims: dict[str, Any] = {
        axis: torch.export.Dim(axis, min=1, max=max_length) if axis == LENGTH else torch.export.Dim(axis, min=1)
        for of_input in names.values()
        for axis in of_input.values()
    }
    shapes = {name: {axis: dims[label] for axis, label in of_input.items()} for name, of_input in names.items()}
    lengths, output_names = _dry_run(module, example)
    with torch.no_grad(), _folded(module, lengths, max_length) if fold_filters else contextlib.nullcontext():
        exported = _traced(module, example, shapes)
        exported = exported.run_decompositions(_decompositions(max_length))
        _check_real(exported.graph_module)
        program = torch.onnx.export(
            exported, (), kwargs=example, dynamo=True, dynamic_shapes=shapes, output_names=output_names, verbose=False
        )
    assert program is not None
    if path is not None:
        program.save(path)
    return program


class FoldedFilter(Filter):
    """The first taps (D, M) of another filter, as a constant."""

    def __init__(self, taps: Tensor) -> None:
        super().__init__()
        self.channels = taps.shape[0]
        self.register_buffer("taps", taps.mT.contiguous())  # (M, D): its beginning is contiguous, whatever its length
        self.taps: Tensor

    def forward(self, L: int) -> Tensor:
        """Return the first `L` taps, (D, L)."""
        return self.taps[:L].mT


def _by_name(module: nn.Module, inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(inputs, Mapping):
        return dict(inputs)
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    try:
        return dict(inspect.signature(module.forward).bind(*inputs).arguments)
    except TypeError as error:
        raise ValueError(f"inputs do not fit {type(module).__name__}.forward: {error}") from None


def _check_axes(
    example: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, str]] | None, max_length: int | None
) -> dict[str, dict[int, str]]:
    """The dynamic axes of every input, checked."""
    if axes is None:
        default = {0: "batch"} if max_length is None else {0: "batch", 1: LENGTH}
        names = {name: dict(default) for name in example}
    else:
        if unknown := axes.keys() - example.keys():
            raise ValueError(f"axes names {', '.join(sorted(unknown))}, but the inputs are {', '.join(example)}")
        names = {name: dict(axes.get(name, {})) for name in example}
    for name, of_input in names.items():
        for axis in of_input:
            if not 0 <= axis < example[name].ndim:
                raise ValueError(f"axes: {name} has shape {tuple(example[name].shape)}, so no axis {axis}")
            longest = max_length if of_input[axis] == LENGTH else None
            if longest is not None and example[name].shape[axis] > longest:
                raise ValueError(f"{name} has {example[name].shape[axis]} samples, more than max_length = {longest}")
    if (max_length is not None) != any(LENGTH in of_input.values() for of_input in names.values()):
        raise ValueError(f"max_length bounds the axes called {LENGTH!r}: give both or neither, got {max_length}")
    return names


def _traceable(x: Tensor, axes: Mapping[int, str]) -> Tensor:
    """Copy x (tracing takes a tensor given twice for one input), doubling dynamic axes of size 1 (constants to it)."""
    for axis in axes:
        if x.shape[axis] == 1:
            x = x.repeat_interleave(2, axis)
    return x.clone()


@torch.no_grad()
def _dry_run(module: nn.Module, example: Mapping[str, Tensor]) -> tuple[dict[Filter, set[int]], list[str]]:
    """Run the module once: the lengths that each filter was asked for, and names for the outputs."""
    lengths: dict[Filter, set[int]] = {}

    def note(filter: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        lengths.setdefault(filter, set()).update((*args, *kwargs.values()))

    filters = [part for part in module.modules() if isinstance(part, Filter)]
    hooks = [part.register_forward_pre_hook(note, with_kwargs=True) for part in filters]
    try:
        output = module(**example)
    finally:
        for hook in hooks:
            hook.remove()
    if isinstance(output, Mapping):
        return lengths, list(output)
    return lengths, ["y"] if isinstance(output, Tensor) else [f"y{i}" for i in range(len(output))]


@contextlib.contextmanager
def _folded(module: nn.Module, lengths: Mapping[Filter, set[int]], max_length: int | None) -> Iterator[None]:
    """Replace the filters inside `module` by their taps for the time being."""
    # A filter that is asked for no length (of images of one size) stays in the graph.
    constants = {filter: _fold(filter, sizes, max_length) for filter, sizes in lengths.items() if sizes}
    places = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if child in constants
    ]
    try:
        for parent, name, child in places:
            parent._modules[name] = constants[child]
        yield
    finally:
        for parent, name, child in places:
            parent._modules[name] = child


@torch.no_grad()
def _fold(filter: Filter, sizes: set[int], max_length: int | None) -> FoldedFilter:
    longest = max(sizes) if max_length is None else max_length
    taps = filter(longest).detach()
    for size in sizes - {longest}:
        alone = filter(size)
        if (alone - taps[:, :size]).norm() > _SAME_TAPS * alone.norm():
            raise ValueError(
                f"{type(filter).__name__}: its first {size} taps depend on how many there are, so it cannot be folded "
                f"for every length; use fold_filters=False or a fixed length"
            )
    return FoldedFilter(taps)


def _traced(module: nn.Module, example: dict[str, Tensor], shapes: Any) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(module, (), example, dynamic_shapes=shapes, strict=False)
    except (torch._dynamo.exc.UserError, AssertionError) as error:
        what = "what it computes depends on the size of a dynamic axis"
        remedy = "fix the length (no max_length), or give axes without this one"
        raise ValueError(f"{type(module).__name__}: {what}, so {remedy}. {error}") from error


def _decompositions(max_length: int | None) -> dict[Any, Callable[..., Tensor]]:
    """Our operators in terms of PyTorch's, real and with symbolic sizes."""
    table: dict[Any, Callable[..., Tensor]] = {
        torch.ops.longconv.fft_conv.default: functools.partial(fft_conv_matmul, max_length=max_length),
        torch.ops.longconv.short_conv.default: direct.convolve,
        torch.ops.longconv.dilated_conv.default: _dilated_conv,
        torch.ops.longconv.multires_conv.default: _multires_conv,
    }
    return table


def _dilated_conv(
    u: Tensor,
    k: Tensor,
    bias: Tensor | None,
    dilation: int,
    left: int,
    right: int,
    cu_seqlens: Tensor | None = None,
    impl: str = "torch",
) -> Tensor:
    if cu_seqlens is not None:
        raise ValueError("cu_seqlens: packed sequences have no standard form; give them as rows")
    return dilated.composite(u, k, bias, dilation, left, right)


def _multires_conv(x: Tensor, h0: Tensor, h1: Tensor, w: Tensor, counts: list[int]) -> Tensor:
    def conv(_: int, a: Tensor, taps: Tensor, dilation: int) -> Tensor:
        return dilated.composite(a, taps, None, dilation, (taps.shape[1] - 1) * dilation, 0)

    dtype = dilated.compute_dtype(x, h0)
    return tree.composite(x.to(dtype), h0.to(dtype), h1.to(dtype), w.to(dtype), counts, conv).to(x.dtype)


def _check_real(graph_module: torch.fx.GraphModule) -> None:
    """Raise ValueError if anything complex, or an operator of ours, is left for ONNX to deal with."""
    for node in graph_module.graph.nodes:
        value = node.meta.get("val")
        ours = getattr(node.target, "namespace", "") == "longconv"
        if ours or (isinstance(value, Tensor) and value.is_complex()):
            reason = "is an operator of longconv" if ours else "has a complex result"
            raise ValueError(
                f"{node.target} {reason}, for which ONNX has no standard form; complex filters need fold_filters=True"
            )
