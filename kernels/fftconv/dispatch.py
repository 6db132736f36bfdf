"""Which way a convolution goes: packed or not, in frames (overlap-save) or in whole rows."""

from types import ModuleType

from torch import Tensor

from . import blocked, overlap, packed

# Overlap-save is taken where a row has so many samples, and at least so many times the reach of the filter. Measured on
# two cores: the two ways cost the same at 64 taps and 256 samples, and at 1,024 taps and 2,500 samples.
SHORT_RATIO, SHORT_LENGTH = 3, 512


def conv_forward(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    k_reverse: Tensor | None,
    circular: bool,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Evaluate `fft_conv` (see there for shapes); returns a new contiguous tensor of u's dtype."""
    if cu_seqlens is not None:
        ends = packed.boundaries(cu_seqlens, u)
        return packed.conv_forward(conv_forward, ends, u, k, skip, k_reverse, circular, pre_gate, post_gate)
    way = choose(u, k, k_reverse)
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
) -> list[Tensor]:
    """Gradients for (u, k, skip, k_reverse, pre_gate, post_gate); those not in `needs` come back empty.

    Everything is recomputed from the inputs. Filter gradients are summed in a fixed order (deterministic), in at least
    float32.
    """
    arguments = (dy, u, k, skip, k_reverse, circular, pre_gate, post_gate, needs)
    if cu_seqlens is not None:
        return packed.conv_backward(conv_backward, packed.boundaries(cu_seqlens, u), *arguments)
    way = choose(u, k, k_reverse)
    return way.conv_backward(*arguments)


def choose(u: Tensor, k: Tensor, k_reverse: Tensor | None) -> ModuleType:
    """Return the module whose `conv_forward` and `conv_backward` suit these sizes."""
    L, reach = u.shape[-1], k.shape[1] - 1 + (0 if k_reverse is None else k_reverse.shape[1])
    if max(SHORT_RATIO * reach, SHORT_LENGTH) <= L:
        return overlap
    return blocked
