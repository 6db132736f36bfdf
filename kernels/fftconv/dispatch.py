"""Which way a convolution goes: packed or not, in frames (overlap-save) or in whole rows."""

from torch import Tensor

from . import blocked, overlap, packed

# A filter is short, and overlap-save pays, where the row is at least this many times its reach.
# Measured on two cores (experiments/benchmarks/fftconv.py, --taps).
SHORT_RATIO = 4


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
    way = overlap if _is_short(u, k, k_reverse) else blocked
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
    way = overlap if _is_short(u, k, k_reverse) else blocked
    return way.conv_backward(*arguments)


def _is_short(u: Tensor, k: Tensor, k_reverse: Tensor | None) -> bool:
    reach = k.shape[1] - 1 + (0 if k_reverse is None else k_reverse.shape[1])
    return u.shape[-1] >= max(SHORT_RATIO * reach, overlap.MIN_FRAME)
