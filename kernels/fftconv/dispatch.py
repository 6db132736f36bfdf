"""Which way a convolution goes: Triton, C or PyTorch; packed or not; in frames or in whole rows."""

from collections.abc import Sequence
from functools import partial
from types import ModuleType

from torch import Tensor

from . import blocked, direct, monarch, native, overlap, packed

# Overlap-save is taken where a row has so many samples, and at least so many times the reach of the filter; backward,
# where frames cost more and whole rows less (a signal's spectrum and its conjugate are one transform), by other
# numbers. Measured on two cores, where the two ways cost the same within a tenth at these limits.
SHORT_RATIO, SHORT_LENGTH = 3, 512
SHORT_RATIO_BACKWARD, SHORT_LENGTH_BACKWARD = 16, 8192


def conv_forward(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    k_reverse: Tensor | None,
    circular: bool,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Evaluate `fft_conv` (see there for shapes); returns a new contiguous tensor of u's dtype."""
    ends = None if cu_seqlens is None else packed.boundaries(cu_seqlens, u)
    if on_matrix_units(impl, u, k, skip, k_reverse, pre_gate, post_gate):
        from .monarch import conv

        return conv.conv_forward(u, k, skip, k_reverse, circular, pre_gate, post_gate, ends)
    if ends is not None:
        convolve = partial(conv_forward, impl=impl)
        return packed.conv_forward(convolve, ends, u, k, skip, k_reverse, circular, pre_gate, post_gate)
    in_c = compiled(impl, u, (k, skip, k_reverse), (pre_gate, post_gate), circular)
    way = native if in_c else choose(u, k, k_reverse)
    return way.conv_forward(u, k, skip, k_reverse, circular, pre_gate, post_gate)


def conv_backward(
    dy: Tensor,
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    k_reverse: Tensor | None,
    circular: bool,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    needs: list[bool],
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
) -> list[Tensor]:
    """Gradients for (u, k, skip, k_reverse, pre_gate, post_gate); those not in `needs` come back empty.

    Everything is recomputed from the inputs. Filter gradients are summed in a fixed order (deterministic), in at least
    float32.
    """
    arguments = (dy, u, k, skip, k_reverse, circular, pre_gate, post_gate, needs)
    ends = None if cu_seqlens is None else packed.boundaries(cu_seqlens, u)
    if on_matrix_units(impl, *arguments[:5], *arguments[6:8]):
        from .monarch import conv

        return conv.conv_backward(*arguments, ends)
    if ends is not None:
        return packed.conv_backward(partial(conv_backward, impl=impl), ends, *arguments)
    in_c = compiled(impl, u, (k, skip, k_reverse), (pre_gate, post_gate, dy), circular)
    way = native if in_c else choose(u, k, k_reverse, backward=True)
    return way.conv_backward(*arguments)


def on_matrix_units(impl: str, *tensors: Tensor | None) -> bool:
    """Whether these tensors go to the Triton kernels: asked for, or possible, on a GPU.

    Raises:
        ValueError: they were asked for, and cannot be had.
    """
    first = tensors[0]
    assert first is not None
    if impl in ("torch", "native") or (
        impl == "auto" and first.device.type == "cpu"
    ):  # the interpreter is no implementation
        return False
    reason = monarch.unavailable(first, *tensors[1:])
    if reason and impl == "triton":
        raise ValueError(f"impl='triton' cannot be had, because {reason}; use 'auto' or 'torch'")
    return reason is None


def compiled(
    impl: str, u: Tensor, filters: Sequence[Tensor | None], activations: Sequence[Tensor | None], circular: bool
) -> bool:
    """Whether these tensors, as in `native.unavailable`, go to the C code: asked for, or possible, on a CPU.

    Raises:
        ValueError: it was asked for, and cannot be had.
    """
    if impl == "torch" or (impl == "auto" and u.device.type != "cpu"):
        return False
    reason = native.unavailable(u, filters, activations, circular)
    if reason and impl == "native":
        raise ValueError(f"impl='native' cannot be had, because {reason}; use 'auto' or 'torch'")
    return not reason


def choose(u: Tensor, k: Tensor, k_reverse: Tensor | None, backward: bool = False) -> ModuleType:
    """Return the module of PyTorch operators whose `conv_forward`, or `conv_backward`, suits these sizes."""
    L, reach = u.shape[-1], k.shape[1] - 1 + (0 if k_reverse is None else k_reverse.shape[1])
    if direct.suits(u, reach + 1, blocked.compute_dtype(u, k)) and not (backward and reach >= direct.GRADIENT_TAPS):
        return overlap
    ratio, least = (SHORT_RATIO_BACKWARD, SHORT_LENGTH_BACKWARD) if backward else (SHORT_RATIO, SHORT_LENGTH)
    return overlap if max(ratio * reach, least) <= L else blocked
